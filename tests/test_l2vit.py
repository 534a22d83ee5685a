"""What is L2ViT's own: its initial weights, the order of its blocks and norms, its padding, its dense backbones."""

import math

import pytest
import torch
import torch.nn.functional as F

import backbones
from backbones.families.l2vit import GlobalBlock
from backbones.layers import PositionedBlock


@pytest.mark.parametrize("dense", [None, "detection"])
def test_initial_weights_of_l2vit(dense):
    model = backbones.create_model("l2vit_t", dense=dense, features_only=dense is not None)
    for n, p in model.named_parameters():
        if n.endswith("temperature"):
            assert (p == 32**-0.5).all()
        elif "norm" in n and n.endswith("weight"):
            assert (p == 1).all(), n
        elif n.endswith("weight"):
            fan_out = p.shape[0] * p[0, 0].numel()
            std = math.sqrt(2 / fan_out) if dense and p.dim() == 4 else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.12) and abs(p.mean().item()) < std / 5, n
        else:
            assert not p.any(), n


def test_blocks_alternate_anew_in_every_stage_and_drop_more_and_more():
    model = backbones.create_model("l2vit_t", depths=(1, 3, 2, 2), drop_path_rate=0.7, device="meta")
    kinds = [[type(block) for block in stage.blocks] for stage in model.stages]
    pair = [PositionedBlock, GlobalBlock]
    assert kinds == [[PositionedBlock], [*pair, PositionedBlock], pair, pair]
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i for i in range(8)])


def test_positions_are_added_to_the_stream_itself():
    """Also where drop path takes all branches away; the order of the branches is that of the release."""
    local, glob = backbones.create_model("l2vit_nano").double().stages[0].blocks
    x = torch.randn(2, 6, 5, 16, dtype=torch.float64)
    for block in (local, glob):
        block.drop_path.drop_prob = 1 - 1e-12
    torch.testing.assert_close(local.train()(x), local.position2(local.position1(x)))
    torch.testing.assert_close(glob.train()(x), glob.position1(x))
    y = glob.eval().position1(x)
    y = y + glob.attention(glob.norm1(y))
    y = y + glob.concentration(glob.norm3(y))
    torch.testing.assert_close(glob(x), y + glob.mlp(glob.norm2(y)))


def test_the_stem_norms_after_its_convolutions_and_downsampling_before():
    model = backbones.create_model("l2vit_nano").double().eval()
    images = torch.randn(1, 3, 33, 34, dtype=torch.float64)
    stem = model.stem
    x = F.conv2d(F.pad(images, (0, 0, 0, 1)), stem.proj.weight, stem.proj.bias, stride=2, padding=1)
    x = F.conv2d(F.relu(stem.norm1(x)), stem.conv.weight, stem.conv.bias, padding=1)
    torch.testing.assert_close(stem(images), F.layer_norm(stem.norm2(x).permute(0, 2, 3, 1), (16,)))

    x = torch.randn(1, 5, 4, 16, dtype=torch.float64)
    downsample = model.stages[1].downsample
    normed = F.pad(F.layer_norm(x, (16,)), (0, 0, 0, 0, 0, 1)).permute(0, 3, 1, 2)
    expected = F.conv2d(normed, downsample.proj.weight, downsample.proj.bias, stride=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(downsample(x), expected)


def test_window_of_the_model_for_384_pixels():
    model = backbones.create_model("l2vit_b_384", device="meta")
    assert model.stages[0].blocks[0].attention.window_size == 12
    dense = backbones.create_model("l2vit_b_384", features_only=True, dense="detection", device="meta")
    assert dense.model.stages[0].blocks[0].attention.window_size == 7


def test_the_weights_that_the_release_evaluates_are_loaded(tmp_path):
    """Its training files hold averaged weights beside them."""
    model = backbones.create_model("l2vit_nano")
    state = model.state_dict()
    other = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"model": state, "model_ema": other}, tmp_path / "file.pth")
    loaded = backbones.create_model("l2vit_nano", checkpoint_path=tmp_path / "file.pth")
    assert torch.equal(loaded.stem.proj.weight, model.stem.proj.weight)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(depths=(2, 2, 2)), "a depth and a num_heads per stage"),
        (dict(num_heads=(1, 3, 4, 8)), "32 channels cannot be split into 3 heads"),
        (dict(dim=15, num_heads=(1, 1, 1, 1)), "an even dim"),
        (dict(patch_size=8), "patch_size of 2 or 4"),
    ],
)
def test_wrong_sizes_are_named(wrong, said):
    with pytest.raises(backbones.InputError, match=said):
        backbones.create_model("l2vit_nano", **wrong)
