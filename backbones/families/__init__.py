"""The families of the zoo; importing this package registers them all."""

from . import swin

__all__ = ["swin"]
