"""Pictures that lie on their side in their files, as phones write them, and annotations of either way round."""

from pathlib import Path

from PIL import ImageOps

from ..decode import ORIENTATION, BadImageError, Picture

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
    orientation = picture.orientation
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
    orientation = picture.orientation
    if orientation == 1:
        return picture
    image = picture.image()
    image.getexif()[ORIENTATION] = orientation
    return Picture(ImageOps.exif_transpose(image), channels)
