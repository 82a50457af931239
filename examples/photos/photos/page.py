"""The page: it stores an upload, enqueues its task, and answers at once."""

import functools
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Final

from fastapi import FastAPI, HTTPException, Request, Response, UploadFile
from fastapi import Path as InPath
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from fastapi.templating import Jinja2Templates

from photos.states import Watch
from photos.tasks import album, make_thumbnails
from photos.thumbnails import SIZES
from proj.errors import NotConfirmed, OutcomeUnknown, ResultStoreError

HERE: Final = Path(__file__).parent

#: Bytes of an upload, the photo and what a form adds.
MAX_BYTES: Final = 30 * 2**20

#: How a name may end. What is in the file is looked at by a worker.
SUFFIXES: Final = (".jpg", ".jpeg", ".png", ".gif", ".webp")

#: Seconds after which a browser tries again, while the queue takes nothing.
RETRY_AFTER: Final = 2

templates = Jinja2Templates(HERE / "templates")
watch = Watch(album)
page = FastAPI(title="Photos", docs_url=None, redoc_url=None, openapi_url=None)
page.mount("/static", StaticFiles(directory=HERE / "static"))

PhotoId = Annotated[str, InPath(pattern=r"^[0-9a-f]{32}$")]


@page.get("/")
def show(request: Request) -> HTMLResponse:
    """The page without a photo: its script asks for them."""
    return templates.TemplateResponse(request, "page.html", {"accept": ",".join(SUFFIXES)})


@page.post("/photos", status_code=202)
def upload(photo: UploadFile) -> dict[str, str]:
    """Store the photo and enqueue its task. The same photo has the same id, so to send it again is safe."""
    name = photo.filename or ""
    if not name.lower().endswith(SUFFIXES):
        raise HTTPException(415, f"its name must end with {', '.join(SUFFIXES)}")
    photo_id = album.store(photo.file)
    if not album.folder(photo_id).exists():
        enqueue(photo_id)
    album.accept(photo_id, name)
    return {"id": photo_id}


def enqueue(photo_id: str) -> None:
    """Enqueue the task of a photo, whose id is the message's too. Raises `HTTPException` with Retry-After."""
    send = functools.partial(make_thumbnails.apply_async, (photo_id,), task_id=photo_id)
    try:
        try:
            send()  # it returns when the message is confirmed
        except OutcomeUnknown:
            send()  # it may be enqueued twice now, and is executed once: both have the same id
    except NotConfirmed as error:
        headers = {"Retry-After": str(RETRY_AFTER)}
        raise HTTPException(503, f"the queue takes no photo: {error.message}", headers) from error


@page.get("/changes")
def changes(since: str = "") -> dict[str, object]:
    """The cards that changed since the mark of an earlier answer, and the next mark."""
    try:
        mark, states = watch.changes(since)
    except ResultStoreError as error:
        raise HTTPException(503, error.message, {"Retry-After": str(RETRY_AFTER)}) from error
    card = templates.get_template("card.html")
    cards = [{"id": each.photo.id, "html": card.render(state=each, sizes=SIZES)} for each in states]
    return {"mark": mark, "cards": cards}


@page.get("/thumbnails/{photo_id}/{size}.jpg")
def thumbnail(photo_id: PhotoId, size: str) -> FileResponse:
    path = album.folder(photo_id) / f"{size}.jpg"
    if size not in SIZES or not path.exists():
        raise HTTPException(404, "there is no such thumbnail")
    return FileResponse(path, headers={"Cache-Control": "public, max-age=31536000, immutable"})


@page.middleware("http")
async def guard(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
    """Refuse what is too large before it is read, and what another site's page sends for a visitor."""
    size = request.headers.get("Content-Length", "")
    if request.method == "POST":
        if request.headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
            return JSONResponse({"detail": "another site may not upload"}, 403)
        if not size.isdecimal():
            return JSONResponse({"detail": "the upload has no length"}, 411)
        if int(size) > MAX_BYTES:
            return JSONResponse({"detail": f"it is larger than {MAX_BYTES // 2**20} MB"}, 413)
    response = await answer(request)
    response.headers["Content-Security-Policy"] = "default-src 'self'"
    response.headers["X-Content-Type-Options"] = "nosniff"
    return response
