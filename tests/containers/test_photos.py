"""The profile of the photos, with a real Docker; skipped, in CI too, where there is none."""

import json
import urllib.request
from collections.abc import Iterator

import pytest

from photos import measure
from photos.thumbnails import SIZES
from tests.lib import stack
from tests.lib.stack import Stack
from tests.lib.waiting import eventually

pytestmark = pytest.mark.timeout(3 * stack.LONG)

PROGRAMS = ["worker-photos", "photos"]


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    if reason := stack.why_not():
        pytest.skip(reason)
    with Stack(tmp_path_factory.mktemp("photos"), "--profile", "photos", "--profile", "operator") as running:
        running.compose("build", *PROGRAMS, "operator")
        running.compose("up", "--detach", "--wait", *PROGRAMS)
        yield running


def test_no_photo_is_lost_when_the_worker_is_killed(studio: Stack) -> None:
    """Each has its thumbnails in the end; a broken file is a dead letter, before and after a redrive."""
    url = f"http://{studio.port('photos', 8000)}"
    (broken,) = upload(url, b"Dear diary")
    eventually("the broken one has failed", lambda: words(url)[broken] == "failed")
    assert [letter["id"] for letter in studio.dead_letters()] == [broken]

    studio.kill(studio.containers("worker-photos")[0])
    photos = upload(url, *(measure.photo(400) for _ in range(5)))
    studio.compose("run", "--rm", "-T", "operator", "proj", "dead", "redrive", "--all")
    assert studio.dead_letters() == []
    assert {words(url)[photo] for photo in photos} == {"waiting"}
    studio.compose("up", "--detach", "--wait", *PROGRAMS)

    eventually(
        "all are done", lambda: {words(url)[photo] for photo in photos} == {"done"}, patience=stack.LONG
    )
    for size in SIZES:
        with urllib.request.urlopen(f"{url}/thumbnails/{photos[0]}/{size}.jpg", timeout=60) as answer:
            assert answer.headers["Content-Type"] == "image/jpeg"
            assert answer.read(3) == b"\xff\xd8\xff"
    eventually(
        "the broken one is dead again", lambda: [each["redrives"] for each in studio.dead_letters()] == [1]
    )


def upload(url: str, *files: bytes) -> list[str]:
    """The ids that the page gives them."""
    answers = [measure.upload(url, f"{number}.jpg", data) for number, data in enumerate(files)]
    assert {answer.status for answer in answers} == {202}
    return [answer.body["id"] for answer in answers]


def words(url: str) -> dict[str, str]:
    """What the page says of each photo."""
    with urllib.request.urlopen(f"{url}/changes", timeout=60) as answer:
        cards = json.load(answer)["cards"]
    return {card["id"]: card["html"].partition('data-word="')[2].partition('"')[0] for card in cards}
