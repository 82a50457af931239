"""Makes thumbnails of a photo. Plain functions: nothing here knows of tasks or pages."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Final

from PIL import Image, ImageOps, UnidentifiedImageError

#: The longest side of each thumbnail in pixels, the largest first: each is made from the one before.
SIZES: Final = {"large": 1280, "medium": 480, "small": 160}

#: What is read. Pillow knows many more formats, and each is a parser that a stranger can feed.
FORMATS: Final = ("JPEG", "PNG", "GIF", "WEBP")


class BadPhoto(ValueError):
    """The file is not a photo that can be read; another attempt would fail too."""


def make(original: Path, folder: Path, report: Callable[[int], None] = lambda done: None) -> list[str]:
    """Write a photo's thumbnails into a folder, and return their names; `report` gets how many are done.

    The folder appears when all are written, so it is complete or missing. If it is there already, nothing is
    done: a photo that is worked on twice has the same thumbnails. Raises `BadPhoto`, and `OSError` of the
    disk.
    """
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            image = load(original)
            for done, (name, side) in enumerate(SIZES.items(), 1):
                image.thumbnail((side, side))
                save(image, new / f"{name}.jpg")
                report(done)
            put(new, folder)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    return sorted(path.name for path in folder.iterdir())


def load(path: Path) -> Image.Image:
    """The first picture of the file, upright, in RGB, and no larger than the largest thumbnail."""
    with path.open("rb") as file, warnings.catch_warnings():
        # Above Pillow's limit it only warns, up to twice the limit.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            image: Image.Image = Image.open(file, formats=FORMATS)
            image.thumbnail((SIZES["large"],) * 2)
            image = ImageOps.exif_transpose(image)
            if image.has_transparency_data:
                image = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
            return image.convert("RGB")
        except (Image.DecompressionBombError, Image.DecompressionBombWarning):
            millions = (Image.MAX_IMAGE_PIXELS or 0) // 10**6
            raise BadPhoto(f"it has more than {millions} million pixels") from None
        except UnidentifiedImageError:
            raise BadPhoto(f"it is not a photo in {', '.join(FORMATS[:-1])} or {FORMATS[-1]}") from None
        except (OSError, SyntaxError, ValueError, EOFError) as error:
            if isinstance(error, OSError) and error.errno:
                raise  # the disk's
            raise BadPhoto(f"it cannot be read: {error}") from None


def save(image: Image.Image, path: Path) -> None:
    """Write the picture, without what a camera adds, such as where the photo was taken."""
    with path.open("wb") as file:
        image.save(file, "JPEG", quality=85, exif=b"", icc_profile=image.info.get("icc_profile"))
        file.flush()
        os.fsync(file.fileno())


def put(new: Path, folder: Path) -> None:
    """Give the folder its name, unless another attempt at the same photo has been faster."""
    new.chmod(0o755)
    try:
        new.rename(folder)
    except OSError:
        if not folder.exists():
            raise
