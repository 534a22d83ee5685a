"""Attention mechanisms, one a file; each is a block from a (B, H, W, C) map to a map of the same shape.

`ClassAttention` alone takes a map to a single token; `LocalConcentration` goes with `LinearAttention`.
"""

from .channel import ChannelAttention
from .class_token import ClassAttention
from .context_mixing import ContextMixing
from .full import SelfAttention
from .global_query import GlobalQueryAttention
from .hilo import HiLoAttention
from .lepe import LePEAttention
from .linear import LinearAttention, LocalConcentration
from .neighborhood import NeighborhoodAttention
from .outlook import OutlookAttention
from .routed import BiLevelRoutingAttention
from .window import WindowAttention

__all__ = [
    "BiLevelRoutingAttention",
    "ChannelAttention",
    "ClassAttention",
    "ContextMixing",
    "GlobalQueryAttention",
    "HiLoAttention",
    "LePEAttention",
    "LinearAttention",
    "LocalConcentration",
    "NeighborhoodAttention",
    "OutlookAttention",
    "SelfAttention",
    "WindowAttention",
]
