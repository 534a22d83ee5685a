"""The families of the zoo; importing this package registers them all."""

from . import biformer, davit, dinat, gcvit, l2vit, litv2, overlock, swin, volo

__all__ = ["biformer", "davit", "dinat", "gcvit", "l2vit", "litv2", "overlock", "swin", "volo"]
