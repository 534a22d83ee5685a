"""Files to pictures."""

import warnings
from io import BytesIO
from pathlib import Path
from typing import Self

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from backbones.errors import first_line

JPEG = b"\xff\xd8"
ORIENTATION = 0x0112  # the EXIF tag that says how a viewer turns the picture
MAX_PIXELS = Image.MAX_IMAGE_PIXELS  # 89 million; some kilobytes of file can claim more pixels than memory holds


class BadImageError(Exception):
    """A picture that cannot be read; the message says why."""


class Picture:
    """A picture that is decoded when its pixels are asked for.

    Whatever asks for its size, orientation or pixels gets BadImageError where the content is damaged, is no picture, or
    has more than MAX_PIXELS, which is known before anything is decoded.

    Args:
        content: the bytes of a file, or a picture that is decoded already and is taken as it is.
        channels: 1 for grey-scale, 3 for colour; what a file has is converted.
    """

    def __init__(self, content: bytes | Image.Image, channels: int):
        self.content, self.channels = content, channels

    @classmethod
    def read(cls, path: str | Path, channels: int) -> Self:
        """The picture in a file, not decoded yet. Raises BadImageError where there is none."""
        try:
            return cls(Path(path).read_bytes(), channels)
        except OSError as error:
            raise BadImageError(first_line(error)) from error

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        if isinstance(self.content, Image.Image):
            return self.content.size
        if self.content.startswith(JPEG):
            try:
                height, width, *_ = simplejpeg.decode_jpeg_header(self.content)
            except ValueError:
                pass  # Pillow decides
            else:
                if height * width > MAX_PIXELS:
                    raise BadImageError(f"{width} x {height} pixels are more than the {MAX_PIXELS} that are allowed")
                return width, height
        return self._with_pillow().size

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 where there is none."""
        image = self._with_pillow()
        try:
            return image.getexif().get(ORIENTATION, 1)
        except Exception as error:  # as below: damaged files raise anything
            raise BadImageError(first_line(error)) from error

    def pixels(self, shrink: int = 1) -> np.ndarray:
        """The pixels, uint8 (height, width, channels).

        JPEGs go through libjpeg-turbo; what that refuses (CMYK, say) and other formats through Pillow.

        Args:
            shrink: 1, 2, 4 or 8: a JPEG's sides may be divided by it, rounding up, which costs less than all pixels.
        """
        if isinstance(self.content, bytes) and self.content.startswith(JPEG):
            width, height = self.size
            try:
                return simplejpeg.decode_jpeg(
                    self.content,
                    colorspace="GRAY" if self.channels == 1 else "RGB",
                    min_height=-(-height // shrink),
                    min_width=-(-width // shrink),
                    min_factor=shrink,
                )
            except ValueError:
                pass  # Pillow decides
        pixels = np.array(self._with_pillow(decode=True))
        return pixels[..., None] if self.channels == 1 else pixels

    def image(self) -> Image.Image:
        """The pixels as a picture of mode L or RGB."""
        if isinstance(self.content, Image.Image):
            return self.content
        pixels = self.pixels()
        return Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels)

    def _with_pillow(self, decode: bool = False) -> Image.Image:
        if isinstance(self.content, Image.Image):
            return self.content
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)  # given above MAX_PIXELS
                image = Image.open(BytesIO(self.content))
            return image.convert("L" if self.channels == 1 else "RGB") if decode else image
        except UnidentifiedImageError as error:
            raise BadImageError("neither a JPEG nor anything else that Pillow reads") from error
        except Exception as error:  # Pillow's readers let any error of parsing a damaged file through
            raise BadImageError(first_line(error)) from error
