"""`python -m photos` serves the page until Ctrl-C."""

import argparse
import os

import uvicorn

from photos.page import page
from photos.tasks import album


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m photos", description="Serve the page of the photos.")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    port = int(os.environ.get("PHOTOS_PORT", "8000"))
    parser.add_argument("--port", type=int, default=port, help="0 for a free one (default: %(default)s)")
    options = parser.parse_args()
    album.tidy()
    config = uvicorn.Config(page, options.host, options.port, log_level="warning")
    sock = config.bind_socket()
    sock.listen()  # who reads the address may connect
    print("photos: http://{}:{}".format(*sock.getsockname()[:2]), flush=True)
    uvicorn.Server(config).run([sock])


if __name__ == "__main__":
    main()
