"""timm's operations on pictures, those again that cost most: the same results in a fraction of the time.

An operation takes a picture of mode L or RGB, its strength, and the keywords that timm gives to all of them.
"""

import random
from itertools import chain

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from timm.data import auto_augment


def shear_x(image: Image.Image, factor: float, **keywords) -> Image.Image:
    return _slide(image, factor * (np.arange(image.height) + 0.5), **keywords)


def shear_y(image: Image.Image, factor: float, **keywords) -> Image.Image:
    return _slide(image, factor * (np.arange(image.width) + 0.5), columns=True, **keywords)


def translate_x_rel(image: Image.Image, pct: float, **keywords) -> Image.Image:
    return _slide(image, np.full(image.height, pct * image.width), **keywords)


def translate_y_rel(image: Image.Image, pct: float, **keywords) -> Image.Image:
    return _slide(image, np.full(image.width, pct * image.height), columns=True, **keywords)


def sharpness(image: Image.Image, factor: float, **_) -> Image.Image:
    """Away from (factor above 1) or towards Pillow's SMOOTH filter, which leaves the border as it is."""
    smooth = np.array(image)
    x = smooth.astype(np.uint16)
    rows = x[:-2] + x[1:-1] + x[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    total += 4 * x[1:-1, 1:-1]
    smooth[1:-1, 1:-1] = (total + 6) // 13
    return Image.blend(Image.fromarray(smooth), image, factor)


def posterize(image: Image.Image, bits: int, **_) -> Image.Image:
    """timm's, also where its strongest level asks for 0 bits: black, which Pillow 13 refuses to draw."""
    return image.point(lambda value: 0) if bits < 1 else auto_augment.posterize(image, bits)


OPERATIONS = {
    getattr(auto_augment, ours.__name__): ours
    for ours in (shear_x, shear_y, translate_x_rel, translate_y_rel, sharpness, posterize)
}


def quicken(policy) -> None:
    """Let a policy of timm, parsed from its string, use the operations above."""
    operations = policy.ops if hasattr(policy, "ops") else chain.from_iterable(policy.policy)
    for operation in operations:
        operation.aug_fn = OPERATIONS.get(operation.aug_fn, operation.aug_fn)


def _slide(
    image: Image.Image,
    shifts: np.ndarray,
    fillcolor: tuple[int, ...],
    resample: Resampling | tuple[Resampling, ...],
    columns: bool = False,
) -> Image.Image:
    """What Image.transform does where every row (or column) only slides along itself.

    Pillow interpolates among 2 x 2 or 4 x 4 pixels for any transformation; here those of one line are enough.

    Args:
        shifts: for each line, how far along it a pixel comes from, in pixels.
        fillcolor: where that is outside, a value per channel.
        resample: bilinear or bicubic, or several to draw from.
    """
    if isinstance(resample, tuple):
        resample = random.choice(resample)
    # Four bytes a pixel, as Pillow holds colours, so that a pixel is one number.
    layout, dtype = ("L", torch.uint8) if image.mode == "L" else ("RGBX", torch.int32)
    lines = torch.frombuffer(bytearray(image.tobytes("raw", layout)), dtype=dtype).view(image.height, image.width)
    if columns:
        lines = lines.T
    length, width = lines.shape[1], lines.element_size()
    shifts = shifts[:, None]
    whole = np.floor(shifts)
    weights = _bicubic(shifts - whole) if resample == Resampling.BICUBIC else _bilinear(shifts - whole)
    first = torch.from_numpy(whole).long() - (len(weights) // 2 - 1)
    neighbours = (first + torch.arange(length + len(weights) - 1)).clamp_(0, length - 1)
    values = lines.gather(1, neighbours).view(torch.uint8).float()  # (lines, positions * width)
    sums = torch.zeros(len(values), length * width)
    for i, weight in enumerate(weights):
        sums.addcmul_(torch.from_numpy(weight).float(), values[:, i * width : (i + length) * width])
    pixel = np.uint8 if width == 1 else np.uint32
    out = sums.clamp_(0, 255).numpy().astype(np.uint8).view(pixel)  # NumPy converts four times as fast as torch
    # Pixel i comes from shift + i + 0.5, which lies between 0 and the length for i from `inside` to `outside`.
    inside, outside = (np.ceil(np.clip(edge - 0.5 - shifts, 0, length)).astype(np.int32) for edge in (0, length))
    place = np.arange(length, dtype=np.int32)
    out[(place < inside) | (place >= outside)] = np.array([*fillcolor, 0][:width], np.uint8).view(pixel)
    return Image.frombytes(image.mode, image.size, (out.T if columns else out).tobytes(), "raw", layout)


def _bilinear(d: np.ndarray) -> tuple[np.ndarray, ...]:
    return 1 - d, d


def _bicubic(d: np.ndarray) -> tuple[np.ndarray, ...]:
    """Of the four neighbours of a point d behind the second: the cubic of slope -1, as in Pillow's transformations."""
    return d * (d * (2 - d) - 1), d * d * (d - 2) + 1, d * (d * (1 - d) + 1), d * d * (d - 1)
