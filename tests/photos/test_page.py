"""What people see of their photos, in a real browser."""

import re

import pytest
from playwright.sync_api import FilePayload, FloatRect, Page, expect

from tests.lib.photos import Studio, landscape, plain
from tests.lib.waiting import eventually

#: The photos and the broken file of the first test.
COLORS = ("seagreen", "steelblue", "goldenrod", "indianred", "slategray")
BROKEN = b"Dear diary, this is no photo."
NAMES = re.compile("|".join((*COLORS, "diary")))


def test_five_photos_and_a_broken_file(studio: Studio, page: Page, request: pytest.FixtureRequest) -> None:
    """The page answers while no worker runs; a worker is killed while it works; nothing is lost.

    The broken file becomes a dead letter. When the file is mended, a redrive on the command line is seen.
    """
    studio.kill_worker()
    page.goto(studio.url)
    files = [(f"{color}.jpg", landscape(color)) for color in COLORS] + [("diary.jpg", BROKEN)]
    page.locator("#files").set_input_files([_file(*each) for each in files])
    _shows(page, "waiting", 6)

    studio.hold()
    studio.start_worker()
    _shows(page, "working", 1)
    working = page.locator("article.working")
    expect(working).to_contain_text("1 of 3 thumbnails")
    expect(working.locator("progress")).to_have_attribute("max", "3")
    studio.kill_worker()
    studio.release()
    studio.start_worker()

    _shows(page, "done", 5)
    _shows(page, "failed", 1)
    failed = page.locator("article.failed", has_text="diary.jpg")
    expect(failed.locator(".error")).to_have_text("BadPhoto: it is not a photo in JPEG, PNG, GIF or WEBP")
    _loaded(page, 5)
    for size in ("small", "medium", "large"):
        link = page.locator("article.done", has_text=COLORS[0]).get_by_role("link", name=size, exact=True)
        answer = page.request.get(f"{studio.url}{link.get_attribute('href')}")
        assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
    assert studio.bundle.depth("photos") == 0
    if folder := request.config.getoption("--screenshots"):
        _take_picture(studio, page, folder)

    command = failed.locator("code").inner_text().split()
    photo = command[-1]
    assert studio.bundle.proj("dead", "show", photo).returncode == 0
    studio.album.original(photo).write_bytes(plain("plum"))
    assert command[0] == "proj"
    assert studio.bundle.proj(*command[1:]).returncode == 0
    _shows(page, "done", 6)
    _shows(page, "failed", 0)
    _loaded(page, 6)


def _take_picture(studio: Studio, page: Page, folder: str) -> None:
    """With two more photos, of which one is being worked on and one waits."""
    studio.hold()
    more = [_file("evening.jpg", landscape("orange")), _file("morning.jpg", landscape("skyblue"))]
    page.locator("#files").set_input_files(more)
    expect(page.locator("article.working")).to_contain_text("1 of 3")
    expect(page.locator("article.waiting")).to_be_visible()
    _loaded(page, 5)
    clip: FloatRect = {"x": 40, "y": 0, "width": 1200, "height": 890}
    page.screenshot(path=f"{folder}/photos.png", clip=clip, full_page=True)
    studio.release()
    expect(page.locator("article.done")).to_have_count(7)


def _shows(page: Page, word: str, count: int) -> None:
    """So many of this test's photos have this state, and the summary counts all of them."""
    all_of_them = page.locator(f"article.{word}")
    expect(all_of_them.filter(has_text=NAMES)).to_have_count(count)
    expect(page.locator("#summary")).to_contain_text(f"{all_of_them.count()} {word}")


def _file(name: str, data: bytes) -> FilePayload:
    return {"name": name, "mimeType": "image/jpeg", "buffer": data}


def _loaded(page: Page, count: int) -> None:
    """All pictures of the page are there, and were not only asked for."""
    loaded = "images => images.filter(each => each.complete && each.naturalWidth > 0).length"
    images = page.locator("article.done").filter(has_text=NAMES).locator("img")
    eventually(f"{count} pictures are loaded", lambda: images.evaluate_all(loaded) == count)


def test_a_photo_that_the_queue_does_not_take_yet(studio: Studio, page: Page) -> None:
    """The page says so, and uploads it again until the broker is back."""
    assert studio.upload("first.jpg", plain("cyan")).status == 202
    page.goto(studio.url)
    with studio.broker_down():
        page.locator("#files").set_input_files(_file("later.jpg", plain("teal")))
        expect(page.locator("#problem")).to_contain_text("later.jpg waits: the queue takes no photo")
    studio.worker  # noqa: B018  one works
    expect(page.locator("article.done", has_text="later.jpg")).to_be_visible()
    expect(page.locator("#problem")).to_be_hidden()


def test_what_a_browser_is_not_to_upload(studio: Studio, page: Page) -> None:
    """One line for each file that is refused, and the others are taken."""
    studio.worker  # noqa: B018  one works
    page.goto(studio.url)
    files = [_file("notes.txt", b"notes"), _file("<i>good.jpg", plain("olive"))]
    page.locator("#files").set_input_files(files)

    refusal = "notes.txt: its name must end with .jpg, .jpeg, .png, .gif, .webp"
    expect(page.locator("#problem")).to_have_text(refusal)
    expect(page.locator("article.done", has_text="<i>good")).to_be_visible()


def test_a_page_that_rests_asks_ever_more_rarely(studio: Studio, page: Page) -> None:
    """Each pause is longer than the one before, until something changes."""
    page.add_init_script(
        "const timeout = window.setTimeout; window.pauses = [];"
        "window.setTimeout = (act, pause) => { pauses.push(pause); return timeout(act, pause / 50); };"
    )
    page.goto(studio.url)
    eventually("the pause is the longest", lambda: 8000 in page.evaluate("pauses"))
    pauses = [pause for pause in page.evaluate("pauses") if pause >= 250]

    assert len(pauses) > 5
    assert pauses == sorted(pauses)
