"""What the page shows of each photo: waiting, working, done or failed."""

import threading
import time
import uuid
from dataclasses import dataclass
from typing import Final

from photos.album import Album, Photo
from proj import app, results

#: Seconds for which a look serves every browser that asks.
LOOK_INTERVAL: Final = 0.2


@dataclass(frozen=True)
class State:
    """The state of a photo; `done` of `of` thumbnails are made, and `error` is one line."""

    photo: Photo
    word: str
    done: int = 0
    of: int = 0
    error: str = ""


def state_of(album: Album, photo: Photo) -> State:
    """The state as the folder and the result store have it. Raises `ResultStoreError`."""
    if album.folder(photo.id).exists():
        return State(photo, "done")
    found = results.outcome(app, photo.id)
    if found.error:
        return State(photo, "failed", error=found.error.partition("\n")[0])
    if found.state == "PROGRESS":
        return State(photo, "working", **found.result)
    return State(photo, "waiting")


class Watch:
    """Knows what has changed since a browser looked, so that an answer has only that."""

    def __init__(self, album: Album) -> None:
        self._album = album
        self._run = uuid.uuid4().hex[:8]
        self._lock = threading.Lock()
        self._looked = 0.0
        self._number = 0
        #: The state of each photo, and the number of the look that found it. Those that are done stay.
        self._states: dict[str, tuple[State, int]] = {}

    def changes(self, since: str = "") -> tuple[str, list[State]]:
        """The mark to ask with the next time, and the states that are new since, the oldest photo first."""
        with self._lock:
            if time.monotonic() - self._looked > LOOK_INTERVAL:
                self._look()
                self._looked = time.monotonic()
            run, _, number = since.partition("-")
            seen = int(number) if run == self._run and number.isdecimal() else 0
            found = [state for state, changed in self._states.values() if changed > seen]
            return f"{self._run}-{self._number}", sorted(found, key=lambda state: state.photo.added)

    def _look(self) -> None:
        number = self._number + 1
        for photo in self._album.photos():
            known = self._states.get(photo.id)
            if known is None or known[0].word != "done":
                state = state_of(self._album, photo)
                if known is None or known[0] != state:
                    self._states[photo.id] = state, number
                    self._number = number
