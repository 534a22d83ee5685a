"""Pieces without attention that families share; generic ones come from `timm.layers`."""

from .channelwise import ChannelScale, GlobalResponseNorm, ResponseNormMlp
from .conv_stem import ConvNorm, ConvStem, SplitConvNorm
from .convolution import ConditionalPosition, DepthwiseConv, DepthwiseMlp
from .deformable import DeformableMerging, bilinear_sample
from .dilated_depthwise import DilatedDepthwiseConv, ResidualDepthwiseConv, depthwise_conv
from .grid_position import GridPosition
from .init import init_conv_weights, init_weights
from .large_kernel import LargeKernelBlock
from .linear import MapLinear, Mlp, is_traced
from .position import RelativePositionBias, resize_bicubic
from .positioned import PositionedBlock
from .precision import no_autocast
from .pyramid import ConvReduction, PatchMerging, PatchStem, pad_to_multiple
from .token_mixing import random_box, take_from_reversed

__all__ = [
    "ChannelScale",
    "ConditionalPosition",
    "ConvNorm",
    "ConvReduction",
    "ConvStem",
    "DeformableMerging",
    "DepthwiseConv",
    "DepthwiseMlp",
    "DilatedDepthwiseConv",
    "GlobalResponseNorm",
    "GridPosition",
    "LargeKernelBlock",
    "MapLinear",
    "Mlp",
    "PatchMerging",
    "PatchStem",
    "PositionedBlock",
    "RelativePositionBias",
    "ResidualDepthwiseConv",
    "ResponseNormMlp",
    "SplitConvNorm",
    "bilinear_sample",
    "depthwise_conv",
    "init_conv_weights",
    "init_weights",
    "is_traced",
    "no_autocast",
    "pad_to_multiple",
    "random_box",
    "resize_bicubic",
    "take_from_reversed",
]
