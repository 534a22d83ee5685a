"""Attention mechanisms, one a file; each is a block from a (B, H, W, C) map to a map of the same shape."""

from .window import WindowAttention

__all__ = ["WindowAttention"]
