"""The file that says how far a batch has come, so that one that was interrupted goes on there.

It holds a random key, from which the ids of the messages come, the number of lines that are done, and how far
further ones may have been sent: these are sent again under the same ids, marked as repeats.
"""

import fcntl
import json
import os
import secrets
import uuid
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from proj.errors import BadInput

#: Lines that are announced at once as perhaps sent: each announcement waits for the disk.
AHEAD: Final = 5_000

#: Bytes of the file. It is written in place and at once, and fits one block of a disk.
_SIZE: Final = 512

#: Bytes of a key, and of a digest.
_BYTES: Final = 16


class ProgressFile:
    """One run of a batch; while it is open, no other run can open it."""

    def __init__(self, path: Path) -> None:
        """Open the file, or begin a new one. Raises `BadInput` when it cannot be used."""
        self._path = path
        self.key = secrets.token_bytes(_BYTES)
        #: The lines 1 to `done` have their outcome, and `digest` is that of these lines.
        self.done = 0
        self.digest = bytes(_BYTES)
        #: The lines up to this one may have been sent.
        self.sent = 0
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise BadInput(f"the progress file {path} cannot be used: {error.strerror}") from None
        try:
            self._lock()
            stored = os.pread(self._file, _SIZE + 1, 0)
            self._is_new = not stored
            if stored:
                self._load(stored)
        except BaseException:
            os.close(self._file)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def id_of(self, number: int, line: bytes) -> str:
        """The id of a line's message; another one when the line is changed, which makes it other work."""
        digest = blake2b(line, digest_size=16, key=self.key, salt=number.to_bytes(16)).digest()
        return str(uuid.UUID(bytes=digest, version=4))

    def save(self, done: int, digest: bytes, sent: int) -> None:
        """Write how far the batch has come, and wait until the disk has it. Raises `BadInput`."""
        self.done, self.digest, self.sent = done, digest, sent
        content: dict[str, Any] = {
            "key": self.key.hex(),
            "done": done,
            "digest": digest.hex(),
            "sent": sent,
        }
        text = json.dumps({**content, "check": _check(content)}).ljust(_SIZE - 1) + "\n"
        try:
            os.pwrite(self._file, text.encode(), 0)
            os.fsync(self._file)
            if self._is_new:
                self._sync_folder()
        except OSError as error:
            raise BadInput(f"the progress file {self._path} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """Delete the file: the batch is complete, and the same input sent again is other work.

        A file that cannot be deleted, as in a folder that is not writable, stays and is empty.
        """
        os.ftruncate(self._file, 0)  # it may stay, or have another name; empty, it counts as new
        with suppress(OSError):
            self._path.unlink()

    def _sync_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
        self._is_new = False

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BadInput(
                f"the progress file {self._path} cannot be locked: {error.strerror}",
                "does another run use it?",
            ) from None

    def _load(self, stored: bytes) -> None:
        try:
            content = json.loads(stored)
            check = content.pop("check")
            if check != _check(content):
                raise ValueError
            self.key, self.digest = (bytes.fromhex(content[name]) for name in ("key", "digest"))
            self.done, self.sent = int(content["done"]), int(content["sent"])
        except (ValueError, TypeError, LookupError, AttributeError):
            raise BadInput(
                f"the progress file {self._path} is damaged, or is another file",
                "what it counted may be enqueued already; to begin anew, name a file that does not exist",
            ) from None


def chained(digest: bytes, line: bytes | None) -> bytes:
    """The digest of some lines and the one that follows them; a line that is too long counts as empty."""
    return blake2b(line or b"", digest_size=_BYTES, key=digest).digest()


def _check(content: dict[str, Any]) -> str:
    return blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=8).hexdigest()
