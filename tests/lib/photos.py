"""The example examples/photos at work: its page, its workers, and pictures to upload."""

import io
import json
import math
import re
import struct
import subprocess
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from photos import measure
from photos.album import Album
from tests.lib import fork_server
from tests.lib.bundle import Bundle
from tests.lib.proxy import Proxy
from tests.lib.waiting import PATIENCE, eventually
from tests.lib.worker import Worker

EXAMPLE = Path(__file__).parents[2] / "examples/photos"

#: A worker with this module among its tasks writes one thumbnail of a photo while the file `hold` is there.
HOLDING = """
import time
from pathlib import Path

from photos import thumbnails

save = thumbnails.save


def held(image, path):
    while path.name == "medium.jpg" and Path("hold").exists():
        time.sleep(0.02)
    save(image, path)


thumbnails.save = held
"""

_PAGE = "import runpy; runpy.run_module('photos', run_name='__main__', alter_sys=True)"


class Studio:
    """A page and workers in a folder of photos; the page reaches its broker through a proxy."""

    def __init__(self, bundle: Bundle) -> None:
        self.bundle = bundle
        self.folder = bundle.folder / "photos"
        self.album = Album(self.folder)
        (bundle.folder / "holding.py").write_text(HOLDING)
        bundle.env |= {
            "PROJ_TASKS": "photos.tasks,holding",
            "PROJ_QUEUES": "photos",
            "PHOTOS_DIR": str(self.folder),
            "PYTHONPATH": str(EXAMPLE),
        }
        self.proxy = Proxy(bundle.node.info.port)
        self.proxy.__enter__()
        self.page = self._start_page("page.log")
        self._workers = 0
        self._worker: Worker | None = None

    def _start_page(self, log_name: str, **env: str) -> subprocess.Popen[Any]:
        self._log = self.bundle.folder / log_name
        env["CELERY_BROKER_URL"] = self.bundle.url_at(self.proxy.port)
        with self._log.open("ab") as log:
            return fork_server.popen(
                ["python", "-c", _PAGE, "--port=0"],
                cwd=self.bundle.folder,
                env=self.bundle.env | env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def url(self) -> str:
        def printed() -> str | None:
            assert self.page.poll() is None, self.log
            found = re.findall(r"^photos: (http://\S+)$", self.log, re.MULTILINE)
            return found[-1] if found else None

        return eventually("the page listens", printed) or ""

    @contextmanager
    def hasty_page(self) -> Iterator[None]:
        """While the block runs, the page is another one, whose publishes take five seconds at most."""
        page, log = self.page, self._log
        self.page = self._start_page("hasty.log", PROJ_PUBLISH_TIMEOUT="5")
        try:
            yield
        finally:
            self.page.kill()
            self.page.wait(PATIENCE)
            self.page, self._log = page, log

    @contextmanager
    def broker_down(self) -> Iterator[None]:
        """While the block runs, the page reaches no broker; the worker reaches it."""
        port = self.proxy.port
        self.proxy.__exit__()
        try:
            yield
        finally:
            self.proxy = Proxy(self.bundle.node.info.port, port)
            self.proxy.__enter__()

    def end(self) -> None:
        self.page.kill()
        self.page.wait(PATIENCE)
        self.proxy.__exit__()

    # --- Workers

    def start_worker(self) -> Worker:
        self._workers += 1
        name = f"w{self._workers}"
        self._worker = self.bundle.worker("-Q", "photos", "-n", name, log=f"{name}.log").ready()
        return self._worker

    @property
    def worker(self) -> Worker:
        """The one that works; it is started for the first who asks."""
        return self._worker or self.start_worker()

    def kill_worker(self) -> None:
        """With its processes, as when its machine is lost."""
        if self._worker:
            self._worker.stop()
            self._worker = None

    def hold(self) -> None:
        (self.bundle.folder / "hold").touch()

    def release(self) -> None:
        (self.bundle.folder / "hold").unlink(missing_ok=True)

    # --- The page, without a browser

    def upload(self, name: str, data: bytes, **headers: str) -> measure.Answer:
        return measure.upload(self.url, name, data, **headers)

    def get(self, path: str) -> Any:
        return urllib.request.urlopen(self.url + path, timeout=PATIENCE)

    def changes(self, since: str = "") -> Any:
        with self.get(f"/changes?since={since}") as answer:
            return json.loads(answer.read())

    def cards(self) -> dict[str, str]:
        return {each["id"]: each["html"] for each in self.changes()["cards"]}

    def words(self) -> dict[str, str]:
        """The state of each photo."""
        found = {name: re.search(r'data-word="(\w+)"', html) for name, html in self.cards().items()}
        return {name: match[1] for name, match in found.items() if match}

    def becomes(self, photo: str, word: str) -> str:
        """The photo's card, once it has this state."""
        eventually(f"{photo} is {word}", lambda: self.words().get(photo) == word, seen=self.seen)
        return self.cards()[photo]

    def seen(self) -> str:
        logs = [path.read_text() for path in sorted(self.bundle.folder.glob("*.log"))]
        return "\n".join([str(self.words()), *logs])


# --- Pictures


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def plain(color: str = "red", size: tuple[int, int] = (60, 40), kind: str = "JPEG", **options: Any) -> bytes:
    return encoded(Image.new("RGB", size, color), kind, **options)


def landscape(color: str) -> bytes:
    """Hills under a sky of this color, for the documentation's picture."""
    width, height = 360, 240
    image = Image.linear_gradient("L").resize((width, height))
    image = ImageOps.colorize(image, color, "white")
    draw = ImageDraw.Draw(image)
    draw.ellipse((230, 40, 280, 90), "lightyellow")
    for number, shade in enumerate(("darkseagreen", "seagreen", "darkslategray")):
        hill = [(x, 150 + 28 * number + 22 * math.sin(x / 50 + 2 * number)) for x in range(0, width + 1, 4)]
        draw.polygon([(0, height), *hill, (width, height)], shade)
    return encoded(image, "JPEG")


def animated() -> bytes:
    """A GIF that is red at first, then green."""
    frames = [Image.new("RGB", (60, 40), color) for color in ("red", "lime")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100)


def cmyk() -> bytes:
    """As from a print shop: cyan."""
    return encoded(Image.new("CMYK", (60, 40), (255, 0, 0, 0)), "JPEG")


def turned() -> bytes:
    """A photo of a camera that was held upright: its left is the top. Red is at the top."""
    image = Image.new("RGB", (60, 40), "blue")
    image.paste("red", (0, 0, 30, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise
    exif[0x010F] = "a secret place"
    return encoded(image, "JPEG", exif=exif)


@cache
def bomb(width: int = 20_000, height: int = 10_000) -> bytes:
    """A PNG of 200 million pixels in some kilobytes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer = zlib.compressobj(1)
    rows = b"".join([*(packer.compress(bytes(1 + width // 8)) for _ in range(height)), packer.flush()])
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
