"""From maps at any strides to those that heads read, each half the size of the one before."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.models._features import FeatureInfo
from torch import nn

from backbones import InputError
from training.tasks.dense.neck import STRIDES, PassThrough, SimplePyramid, fitting_neck, needs_neck, sources

fast = settings(max_examples=8, deadline=None)


def backbone(strides: list[int]) -> nn.Module:
    """A backbone without layers, whose maps have these strides and 3, 4, ... channels."""

    class Stages(nn.Module):
        def __init__(self):
            super().__init__()
            infos = [dict(num_chs=3 + i, reduction=stride, module="") for i, stride in enumerate(strides)]
            self.out_indices = [*range(len(strides))]
            self.feature_info = FeatureInfo(infos, self.out_indices)

        @property
        def model(self):
            return self

        def prune_intermediate_layers(self, indices, prune_norm):
            assert prune_norm
            return indices

    return Stages()


@pytest.mark.parametrize(
    ("strides", "expected", "from_8_on"),
    [
        ([4, 8, 16, 32], [0, 1, 2, 3], [1, 2, 3]),
        ([2, 4, 8, 16], [1, 2, 3, 3], [2, 3, 3]),
        ([4, 8, 8, 8], [0, 3, 3, 3], [3, 3, 3]),
        ([8, 16, 16, 16], [0, 0, 3, 3], [0, 3, 3]),
        ([8, 16, 32, 64], [0, 0, 1, 2], [0, 1, 2]),
        ([4, 16], [0, 0, 1, 1], [0, 1, 1]),  # 8 is as near to 4 as to 16
        ([16], [0, 0, 0, 0], [0, 0, 0]),
    ],
)
def test_every_level_has_the_deepest_map_of_the_nearest_stride(strides, expected, from_8_on):
    assert sources(strides, STRIDES) == expected
    assert sources(strides, STRIDES[1:]) == from_8_on


@pytest.mark.parametrize("first", [1, 2, 3, 4, 8, 14])
def test_maps_that_halve_at_each_step_need_no_neck(first):
    strides = [first * 2**i for i in range(4)]
    assert not needs_neck(strides)
    for other in (strides[:1] + strides[2:], [first, *strides[:3]], strides[::-1]):
        assert needs_neck(other)


@fast
@given(
    finest=st.integers(0, 3),
    doublings=st.lists(st.integers(0, 2), min_size=1, max_size=4),
    first=st.sampled_from([1, 2, 4, 8]),
    height=st.integers(1, 3),
    width=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_maps_come_out_at_the_strides_that_are_wanted(finest, doublings, first, height, width, seed):
    torch.manual_seed(seed)
    strides = [first]
    for i in doublings:
        strides.append(min(64, strides[-1] * 2**i))
    side = max(32, strides[-1])
    channels = [3 + i for i in range(len(strides))]
    maps = [torch.randn(2, c, height * side // s, width * side // s) for c, s in zip(channels, strides)]
    wanted = STRIDES[finest:]
    neck = SimplePyramid(channels, strides, 6, wanted)
    out = neck(maps)
    assert neck.channels == [6] * len(wanted) and neck.strides == list(wanted)
    assert [x.shape for x in out] == [(2, 6, height * side // s, width * side // s) for s in neck.strides]
    assert all(x.isfinite().all() for x in out)


@fast
@given(height=st.integers(1, 9), width=st.integers(1, 9))
def test_a_last_odd_row_or_column_stays(height, width):
    out = SimplePyramid([5], [8], 4)([torch.randn(1, 5, height, width)])
    sides = [(height, width)]
    for _ in range(2):
        sides.append(tuple(-(-side // 2) for side in sides[-1]))
    assert [tuple(x.shape[2:]) for x in out] == [(2 * height, 2 * width), *sides]


def test_a_level_is_made_of_its_own_map_alone():
    maps = [torch.randn(1, 4, 32 // s, 32 // s, requires_grad=True) for s in (2, 4, 8, 16)]
    neck = SimplePyramid([4] * 4, [2, 4, 8, 16], 6)
    for level, source in zip(neck(maps), [1, 2, 3, 3]):
        grads = torch.autograd.grad(level.square().sum(), maps, allow_unused=True)
        assert [i for i, grad in enumerate(grads) if grad is not None] == [source]


@pytest.mark.parametrize("first", [0, 1])
def test_a_neck_is_built_where_it_is_needed(first):
    for kind, strides in (("auto", [4, 8, 16, 32]), ("none", [4, 8, 16, 32]), ("auto", [2, 4, 8, 16])):
        neck, maps = fitting_neck(backbone(strides), kind, 7, strides[first]), [torch.randn(1, 1, 1, 1)]
        assert isinstance(neck, PassThrough) and neck(maps) is maps
        assert neck.channels == [3, 4, 5, 6][first:] and neck.strides == strides[first:]
    for kind, strides in (("auto", [4, 8, 8, 8]), ("simple_pyramid", [4, 8, 8, 8]), ("simple_pyramid", [2, 4, 8, 16])):
        neck = fitting_neck(backbone(strides), kind, 7, 4 * 2**first)
        assert isinstance(neck, SimplePyramid)
        assert neck.channels == [7] * (4 - first) and neck.strides == [4, 8, 16, 32][first:]
    with pytest.raises(InputError, match="finest_stride is 64, but there are maps at strides of 4, 8, 16 and 32"):
        fitting_neck(backbone([4, 8, 16, 32]), "auto", 7, 64)


def test_only_maps_that_are_read_are_kept():
    network = backbone([8, 8, 16, 16])
    neck = fitting_neck(network, "auto", 7)
    assert network.out_indices == [1, 3] and network.feature_info.reduction() == [8, 16]
    assert neck.sources == [0, 0, 1, 1] and network.feature_info.channels() == [4, 6]
    out = neck([torch.randn(1, 4, 8, 12), torch.randn(1, 6, 4, 6)])
    assert [x.shape for x in out] == [(1, 7, 64 // s, 96 // s) for s in STRIDES]


def test_what_cannot_be_built_is_said():
    with pytest.raises(
        InputError, match=r"4, 8, 16 and 32 pixels.* are at 4, 8, 8 and 8; add task.neck=simple_pyramid"
    ):
        fitting_neck(backbone([4, 8, 8, 8]), "none", 7)
    with pytest.raises(InputError, match=r"task.neck is 'fpn', but must be one of auto, none, simple_pyramid"):
        fitting_neck(backbone([4, 8, 16, 32]), "fpn", 7)
    with pytest.raises(InputError, match=r"must be powers of two, but are 14"):
        fitting_neck(backbone([14, 14]), "auto", 7)
