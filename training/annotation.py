"""What is known of a picture by the tasks that find where things are, apart from its pixels.

A target is a dictionary. What it holds depends on what a task learns from:

- "boxes": `boxes` (N, 4), left, top, right and bottom in pixels; `labels` (N,); `crowd` (N,), true for a region of many
  objects that nobody counted; `area` (N,), in pixels, by which objects are called small or large;
- "masks": these, and `masks` (N, H, W), uint8, 1 inside the object;
- "segments": `masks`, `labels` and `crowd` of things and stuff together, no pixel in two masks, as a panoptic map has;
- "map": `map` (H, W), int16, the label of every pixel, or IGNORED.
"""

from torch import Tensor

IGNORED = -1  # the label of pixels that are neither learned from nor counted

Target = dict[str, Tensor]
