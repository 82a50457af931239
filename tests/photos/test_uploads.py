"""What becomes of uploads of every kind, seen without a browser."""

import http.client
import os
import socket
import subprocess
import sys
import urllib.error
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import psutil
import pytest

from photos import measure
from tests.lib import dead
from tests.lib import photos as pictures
from tests.lib.missing import missing
from tests.lib.photos import Studio, plain
from tests.lib.proxy import Network
from tests.lib.waiting import PATIENCE, eventually

#: Photos that are uploaded at once, connections, and MB by which memory may grow meanwhile.
MANY, AT_ONCE, GROWTH = 200, 8, 30


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("text.jpg", b"Dear diary", "it is not a photo in JPEG, PNG, GIF or WEBP"),
        ("bomb.png", pictures.bomb(), "it has more than 89 million pixels"),
        ("half.jpg", plain(size=(900, 900), quality=95)[:-2000], "it cannot be read: "),
    ],
)
def test_what_is_no_photo_becomes_a_dead_letter(studio: Studio, name: str, data: bytes, error: str) -> None:
    """The card has the error in one line, and the dead letter its id."""
    studio.worker  # noqa: B018  one works
    answer = studio.upload(name, data)
    assert answer.status == 202

    photo = answer.body["id"]
    assert error in studio.becomes(photo, "failed")
    dead.await_letter(studio.bundle, photo)
    dropped = studio.bundle.proj("dead", "drop", photo, "--yes")
    assert dropped.returncode == 0, dropped.stderr


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("animated.gif", pictures.animated()),
        ("cmyk.jpg", pictures.cmyk()),
        ("turned.jpeg", pictures.turned()),
        ("../../../etc/passwd.JPG", plain("navy")),
        ("%2e%2e%2fa.png", plain("pink", kind="PNG")),
    ],
)
def test_photos_of_all_kinds(studio: Studio, name: str, data: bytes) -> None:
    """They have three thumbnails; a name is shown, and names no file."""
    studio.worker  # noqa: B018  one works
    photo = studio.upload(name, data).body["id"]

    card = studio.becomes(photo, "done")
    assert f'title="{name.rpartition("/")[2]}"' in card
    for size in ("small", "medium", "large"):
        with studio.get(f"/thumbnails/{photo}/{size}.jpg") as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
    assert not list(studio.bundle.folder.rglob("*passwd*"))


def test_the_same_photo_twice(studio: Studio) -> None:
    """It is one photo, under its first name; done is done."""
    studio.worker  # noqa: B018  one works
    first, again = (studio.upload(name, plain("orchid")) for name in ("one.jpg", "two.jpg"))
    assert (first.status, again.status, again.body) == (202, 202, first.body)

    card = studio.becomes(first.body["id"], "done")
    assert 'title="one.jpg"' in card
    assert studio.upload("three.jpg", plain("orchid")).body == first.body
    assert studio.becomes(first.body["id"], "done") == card


@pytest.mark.parametrize(
    ("name", "size", "headers", "status"),
    [
        ("notes.txt", 10, {}, 415),
        ("photo.jpg.exe", 10, {}, 415),
        ("large.jpg", 31 * 2**20, {}, 413),
        ("a.jpg", 10, {"Sec_Fetch_Site": "cross-site"}, 403),
    ],
)
def test_what_is_refused(studio: Studio, name: str, size: int, headers: dict[str, str], status: int) -> None:
    """By the page, with one line; it stores nothing."""
    before = _files(studio)
    answer = studio.upload(name, bytes(size), **headers)

    assert (answer.status, list(answer.body)) == (status, ["detail"])
    assert _files(studio) == before


def test_an_upload_of_unknown_length(studio: Studio) -> None:
    """Is refused, since it may have no end."""
    connection = http.client.HTTPConnection(urlsplit(studio.url).netloc, timeout=PATIENCE)
    connection.request("POST", "/photos", iter([b"part"]), {"Content-Type": "multipart/form-data"})
    assert connection.getresponse().status == 411
    connection.close()


def test_an_upload_that_is_cut_off(studio: Studio) -> None:
    """Nothing of it is kept, and the page goes on."""
    before = _files(studio)
    body = measure.form("half.jpg", plain("maroon", (900, 900)))
    where = urlsplit(studio.url)
    assert where.hostname
    assert where.port
    with socket.create_connection((where.hostname, where.port)) as upload:
        head = f"POST /photos HTTP/1.1\r\nHost: photos\r\nContent-Length: {len(body)}\r\n"
        kind = "Content-Type: multipart/form-data; boundary=photos-measure\r\n\r\n"
        upload.sendall((head + kind).encode() + body[: len(body) // 2])
        mine = upload.getsockname()[1]
        eventually("the page has the connection", lambda: mine in _callers(studio))
    eventually("the page has noticed", lambda: mine not in _callers(studio))

    assert studio.changes()["mark"]
    assert _files(studio) == before
    assert "Traceback" not in studio.log


def _callers(studio: Studio) -> set[int]:
    """The ports of those who are connected with the page."""
    found = psutil.Process(studio.page.pid).net_connections("tcp")
    return {each.raddr.port for each in found if each.raddr and each.status == "ESTABLISHED"}


def _files(studio: Studio) -> set[str]:
    return {path.name for path in studio.folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "path",
    ["/thumbnails/../originals/x.jpg", "/thumbnails/x/large.jpg", f"/thumbnails/{'a' * 32}/large.jpg"],
)
def test_what_is_no_thumbnail(studio: Studio, path: str) -> None:
    """No path leads to another file."""
    with pytest.raises(urllib.error.HTTPError) as refused:
        studio.get(path)
    assert refused.value.code in {404, 422}
    refused.value.close()


def test_the_broker_is_down(studio: Studio) -> None:
    """The upload is refused with the time to come back; then it is taken, and is the same photo."""
    studio.worker  # noqa: B018  one works
    with studio.broker_down():
        refused = studio.upload("down.jpg", plain("tan"))
        assert (refused.status, refused.headers["retry-after"]) == (503, "2")
        assert refused.body["detail"].startswith("the queue takes no photo: ")
        assert "down.jpg" not in "".join(studio.cards().values())

    answer = studio.upload("down.jpg", plain("tan"))
    assert answer.status == 202
    studio.becomes(answer.body["id"], "done")


def test_a_confirm_that_is_lost(studio: Studio) -> None:
    """The page sends the same id again. The message is there twice, and one of them is not executed."""
    studio.worker  # noqa: B018  one works
    with studio.hasty_page(), ThreadPoolExecutor(1) as pool:
        eventually("it is connected", lambda: studio.upload("before.jpg", plain("lime")).status == 202)
        studio.proxy.network = Network.SWALLOWS_ANSWERS
        swallowed = studio.proxy.happened[Network.SWALLOWS_ANSWERS]
        answer = pool.submit(studio.upload, "lost.jpg", plain("gold"))
        eventually("an answer is lost", lambda: studio.proxy.happened[Network.SWALLOWS_ANSWERS] > swallowed)
        studio.proxy.network = Network.WORKS
        assert answer.result(PATIENCE).status == 202

    photo = answer.result().body["id"]
    studio.becomes(photo, "done")
    studio.worker.says(f"photos.make_thumbnails[{photo}] is a duplicate")


def test_a_full_disk(studio: Studio) -> None:
    """The error is one line, no half is left, and with room a redrive makes the thumbnails."""
    studio.worker  # noqa: B018  one works
    folder = studio.album.thumbnails
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if sys.platform != "linux" or os.geteuid() != 0 or subprocess.run(mount).returncode:
        missing("a small file system to fill: only root may mount one")
    try:
        filling = folder / ".filling"
        with pytest.raises(OSError, match="No space"):
            filling.write_bytes(bytes(2**20))
        answer = studio.upload("full.jpg", plain("gray", (300, 200)))
        photo = answer.body["id"]

        assert "No space left on device" in studio.becomes(photo, "failed")
        assert [path.name for path in folder.iterdir()] == [".filling"]
        filling.unlink()
        dead.await_letter(studio.bundle, photo)
        assert studio.bundle.proj("dead", "redrive", photo).returncode == 0
        studio.becomes(photo, "done")
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_many_at_once(studio: Studio) -> None:
    """All are accepted while no worker works; then the queue drains, and no program has grown."""
    worker = studio.worker
    programs = [studio.page.pid, worker.process.pid, *(each.pid for each in worker.children())]
    photos = [measure.photo(32) for _ in range(MANY)]
    warm = measure.upload_all(studio.url, photos[: MANY // 4], AT_ONCE)
    eventually("the first are done", lambda: _all_done(studio, warm), seen=studio.seen)
    before = [_megabytes(pid) for pid in programs]

    studio.hold()
    answers = measure.upload_all(studio.url, photos[MANY // 4 :], AT_ONCE)
    assert {answer.status for answer in answers} == {202}
    words = studio.words()
    assert not any(words[each.body["id"]] == "done" for each in answers)
    studio.release()

    eventually("all are done", lambda: _all_done(studio, answers), seen=studio.seen)
    assert studio.bundle.depth("photos") == 0
    grown = [_megabytes(pid) - then for pid, then in zip(programs, before, strict=True)]
    assert max(grown) < GROWTH, grown


def _all_done(studio: Studio, answers: list[measure.Answer]) -> bool:
    words = studio.words()
    return all(words.get(each.body["id"]) == "done" for each in answers)


def _megabytes(pid: int) -> float:
    return float(psutil.Process(pid).memory_info().rss) / 2**20
