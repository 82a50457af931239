"""The tasks, a few lines around plain functions. With `PROJ_TASKS=photos.tasks` every program knows them."""

import os
from pathlib import Path
from typing import Annotated

from pydantic import Field

from photos import thumbnails
from photos.album import Album
from proj import app
from proj.enqueue import Task

#: The page and all workers need the same folder.
album = Album(Path(os.environ.get("PHOTOS_DIR") or app.settings.state_dir / "photos"))

#: What a message may name: never a path.
PhotoId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


@app.task(name="photos.make_thumbnails", bind=True, queue="photos")
def make_thumbnails(self: Task, photo: PhotoId) -> list[str]:
    """Make the thumbnails of a photo, and report each that is done."""

    def report(done: int) -> None:
        self.update_state(state="PROGRESS", meta={"done": done, "of": len(thumbnails.SIZES)})

    report(0)
    return thumbnails.make(album.original(photo), album.folder(photo), report)
