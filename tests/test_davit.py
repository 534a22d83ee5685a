"""What is DaViT's own: its initial weights, the order of a block, its padding, its head and dense backbones."""

import pytest
import torch
import torch.nn.functional as F

import backbones
from backbones.attention import ChannelAttention, WindowAttention


def test_initial_weights_of_davit():
    model = backbones.create_model("davit_t")
    for n, p in model.named_parameters():
        if p.dim() == 2:
            assert p.std().item() == pytest.approx(0.02, rel=0.1) and abs(p.mean().item()) < 5e-3, n
        elif p.dim() == 4:
            bound = p[0].numel() ** -0.5  # Kaiming uniform with a = sqrt(5): 1 / sqrt(fan_in)
            assert p.abs().max() <= bound and p.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), n
        elif "norm" in n:
            assert (p == float(n.endswith("weight"))).all(), n
        elif n.endswith(("proj.bias", "position1.bias", "position2.bias")) and "attention" not in n:
            assert p.any(), n  # convolutions
        else:
            assert not p.any(), n


def test_each_layer_is_two_blocks_for_drop_path():
    model = backbones.create_model("davit_t", drop_path_rate=0.1, device="meta")
    blocks = [block for stage in model.stages for block in stage.blocks]
    assert [type(block.attention) for block in blocks] == 6 * [WindowAttention, ChannelAttention]
    rates = [block.drop_path.drop_prob for block in blocks]
    assert rates == pytest.approx([0.1 * i / 11 for i in range(12)])


def test_a_block_positions_what_it_adds_to_and_drops_branches_alone():
    """The convolutions act on the residual stream itself, also where drop path takes both branches away."""
    block = backbones.create_model("davit_nano").double().stages[0].blocks[0]
    block.drop_path.drop_prob = 1 - 1e-12
    x = torch.randn(2, 6, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(block.train()(x), block.position2(block.position1(x)))
    y = block.eval().position1(x)
    y = block.position2(y + block.attention(block.norm1(y)))
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(y)))


def test_the_stem_norms_after_its_convolution_and_downsampling_before():
    model = backbones.create_model("davit_nano").double()
    images = torch.randn(1, 3, 33, 34, dtype=torch.float64)
    tokens = F.conv2d(F.pad(images, (0, 0, 0, 1)), model.stem.proj.weight, model.stem.proj.bias, stride=2, padding=1)
    torch.testing.assert_close(model.stem(images), F.layer_norm(tokens.permute(0, 2, 3, 1), (16,)))

    x = torch.randn(1, 5, 4, 16, dtype=torch.float64)
    downsample = model.stages[1].downsample
    normed = F.pad(F.layer_norm(x, (16,)), (0, 0, 0, 0, 0, 1)).permute(0, 3, 1, 2)
    expected = F.conv2d(normed, downsample.proj.weight, downsample.proj.bias, stride=2).permute(0, 2, 3, 1)
    torch.testing.assert_close(downsample(x), expected)


def test_the_head_norms_what_it_has_pooled_and_keeps_its_norm():
    model = backbones.create_model("davit_nano", num_classes=5).double().eval()
    torch.nn.init.normal_(model.head.norm.weight)
    images = torch.randn(2, 3, 40, 48, dtype=torch.float64)
    features = model.forward_features(images)
    torch.testing.assert_close(features, model.forward_intermediates(images, intermediates_only=True)[-1])
    pooled = F.layer_norm(features.mean((2, 3)), (128,), model.head.norm.weight, model.head.norm.bias, eps=1e-5)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    torch.testing.assert_close(model(images), model.get_classifier()(pooled))
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), pooled)
    model.reset_classifier(0, global_pool="")
    per_token = F.layer_norm(features.movedim(1, -1), (128,), model.head.norm.weight, model.head.norm.bias, eps=1e-5)
    torch.testing.assert_close(model(images), per_token.movedim(-1, 1))


def test_weights_do_not_depend_on_the_window():
    small, large = (backbones.create_model(n, device="meta").state_dict() for n in ("davit_l", "davit_l_384"))
    assert {n: v.shape for n, v in small.items()} == {n: v.shape for n, v in large.items()}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(depths=(1, 1, 3)), "a depth and a num_heads per stage"),
        (dict(num_heads=(1, 2, 3, 8)), "64 channels cannot be split into 3 heads"),
        (dict(window_size=0), "sizes of at least 1"),
    ],
)
def test_wrong_sizes_are_named(wrong, said):
    with pytest.raises(backbones.InputError, match=said):
        backbones.create_model("davit_nano", **wrong)
