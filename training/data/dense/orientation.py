"""Pictures that lie on their side in their files, as phones write them, and annotations of either way round."""

from io import BytesIO
from pathlib import Path

from PIL import Image, ImageOps

from backbones.errors import first_line

from ..decode import BadImageError, Picture

ORIENTATION = 0x0112  # the EXIF tag that says how a viewer turns the picture
SIDEWAYS = (5, 6, 7, 8)  # its values that swap width and height


def picture_of_size(path: str | Path, channels: int, size: tuple[int, int], described_by: str | Path) -> Picture:
    """The picture in a file, the way round that its annotation describes.

    Some tools annotate the pixels as they are stored, as COCO's do, others as EXIF says to turn them. The annotation
    tells by the size; where both ways have the same, the stored pixels are taken.

    Args:
        size: (width, height) that the annotation has, in pixels.
        described_by: the file of the annotation.

    Raises:
        BadImageError: there is no picture in the file, or one of another size.
    """
    picture = Picture.read(path, channels)
    stored = picture.size
    if stored == tuple(size):
        return picture
    orientation = _orientation(picture.content)
    if orientation in SIDEWAYS and stored[::-1] == tuple(size):
        image = picture.image()
        image.getexif()[ORIENTATION] = orientation
        return Picture(ImageOps.exif_transpose(image), channels)
    turned = ", also when turned as its EXIF data say" if orientation in SIDEWAYS else ""
    raise BadImageError(
        f"{path} has {stored[0]} x {stored[1]} pixels, but {described_by} describes {size[0]} x {size[1]}{turned}"
    )


def upright(path: str | Path, channels: int) -> Picture:
    """The picture in a file, turned as its EXIF data say. Raises BadImageError."""
    picture = Picture.read(path, channels)
    orientation = _orientation(picture.content)
    if orientation == 1:
        return picture
    image = picture.image()
    image.getexif()[ORIENTATION] = orientation
    return Picture(ImageOps.exif_transpose(image), channels)


def _orientation(content: bytes) -> int:
    """The EXIF orientation, 1 where there is none."""
    try:
        return Image.open(BytesIO(content)).getexif().get(ORIENTATION, 1)
    except Exception as error:  # as in `Picture`: damaged files raise anything
        raise BadImageError(first_line(error)) from error
