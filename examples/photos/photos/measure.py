"""`python -m photos.measure` uploads 200 photos at once to a running page, and times the answers."""

import argparse
import http.client
import io
import json
import secrets
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from PIL import Image

_BOUNDARY: Final = "photos-measure"


@dataclass(frozen=True)
class Answer:
    """What the page answered, and the seconds from the end of the upload until then."""

    status: int
    headers: dict[str, str]
    body: dict[str, str]
    seconds: float


def photo(side: int) -> bytes:
    """A JPEG that nobody has uploaded before."""
    image = Image.frombytes("RGB", (8, 8), secrets.token_bytes(8 * 8 * 3)).resize((side, side))
    file = io.BytesIO()
    image.save(file, "JPEG")
    return file.getvalue()


def form(name: str, data: bytes) -> bytes:
    """What a browser sends for a form with one file."""
    head = f'Content-Disposition: form-data; name="photo"; filename="{name}"\r\nContent-Type: image/jpeg'
    return b"".join([f"--{_BOUNDARY}\r\n{head}\r\n\r\n".encode(), data, f"\r\n--{_BOUNDARY}--\r\n".encode()])


def upload(url: str, name: str, data: bytes, **headers: str) -> Answer:
    """Upload one photo over a connection of its own; the underscores of header names become hyphens."""
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    given["Content-Type"] = f"multipart/form-data; boundary={_BOUNDARY}"
    connection.request("POST", "/photos", form(name, data), given)
    sent = time.perf_counter()
    response = connection.getresponse()
    body = json.loads(response.read())
    seconds = time.perf_counter() - sent
    connection.close()
    return Answer(response.status, dict(response.headers), body, seconds)


def upload_all(url: str, photos: Iterable[bytes], at_once: int) -> list[Answer]:
    """Upload all photos over so many connections at once."""
    with ThreadPoolExecutor(at_once) as pool:
        numbered = enumerate(photos)
        return list(pool.map(lambda each: upload(url, f"{each[0]}.jpg", each[1]), numbered))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m photos.measure")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="default: %(default)s")
    parser.add_argument("--count", type=int, default=200, help="photos (default: %(default)s)")
    parser.add_argument(
        "--at-once", type=int, default=6, help="connections (default: %(default)s, a browser's)"
    )
    parser.add_argument("--side", type=int, default=640, help="pixels (default: %(default)s)")
    options = parser.parse_args()
    photos = [photo(options.side) for _ in range(options.count)]
    began = time.perf_counter()
    answers = upload_all(options.url, photos, options.at_once)
    seconds = time.perf_counter() - began
    times = sorted(1000 * answer.seconds for answer in answers)
    accepted = sum(answer.status == 202 for answer in answers)
    print(f"{accepted} of {options.count} photos accepted in {seconds:.1f} s")
    print(
        f"answer after the end of the upload, ms: median {statistics.median(times):.0f}, "
        f"95 % {times[int(0.95 * len(times))]:.0f}, longest {times[-1]:.0f}"
    )


if __name__ == "__main__":
    main()
