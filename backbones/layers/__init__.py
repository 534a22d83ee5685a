"""Pieces without attention that families share; generic ones come from `timm.layers`."""

from .init import init_weights
from .position import RelativePositionBias
from .pyramid import PatchMerging, PatchStem, pad_to_multiple

__all__ = ["PatchMerging", "PatchStem", "RelativePositionBias", "init_weights", "pad_to_multiple"]
