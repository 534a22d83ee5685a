"""What is LITv2's own: stages without attention, its share of heads, initial weights, merging, and dense backbones."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import backbones
from backbones import InputError
from backbones.families.litv2 import ConvFFNBlock, HiLoBlock


def officially_named(model) -> dict[str, torch.Tensor]:
    """The state dict as the release would name it."""
    places = dict(attention="attn", high_qkv="h_qkv", high_proj="h_proj", low_q="l_q", low_kv="l_kv", low_proj="l_proj")
    merging = dict(proj=["dconv"], offset=["dconv", "conv_offset"], norm=["norm_layer"])
    official = {}
    for name, value in model.state_dict().items():
        parts = [places.get(part, part) for part in name.split(".")]
        if parts[0] == "stem":
            parts[0] = "patch_embed"
        elif parts[0] == "stages" and parts[2] == "downsample":
            parts = ["layers", str(int(parts[1]) - 1), "downsample", *merging[parts[3]], parts[4]]
        elif parts[0] == "stages":
            parts[0] = "layers"
            parts[4] = "norm2" if parts[4] == "norm" else parts[4]
            parts[5:6] = ["dwconv", "dwconv"] if parts[5] == "conv" else [parts[5]]
        elif parts[0] == "head":
            parts = ["head", parts[2]]
        official[".".join(parts)] = value
    return official


@pytest.mark.parametrize("dense", [None, "detection", "segmentation"])
def test_initial_weights_of_litv2(dense):
    model = backbones.create_model("litv2_s", depths=(1, 1, 1, 1), dense=dense, features_only=dense is not None)
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    for n, p in model.named_parameters():
        layer, _, leaf = n.rpartition(".")
        few = 4 / p.numel() ** 0.5
        if layer in linear:
            assert p.std().item() == pytest.approx(0.02, rel=few) if leaf == "weight" else not p.any(), n
        elif layer.endswith(".offset"):
            assert not p.any(), n
        elif layer.endswith(".mlp.conv"):
            assert p.std().item() == pytest.approx(math.sqrt(2 / 9), rel=few) if leaf == "weight" else not p.any(), n
        elif layer in convolutions:  # uniform up to 1 / sqrt(fan_in), weights and biases
            bound = convolutions[layer].weight[0].numel() ** -0.5
            assert p.abs().max() <= bound and p.std().item() == pytest.approx(bound / 3**0.5, rel=few), n
        else:  # norms
            assert (p == (leaf == "weight")).all(), n
        if p.dim() > 1:
            assert abs(p.mean().item()) <= few * p.std().item(), n


def test_norms_are_those_of_the_release():
    model = backbones.create_model("litv2_s", device="meta")
    assert {m.eps for m in model.modules() if isinstance(m, (nn.LayerNorm, nn.BatchNorm2d))} == {1e-5}
    batch_norms = {n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert batch_norms == {f"stages.{i}.downsample.norm" for i in (1, 2, 3)}


def test_early_stages_have_no_attention_and_blocks_drop_more_and_more():
    model = backbones.create_model("litv2_s", drop_path_rate=0.2, device="meta")
    kinds = [{type(block) for block in stage.blocks} for stage in model.stages]
    assert kinds == [{ConvFFNBlock}, {ConvFFNBlock}, {HiLoBlock}, {HiLoBlock}]
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 11 for i in range(12)])


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("litv2_s", 10, 2),
        ("litv2_m", 10, 2),
        ("litv2_b", 14, 2),
        ("litv2_b_384", 14, 2),
        ("litv2_s_alpha00", 0, 12),
        ("litv2_s_alpha02", 2, 10),
        ("litv2_s_alpha04", 4, 8),
        ("litv2_s_alpha05", 6, 6),
        ("litv2_s_alpha07", 8, 4),
        ("litv2_s_alpha10", 12, 0),
    ],
)
def test_heads_of_the_third_stage_are_split_and_all_of_the_last_are_low(name, low, high):
    stages = backbones.create_model(name, device="meta").stages
    third, last = stages[2].blocks[0].attention, stages[3].blocks[0].attention
    assert (third.low_heads, third.high_heads, third.window_size) == (low, high, 2)
    assert (last.low_heads, last.high_heads, last.window_size) == (2 * (low + high), 0, 1)
    assert hasattr(third, "low_q") == (low > 0) and hasattr(third, "high_qkv") == (high > 0)


def test_weights_depend_neither_on_the_image_size_nor_on_the_window():
    models = [
        backbones.create_model("litv2_b", device="meta"),
        backbones.create_model("litv2_b_384", device="meta"),
        backbones.create_model("litv2_b", window_size=(0, 0, 4, 1), device="meta"),
    ]
    shapes = [{n: v.shape for n, v in model.state_dict().items()} for model in models]
    assert shapes[0] == shapes[1] == shapes[2]


def test_the_weights_of_offsets_can_be_told_by_their_names():
    """The recipe trains them, and not their biases, at another rate."""
    names = {n for n, _ in backbones.create_model("litv2_s", device="meta").named_parameters()}
    assert {n for n in names if n.endswith("downsample.offset.weight")} == {
        f"stages.{i}.downsample.offset.weight" for i in (1, 2, 3)
    }


def test_blocks_norm_before_each_branch():
    model = backbones.create_model("litv2_nano").double()
    feed_forward, attention = model.stages[0].blocks[0], model.stages[2].blocks[0]
    x = torch.randn(2, 6, 5, 24, dtype=torch.float64)
    torch.testing.assert_close(feed_forward(x), x + feed_forward.mlp(F.layer_norm(x, (24,))))
    z = torch.randn(2, 6, 5, 96, dtype=torch.float64)
    y = z + attention.attention(F.layer_norm(z, (96,)))
    torch.testing.assert_close(attention(z), y + attention.mlp(F.layer_norm(y, (96,))))
    for block, value in ((feed_forward, x), (attention, z)):
        block.drop_path.drop_prob = 1 - 1e-12
        assert torch.equal(block.train()(value), value)


def test_the_stem_fills_up_images_and_norms_behind_its_convolution():
    stem = backbones.create_model("litv2_s", depths=(1, 1, 1, 1)).double().stem
    images = torch.randn(2, 3, 33, 46, dtype=torch.float64)
    x = F.conv2d(F.pad(images, (0, 2, 0, 3)), stem.proj.weight, stem.proj.bias, stride=4).permute(0, 2, 3, 1)
    assert x.shape == (2, 9, 12, 96)
    torch.testing.assert_close(stem(images), F.layer_norm(x, (96,)))


def test_odd_maps_lose_their_last_row_and_column():
    model = backbones.create_model("litv2_s", features_only=True, dense="detection", device="meta")
    maps = model(torch.empty(1, 3, 200, 264, device="meta"))
    assert [tuple(y.shape[2:]) for y in maps] == [(50, 66), (25, 33), (12, 16), (6, 8)]
    model = backbones.create_model("litv2_nano").eval()
    x = torch.randn(1, 7, 5, 24)
    torch.testing.assert_close(model.stages[1](x), model.stages[1](x[:, :6, :4]))  # as built, all offsets are zero


def test_logits_are_of_the_mean_of_normed_tokens():
    model = backbones.create_model("litv2_nano", num_classes=5).double().eval()
    nn.init.normal_(model.norm.weight)
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    last = model.forward_intermediates(images, intermediates_only=True)[-1].flatten(2).transpose(1, 2)
    normed = F.layer_norm(last, (192,), model.norm.weight, model.norm.bias)
    torch.testing.assert_close(model(images), model.head.fc(normed.mean(1)))


@pytest.mark.parametrize(
    ("dense", "out_indices", "normed"),
    [
        ("detection", (0, 1, 2, 3), {1, 2, 3}),
        ("detection", (0, 2), {2}),
        ("detection", (1, 3), {1, 3}),
        ("segmentation", (0, 1, 2, 3), {0, 1, 2, 3}),
        ("segmentation", (0, 2), {0, 2}),
    ],
)
def test_each_map_has_a_norm_of_its_own_but_the_first_of_detection(dense, out_indices, normed, tmp_path):
    classifier = backbones.create_model("litv2_nano").eval()
    torch.save({"model": officially_named(classifier)}, tmp_path / "classifier.pth")
    model = backbones.create_model(
        "litv2_nano",
        features_only=True,
        dense=dense,
        out_indices=out_indices,
        checkpoint_path=tmp_path / "classifier.pth",
    ).eval()
    norms = {n.split(".")[1] for n, _ in model.named_parameters() if n.startswith("model.norm")}
    assert norms == {f"norm{i}" for i in normed}
    images = torch.randn(1, 3, 45, 70)
    maps = classifier.forward_intermediates(images, indices=list(out_indices), intermediates_only=True)
    for i, y, e in zip(out_indices, model(images), maps, strict=True):
        if i in normed:
            e = F.layer_norm(e.movedim(1, -1), e.shape[1:2]).movedim(-1, 1)
        torch.testing.assert_close(y, e)


def test_larger_windows_of_a_dense_backbone_take_the_same_file(tmp_path):
    classifier = backbones.create_model("litv2_nano")
    torch.save({"model": officially_named(classifier)}, tmp_path / "classifier.pth")
    model = backbones.create_model(
        "litv2_nano",
        features_only=True,
        dense="detection",
        window_size=(0, 0, 4, 1),
        checkpoint_path=tmp_path / "classifier.pth",
    ).model
    assert model.stages[2].blocks[0].attention.window_size == 4
    assert torch.equal(model.stages[2].blocks[1].mlp.conv.weight, classifier.stages[2].blocks[1].mlp.conv.weight)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_official_files(tmp_path, alpha):
    """The only norm of a block without attention bears the name of the second one of the others."""
    model = backbones.create_model("litv2_nano", alpha=alpha)
    for entry in model.state_dict().values():
        if entry.is_floating_point():
            entry.uniform_(0.5, 1)  # initial norms and offsets would be the same in another place
    official = officially_named(model)
    assert {"layers.0.blocks.0.norm2.weight", "layers.0.downsample.dconv.conv_offset.weight"} <= official.keys()
    assert {"layers.2.blocks.0.norm1.weight", "layers.3.blocks.0.mlp.dwconv.dwconv.bias"} <= official.keys()
    torch.save({"model": official}, tmp_path / "official.pth")
    loaded = backbones.create_model("litv2_nano", alpha=alpha, checkpoint_path=tmp_path / "official.pth")
    for n, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[n], value), n


@pytest.mark.parametrize("dense", ["detection", "segmentation"])
def test_files_of_detectors_and_segmentors(tmp_path, dense):
    """The norms of their maps are called like those of blocks; only segmentors have one for the first map."""
    build = dict(features_only=True, dense=dense)
    model = backbones.create_model("litv2_nano", **build).model
    for n, p in model.named_parameters():
        if n.startswith("norm"):
            nn.init.normal_(p)
    official = {f"backbone.{n}": v for n, v in officially_named(model).items()}
    assert ("backbone.norm0.weight" in official) == (dense == "segmentation")
    torch.save({"state_dict": official | {"neck.weight": torch.zeros(3)}}, tmp_path / "official.pth")
    loaded = backbones.create_model("litv2_nano", **build, checkpoint_path=tmp_path / "official.pth").model
    for n, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[n], value), n


def test_another_share_of_heads_is_explained(tmp_path):
    """With the default of the release's classes the shapes are others than those of its files."""
    torch.save({"model": officially_named(backbones.create_model("litv2_nano"))}, tmp_path / "official.pth")
    with pytest.raises(InputError, match=r"entries have another shape: stages\.2\.blocks\.0\.attention"):
        backbones.create_model("litv2_nano", alpha=0.5, checkpoint_path=tmp_path / "official.pth")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(depths=(1, 2, 2)), "a depth, a num_heads and a window_size per stage"),
        (dict(window_size=2), "a window_size per stage, .* window_size=2"),
        (dict(window_size=(0, 0, 2)), r"window_size=\(0, 0, 2\)"),
        (dict(window_size=(0, 0, 2, -1)), "windows of at least 0"),
        (dict(depths=(1, 0, 2, 1)), r"depths=\(1, 0, 2, 1\)"),
        (dict(patch_size=0), "patch_size=0"),
        (dict(num_heads=(1, 2, 5, 8)), "96 channels cannot be split into 5 heads"),
        (dict(alpha=1.1), "alpha=1.1"),
    ],
)
def test_wrong_sizes_are_named(wrong, said):
    with pytest.raises(InputError, match=said):
        backbones.create_model("litv2_nano", device="meta", **wrong)


def test_heads_of_stages_without_attention_need_not_divide_their_width():
    model = backbones.create_model("litv2_nano", num_heads=(5, 7, 4, 8), device="meta")
    assert model.stages[2].blocks[0].attention.low_heads == 3
