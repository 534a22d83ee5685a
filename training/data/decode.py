"""Files to pictures."""

import struct
from io import BytesIO
from pathlib import Path
from typing import Self

import simplejpeg
from PIL import Image, UnidentifiedImageError

from backbones.errors import first_line

JPEG = b"\xff\xd8"
# What Pillow's readers of damaged files were seen to raise.
READ_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)


class BadImageError(Exception):
    """A picture that cannot be read; the message says why."""


class Picture:
    """A picture that is decoded when its pixels are asked for.

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

    def image(self) -> Image.Image:
        """The pixels; of a file, in mode L or RGB.

        JPEGs go through libjpeg-turbo; what that refuses (CMYK, say) and other formats through Pillow.

        Raises:
            BadImageError: the content is truncated, or no picture.
        """
        if isinstance(self.content, Image.Image):
            return self.content
        try:
            if self.content.startswith(JPEG):
                try:
                    pixels = simplejpeg.decode_jpeg(self.content, colorspace="GRAY" if self.channels == 1 else "RGB")
                    return Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels)
                except ValueError:
                    pass  # Pillow decides
            with Image.open(BytesIO(self.content)) as image:
                return image.convert("L" if self.channels == 1 else "RGB")
        except UnidentifiedImageError as error:
            raise BadImageError("neither a JPEG nor anything else that Pillow reads") from error
        except READ_ERRORS as error:
            raise BadImageError(first_line(error)) from error
