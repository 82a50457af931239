"""What becomes of good and bad photos: plain functions, without Celery, a broker or a page."""

import io
from pathlib import Path

import pytest
from PIL import Image

from photos import thumbnails
from photos.thumbnails import SIZES, BadPhoto
from tests.lib import photos as pictures

FILES = ["large.jpg", "medium.jpg", "small.jpg"]


def _made(tmp_path: Path, data: bytes) -> dict[str, Image.Image]:
    original = tmp_path / "original"
    original.write_bytes(data)
    names = thumbnails.make(original, tmp_path / "thumbnails/it")
    folder = tmp_path / "thumbnails/it"
    return {name: Image.open(io.BytesIO((folder / name).read_bytes())) for name in names}


def _is(image: Image.Image, at: tuple[int, int], color: tuple[int, int, int]) -> bool:
    """Whether the pixel has this color, as nearly as JPEG keeps it."""
    pixel = image.convert("RGB").getpixel(at)
    assert isinstance(pixel, tuple)
    return all(abs(one - other) < 12 for one, other in zip(pixel, color, strict=True))


def test_three_sizes(tmp_path: Path) -> None:
    """The longest side is what the size says, and the proportions stay."""
    found = _made(tmp_path, pictures.plain(size=(3000, 1500)))

    assert {name: image.size for name, image in found.items()} == {
        f"{name}.jpg": (side, side // 2) for name, side in SIZES.items()
    }


def test_a_small_photo_is_not_enlarged(tmp_path: Path) -> None:
    assert _made(tmp_path, pictures.plain(size=(60, 40)))["large.jpg"].size == (60, 40)


def test_orientation_of_the_camera(tmp_path: Path) -> None:
    """The thumbnail is upright, and has nothing else of what the camera wrote."""
    image = _made(tmp_path, pictures.turned())["large.jpg"]

    assert image.size == (40, 60)
    assert _is(image, (20, 5), (254, 0, 0))
    assert _is(image, (20, 55), (0, 0, 254))
    assert not image.getexif()


def test_animated_gif(tmp_path: Path) -> None:
    """Its first picture."""
    assert _is(_made(tmp_path, pictures.animated())["large.jpg"], (30, 20), (254, 0, 0))


def test_cmyk(tmp_path: Path) -> None:
    """Browsers get RGB."""
    image = _made(tmp_path, pictures.cmyk())["large.jpg"]

    assert image.mode == "RGB"
    assert _is(image, (30, 20), (0, 255, 255))


def test_transparency_is_white(tmp_path: Path) -> None:
    data = pictures.encoded(Image.new("RGBA", (60, 40), (255, 0, 0, 0)), "PNG")
    assert _is(_made(tmp_path, data)["large.jpg"], (30, 20), (255, 255, 255))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF"])
def test_formats(tmp_path: Path, kind: str) -> None:
    """All thumbnails are JPEG."""
    assert _made(tmp_path, pictures.plain(kind=kind))["small.jpg"].format == "JPEG"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"Dear diary", "it is not a photo in JPEG, PNG, GIF or WEBP"),
        (b"", "it is not a photo"),
        (pictures.plain(size=(200, 200), kind="TIFF"), "it is not a photo"),
        (pictures.plain(size=(900, 900), quality=95)[:-2000], "it cannot be read: "),
        (pictures.plain(size=(90, 90), kind="PNG")[:60], "it cannot be read: "),
        (pictures.plain(size=(200, 200), kind="GIF")[:200], "it cannot be read: "),
        (pictures.bomb(), "it has more than 89 million pixels"),
        (pictures.bomb(10_000, 9_000), "it has more than 89 million pixels"),
    ],
    ids=["text", "empty", "another format", "half a JPEG", "half a PNG", "half a GIF", "bomb", "small bomb"],
)
def test_bad_photos(tmp_path: Path, data: bytes, words: str) -> None:
    """One line says what is wrong, and nothing is left behind."""
    with pytest.raises(BadPhoto, match=f"^{words}.*$"):
        _made(tmp_path, data)
    assert list((tmp_path / "thumbnails").iterdir()) == []


def test_pillows_limit_is_kept() -> None:
    """Nobody has raised it, in this module or in another."""
    assert Image.MAX_IMAGE_PIXELS == 89_478_485


def test_twice_is_once(tmp_path: Path) -> None:
    """The second attempt writes nothing, and returns the same."""
    assert list(_made(tmp_path, pictures.plain())) == FILES
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "thumbnails/it").iterdir()}

    assert list(_made(tmp_path, pictures.plain())) == FILES
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "thumbnails/it").iterdir()} == before


def test_two_attempts_at_the_same_time(tmp_path: Path) -> None:
    """The slower one finds the work done, and is content."""
    (tmp_path / "original").write_bytes(pictures.plain())
    folder = tmp_path / "thumbnails/it"

    def be_faster(done: int) -> None:
        if done == 3:
            thumbnails.make(tmp_path / "original", folder)

    assert thumbnails.make(tmp_path / "original", folder, be_faster) == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["it"]


def test_an_attempt_that_is_killed_leaves_no_half(tmp_path: Path) -> None:
    """The folder is complete or not there; the next attempt makes it."""
    (tmp_path / "original").write_bytes(pictures.plain())
    folder = tmp_path / "thumbnails/it"

    def die(done: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        thumbnails.make(tmp_path / "original", folder, die)
    assert not folder.exists()
    assert thumbnails.make(tmp_path / "original", folder) == FILES


def test_an_original_that_is_gone_is_not_called_a_bad_photo(tmp_path: Path) -> None:
    """It is the disk's fault."""
    with pytest.raises(FileNotFoundError):
        thumbnails.make(tmp_path / "gone", tmp_path / "thumbnails/it")
