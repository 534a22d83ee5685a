"""The families of the zoo; importing this package registers them all."""

from . import biformer, swin

__all__ = ["biformer", "swin"]
