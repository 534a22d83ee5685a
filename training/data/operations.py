"""timm's policies on arrays of bytes, with those of its operations that gain by it written again: the same, but faster.

An operation takes pixels, uint8 (height, width) or (height, width, 3), its strength, and the keywords that timm gives
to all of them, and gives new pixels. What is not here stays timm's and goes through Pillow.
"""

import math
import random
from collections.abc import Callable
from functools import partial
from itertools import chain

import numpy as np
import torch
from PIL import Image
from PIL.Image import Resampling
from timm.data import auto_augment

Resample = Resampling | tuple[Resampling, ...]  # bilinear or bicubic, or several to draw from


def quickened(policy) -> Callable[[np.ndarray], np.ndarray]:
    """A policy of timm, parsed from its string, to be called with pixels; the draws are timm's."""
    if isinstance(policy, auto_augment.AugMixAugment):  # which blends Pillow's pictures
        for operation in policy.ops:
            ours = OPERATIONS.get(operation.aug_fn)
            operation.aug_fn = partial(on_picture, ours) if ours else operation.aug_fn
        return partial(by_pillow, policy)
    operations = policy.ops if isinstance(policy, auto_augment.RandAugment) else chain.from_iterable(policy.policy)
    for operation in operations:
        operation.aug_fn = OPERATIONS.get(operation.aug_fn) or partial(by_pillow, operation.aug_fn)
    return policy


def by_pillow(operation: Callable, pixels: np.ndarray, *arguments, **keywords) -> np.ndarray:
    """An operation on Pillow's pictures, on pixels."""
    return np.array(operation(Image.fromarray(pixels), *arguments, **keywords))


def on_picture(operation: Callable, image: Image.Image, *arguments, **keywords) -> Image.Image:
    """An operation on pixels, on a picture of Pillow's."""
    return Image.fromarray(operation(np.asarray(image), *arguments, **keywords))


def invert(pixels: np.ndarray, **_) -> np.ndarray:
    return ~pixels


def solarize(pixels: np.ndarray, thresh: int, **_) -> np.ndarray:
    return pixels ^ -(pixels >= thresh).view(np.uint8)


def solarize_add(pixels: np.ndarray, add: int, **_) -> np.ndarray:
    """timm's with its threshold of 128; it adds at most 128, so that nothing overflows."""
    return pixels + (pixels < 128).view(np.uint8) * np.uint8(add)


def posterize(pixels: np.ndarray, bits: int, **_) -> np.ndarray:
    """timm's, also where its strongest levels ask for less than 1 bit: black, which Pillow 13 refuses to draw."""
    return pixels & np.uint8(0xFF00 >> max(bits, 0) & 0xFF)


def brightness(pixels: np.ndarray, factor: float, **_) -> np.ndarray:
    return np.minimum(pixels * np.float32(factor), 255).astype(np.uint8)


def sharpness(pixels: np.ndarray, factor: float, **_) -> np.ndarray:
    """Away from (factor above 1) or towards Pillow's SMOOTH filter, which leaves the border as it is."""
    x = pixels.astype(np.uint16)
    rows = x[:-2] + x[1:-1] + x[2:]
    total = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]
    total += 4 * x[1:-1, 1:-1]
    smooth = pixels.copy()
    smooth[1:-1, 1:-1] = (total + 6) // 13
    return np.array(Image.blend(Image.fromarray(smooth), Image.fromarray(pixels), factor))


def translate_x_rel(pixels: np.ndarray, pct: float, **keywords) -> np.ndarray:
    return _translate(pixels, pct * pixels.shape[1], axis=1, **keywords)


def translate_y_rel(pixels: np.ndarray, pct: float, **keywords) -> np.ndarray:
    return _translate(pixels, pct * pixels.shape[0], axis=0, **keywords)


def shear_x(pixels: np.ndarray, factor: float, **keywords) -> np.ndarray:
    return _slide(pixels, factor * (np.arange(pixels.shape[0]) + 0.5), **keywords)


def shear_y(pixels: np.ndarray, factor: float, **keywords) -> np.ndarray:
    return _slide(pixels, factor * (np.arange(pixels.shape[1]) + 0.5), columns=True, **keywords)


OPERATIONS = {
    getattr(auto_augment, ours.__name__): ours
    for ours in (
        *(invert, solarize, solarize_add, posterize, brightness, sharpness),
        *(translate_x_rel, translate_y_rel, shear_x, shear_y),
    )
}


def _translate(
    pixels: np.ndarray, shift: float, axis: int, fillcolor: tuple[int, ...], resample: Resample
) -> np.ndarray:
    """What Image.transform does where the pixel at i comes from i + shift along an axis, and from `fillcolor` outside.

    Pillow interpolates among 2 x 2 or 4 x 4 pixels for any transformation; here those along the axis are enough.
    """
    whole = math.floor(shift)
    weights = _weights(resample, shift - whole)
    length, reach = pixels.shape[axis], len(weights) - 1
    out = np.empty_like(pixels)
    out.reshape(len(out), -1)[:] = np.tile(np.array(fillcolor, np.uint8), pixels.shape[1])
    inside, outside = _inside(shift, length)
    if inside == outside:
        return out
    shape = list(pixels.shape)
    shape[axis] = outside - inside + reach
    values = np.empty(shape, np.float32)
    # Beyond a border, its pixel is repeated.
    start = whole - reach // 2 + inside
    low, high = max(start, 0), min(start + shape[axis], length)
    along, source = values.swapaxes(0, axis), pixels.swapaxes(0, axis)
    along[low - start : high - start] = source[low:high]
    along[: low - start] = source[0]
    along[high - start :] = source[-1]
    total = sum(np.float32(weight) * along[i : i + outside - inside] for i, weight in enumerate(weights))
    out.swapaxes(0, axis)[inside:outside] = total.clip(0, 255)
    return out


def _slide(
    pixels: np.ndarray, shifts: np.ndarray, fillcolor: tuple[int, ...], resample: Resample, columns: bool = False
) -> np.ndarray:
    """What Image.transform does where every row (or column) is translated by its own shift."""
    image = Image.fromarray(pixels)
    # Four bytes a pixel, as Pillow holds colours, so that a pixel is one number.
    layout, dtype = ("L", torch.uint8) if image.mode == "L" else ("RGBX", torch.int32)
    lines = torch.frombuffer(bytearray(image.tobytes("raw", layout)), dtype=dtype).view(image.height, image.width)
    if columns:
        lines = lines.T
    length, width = lines.shape[1], lines.element_size()
    shifts = shifts[:, None]
    whole = np.floor(shifts)
    weights = _weights(resample, shifts - whole)
    first = torch.from_numpy(whole).long() - (len(weights) // 2 - 1)
    neighbours = (first + torch.arange(length + len(weights) - 1)).clamp_(0, length - 1)
    values = lines.gather(1, neighbours).view(torch.uint8).float()  # (lines, positions * width)
    total = torch.zeros(len(values), length * width)
    for i, weight in enumerate(weights):
        total.addcmul_(torch.from_numpy(weight).float(), values[:, i * width : (i + length) * width])
    pixel = np.uint8 if width == 1 else np.uint32
    out = total.clamp_(0, 255).numpy().astype(np.uint8).view(pixel)  # NumPy converts four times as fast as torch
    inside, outside = _inside(shifts, length)
    place = np.arange(length, dtype=np.int32)
    out[(place < inside) | (place >= outside)] = np.array([*fillcolor, 0][:width], np.uint8).view(pixel)
    out = (out.T if columns else out).tobytes()
    return np.array(Image.frombytes(image.mode, image.size, out, "raw", layout))


def _inside(shift, length: int):
    """From which i on, and before which, pixel i comes from inside: shift + i + 0.5 is between 0 and the length."""
    first, second = (np.ceil(np.clip(edge - 0.5 - shift, 0, length)).astype(np.int32) for edge in (0, length))
    return first, second


def _weights(resample: Resample, d):
    """Of the two or four neighbours of a point at d behind the first of two, or the second of four."""
    if isinstance(resample, tuple):
        resample = random.choice(resample)
    if resample == Resampling.BILINEAR:
        return 1 - d, d
    # The cubic of slope -1, as in Pillow's transformations.
    return d * (d * (2 - d) - 1), d * d * (d - 2) + 1, d * (d * (1 - d) + 1), d * d * (d - 1)
