"""Where photos are kept: the originals by the hash of their bytes, so that no name can leave the folder."""

import hashlib
import json
import os
import shutil
import tempfile
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Final

#: Characters of a photo's id, in hexadecimal digits of its SHA-256.
ID_LENGTH: Final = 32

#: Characters of a name that is shown.
NAME_LENGTH: Final = 80

#: Seconds after which a file that was never completed is deleted.
ABANDONED: Final = 24 * 3600


@dataclass(frozen=True)
class Photo:
    """An accepted photo; its id is that of its message too."""

    id: str
    name: str
    added: float


class Album:
    """A folder of photos, shared by the page and the workers."""

    def __init__(self, folder: Path) -> None:
        self.originals = folder / "originals"
        self.thumbnails = folder / "thumbnails"
        self.incoming = folder / "incoming"

    def store(self, file: BinaryIO) -> str:
        """Keep the bytes, and return the id of the photo: the same for the same bytes."""
        for folder in (self.originals, self.incoming):
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.incoming, delete=False) as copy:
            try:
                digest = hashlib.sha256()
                while part := file.read(2**20):
                    digest.update(part)
                    copy.write(part)
                copy.flush()
                os.fsync(copy.fileno())
                photo = digest.hexdigest()[:ID_LENGTH]
                os.replace(copy.name, self.original(photo))
            except BaseException:
                os.unlink(copy.name)
                raise
        return photo

    def accept(self, photo: str, name: str) -> None:
        """List the photo under this name; the first one stays."""
        if not self._card(photo).exists():
            new = self.incoming / f"{photo}.{time.monotonic_ns()}"
            new.write_text(json.dumps({"name": shown(name), "added": time.time()}))
            new.replace(self._card(photo))

    def photos(self) -> list[Photo]:
        """The accepted photos, the newest first."""
        found = [_read(path) for path in self.originals.glob("*.json")]
        return sorted(found, key=lambda each: (each.added, each.id), reverse=True)

    def original(self, photo: str) -> Path:
        return self.originals / photo

    def folder(self, photo: str) -> Path:
        """The folder of its thumbnails, which is there once all of them are."""
        return self.thumbnails / photo

    def tidy(self) -> None:
        """Delete what uploads and workers that were killed have left."""
        for path in (*self.incoming.glob("*"), *self.thumbnails.glob(".*")):
            if path.stat().st_mtime < time.time() - ABANDONED:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _card(self, photo: str) -> Path:
        return self.originals / f"{photo}.json"


def shown(name: str) -> str:
    """The last part of a file name as people may see it: printable, and not long."""
    last = name.replace("\\", "/").rpartition("/")[2]
    printable = "".join(char for char in last if char.isprintable())
    return printable[:NAME_LENGTH] or "a photo"


@lru_cache(maxsize=10_000)
def _read(path: Path) -> Photo:
    card = json.loads(path.read_text())
    return Photo(path.stem, card["name"], card["added"])
