"""Files to pictures."""

import struct
from io import BytesIO
from pathlib import Path

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


def open_image(path: str | Path, channels: int) -> Image.Image:
    """Decode a file to a grey-scale (1 channel) or RGB (3) picture.

    JPEGs go through libjpeg-turbo; what that refuses (CMYK, say) and other formats through Pillow.

    Raises:
        BadImageError: the file is missing, truncated, or no picture.
    """
    try:
        content = Path(path).read_bytes()
        if content.startswith(JPEG):
            try:
                pixels = simplejpeg.decode_jpeg(content, colorspace="GRAY" if channels == 1 else "RGB")
                return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
            except ValueError:
                pass  # Pillow decides
        with Image.open(BytesIO(content)) as image:
            return image.convert("L" if channels == 1 else "RGB")
    except UnidentifiedImageError as error:
        raise BadImageError("neither a JPEG nor anything else that Pillow reads") from error
    except READ_ERRORS as error:
        raise BadImageError(first_line(error)) from error
