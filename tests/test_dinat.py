"""What is NAT's, DiNAT's and DiNAT_s' own: their dilations, initial weights, norms, filled-up maps and tables."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import backbones
from backbones import InputError
from backbones.attention import NeighborhoodAttention


def steps(name, **arguments):
    """The dilation of each block, per stage."""
    model = backbones.create_model(name, device="meta", **arguments)
    stages = model.model.stages if arguments.get("features_only") else model.stages
    return [[block.attention.dilation for block in stage.blocks] for stage in stages]


def officially_named(model) -> dict[str, torch.Tensor]:
    """The state dict as the release would name it: `levels` with 3 x 3 convolutions, `layers` with patches."""
    overlap = "stem.refine.weight" in model.state_dict()
    official = {}
    for name, value in model.state_dict().items():
        parts = name.replace(".attention.table", ".attn.rpb").replace(".attention.", ".attn.").split(".")
        if parts[0] == "stem":
            convolution = {"proj": ["proj", "0"], "refine": ["proj", "1"]}.get(parts[1]) if overlap else None
            parts = ["patch_embed", *(convolution or [parts[1]]), parts[2]]
        elif parts[0] == "stages":
            parts[0] = "levels" if overlap else "layers"
            if parts[2] == "downsample":
                parts[1] = str(int(parts[1]) - 1)
            elif parts[4] in ("scale1", "scale2"):
                parts[4:] = [f"gamma{parts[4][-1]}"]
        elif parts[0] == "head":
            parts = ["head", parts[2]]
        official[".".join(parts)] = value
    return official


@pytest.mark.parametrize("dense", [None, "detection", "segmentation"])
def test_initial_weights_of_dinat(dense):
    """The release leaves all but tables and scales of its dense backbones as PyTorch makes them."""
    model = backbones.create_model("dinat_b", depths=(1, 1, 1, 1), dense=dense, features_only=dense is not None)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    for n, p in model.named_parameters():
        layer, _, leaf = n.rpartition(".")
        few = 4 / p.numel() ** 0.5
        if leaf == "table":
            assert p.std().item() == pytest.approx(0.02, rel=few), n
        elif leaf == "gamma":
            assert (p == 1e-5).all(), n
        elif layer not in layers:  # norms
            assert (p == (leaf == "weight")).all(), n
        elif dense is None and isinstance(layers[layer], nn.Linear):
            assert p.std().item() == pytest.approx(0.02, rel=few) if leaf == "weight" else not p.any(), n
        else:  # uniform up to 1 / sqrt(fan_in), weights and biases
            bound = layers[layer].weight[0].numel() ** -0.5
            assert p.abs().max() <= bound and p.std().item() == pytest.approx(bound / 3**0.5, rel=few), n
        if leaf in ("weight", "table") and p.dim() > 1:
            assert abs(p.mean().item()) < few * p.std().item(), n
    assert not getattr(model, "model", model).no_weight_decay()  # the release decays the tables


def test_only_three_models_scale_their_layers():
    scaled = set()
    for name in backbones.list_models("*nat*"):
        model = backbones.create_model(name, device="meta", depths=(1, 1, 1, 1), dilations=1)
        if any(n.endswith(".gamma") for n, _ in model.named_parameters()):
            scaled.add(name)
    assert scaled == {"nat_s", "nat_b", "dinat_b"}


def test_norms_are_those_of_the_release():
    for name in ("dinat_m", "dinats_t"):
        norms = [m for m in backbones.create_model(name, device="meta").modules() if isinstance(m, nn.LayerNorm)]
        assert {m.eps for m in norms} == {1e-5}


def test_blocks_drop_more_and_more():
    model = backbones.create_model("dinat_m", drop_path_rate=0.2, device="meta")
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 17 for i in range(18)])


@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("nat_m", (1, 1, 1, 1)),
        ("dinat_m", (8, 4, 2, 1)),
        ("dinat_l", (8, 4, 2, 1)),
        ("dinat_l_384", (13, 6, 3, 1)),
        ("dinat_l_384_k11", (8, 4, 2, 1)),
        ("dinats_t", (8, 4, 2, 1)),
        ("dinats_l_384", (13, 6, 3, 1)),
    ],
)
def test_every_second_block_of_a_classifier_is_dilated(name, most):
    for row, dilation in zip(steps(name), most, strict=True):
        assert row == [dilation if i % 2 else 1 for i in range(len(row))]


EIGHTEEN = [1, 2, 1, 3, 1, 4, 1, 5, 1, 2, 1, 3, 1, 4, 1, 5, 1, 5]


@pytest.mark.parametrize(
    ("name", "dense", "expected"),
    [
        ("dinat_m", "detection", [[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7], [1, 3, 1, 3, 1]]),
        ("dinat_b", "segmentation", [[1, 16, 1], [1, 4, 1, 8], [1, 2, 1, 3, 1, 4] * 3, [1, 2, 1, 2, 1]]),
        ("dinat_l", "detection", [[1, 28, 1], [1, 7, 1, 14], [1, 3, 1, 5, 1, 7] * 3, [1, 3, 1, 3, 1]]),
        ("dinat_l", "segmentation", [[1, 20, 1], [1, 5, 1, 10], EIGHTEEN, [1, 2, 1, 2, 1]]),
        ("dinat_l_384_k11", "segmentation", [[1, 14, 1], [1, 4, 1, 7], [1, 2, 1, 3] * 4 + [1, 3], [1] * 5]),
        ("dinats_t", "detection", [[1, 28], [1, 14], [1, 3, 1, 5, 1, 7], [1, 3]]),
        ("dinats_b", "segmentation", [[1, 16], [1, 8], [1, 2, 1, 3, 1, 4] * 3, [1, 2]]),
        ("dinats_l", "segmentation", [[1, 20], [1, 10], EIGHTEEN, [1, 2]]),
        ("nat_m", "detection", [[1] * 3, [1] * 4, [1] * 6, [1] * 5]),
        ("nat_t", "segmentation", [[1] * 3, [1] * 4, [1] * 18, [1] * 5]),
    ],
)
def test_dense_backbones_have_dilations_of_their_own(name, dense, expected):
    assert steps(name, dense=dense, features_only=True) == expected


def test_dilations_follow_the_image_size_or_are_given():
    assert steps("dinat_nano", img_size=64) == [[1, 10], [1, 5], [1, 2], [1]]
    assert steps("dinat_nano", img_size=(64, 32)) == steps("dinat_nano")
    assert steps("dinat_nano", dilations=2) == [[2, 2], [2, 2], [2, 2], [2]]
    given = [[1, 3], [2, 1], [1, 1], [2]]
    assert steps("dinat_nano", dilations=given) == given
    assert steps("dinat_m", dilations=2, dense="detection", features_only=True)[0] == [2, 2, 2]


@pytest.mark.parametrize(("one", "other"), [("nat_t", "dinat_t"), ("dinat_l", "dinat_l_384"), ("nat_b", "dinat_b")])
def test_weights_do_not_depend_on_dilations(one, other):
    shapes = [
        {n: v.shape for n, v in backbones.create_model(m, device="meta").state_dict().items()} for m in (one, other)
    ]
    assert shapes[0] == shapes[1]


def test_overlapping_convolutions_have_their_norm_behind_them():
    """The two of the stem have nothing between them, and those between stages no bias."""
    model = backbones.create_model("nat_m", depths=(1, 1, 1, 1)).double()
    images = torch.randn(1, 3, 33, 46, dtype=torch.float64)
    x = F.conv2d(images, model.stem.proj.weight, model.stem.proj.bias, stride=2, padding=1)
    x = F.conv2d(x, model.stem.refine.weight, model.stem.refine.bias, stride=2, padding=1).permute(0, 2, 3, 1)
    assert model.stem.proj.weight.shape == (32, 3, 3, 3) and x.shape == (1, 9, 12, 64)
    torch.testing.assert_close(model.stem(images), F.layer_norm(x, (64,)))

    downsample = model.stages[1].downsample
    assert {n for n, _ in downsample.named_parameters()} == {"reduction.weight", "norm.weight", "norm.bias"}
    y = F.conv2d(x.permute(0, 3, 1, 2), downsample.reduction.weight, stride=2, padding=1).permute(0, 2, 3, 1)
    assert y.shape == (1, 5, 6, 128)
    torch.testing.assert_close(downsample(x), F.layer_norm(y, (128,)))


def test_patches_are_merged_with_their_norm_before():
    model = backbones.create_model("dinats_t", depths=(1, 1, 1, 1)).double()
    images = torch.randn(1, 3, 34, 45, dtype=torch.float64)
    x = F.conv2d(F.pad(images, (0, 3, 0, 2)), model.stem.proj.weight, model.stem.proj.bias, stride=4)
    x = x.permute(0, 2, 3, 1)
    torch.testing.assert_close(model.stem(images), F.layer_norm(x, (96,)))

    downsample = model.stages[1].downsample
    filled = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    cells = torch.cat([filled[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))], dim=-1)
    torch.testing.assert_close(downsample(x), F.layer_norm(cells, (384,)) @ downsample.reduction.weight.T)
    assert downsample.reduction.bias is None


@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_a_block_norms_before_each_branch(layer_scale):
    block = backbones.create_model("dinat_nano", layer_scale=layer_scale).double().stages[0].blocks[1]
    for scale in (block.scale1, block.scale2):
        for p in scale.parameters():
            nn.init.normal_(p)
    gamma1, gamma2 = (1 if layer_scale is None else s.gamma for s in (block.scale1, block.scale2))
    x = torch.randn(2, 16, 15, 24, dtype=torch.float64)
    y = x + gamma1 * block.attention(F.layer_norm(x, (24,)))
    y = y + gamma2 * block.mlp.fc2(F.gelu(block.mlp.fc1(F.layer_norm(y, (24,)))))
    torch.testing.assert_close(block(x), y)
    block.drop_path.drop_prob = 1 - 1e-12
    assert torch.equal(block.train()(x), x)


def test_logits_are_of_the_mean_of_normed_tokens():
    model = backbones.create_model("dinat_nano", num_classes=5).double().eval()
    nn.init.normal_(model.norm.weight)
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    last = model.forward_intermediates(images, intermediates_only=True)[-1].flatten(2).transpose(1, 2)
    normed = F.layer_norm(last, (192,), model.norm.weight, model.norm.bias)
    torch.testing.assert_close(model(images), model.head.fc(normed.mean(1)))


def test_attention_to_a_map_of_the_windows_size():
    """All queries then have the same keys, and the table is read at key minus query."""
    block = NeighborhoodAttention(8, 2, kernel_size=3).double()
    nn.init.normal_(block.qkv.bias)
    nn.init.normal_(block.table)
    x = torch.randn(2, 3, 3, 8, dtype=torch.float64)
    q, k, v = (block.qkv(x).view(2, 9, 3, 2, 4)[:, :, part].transpose(1, 2) for part in range(3))
    logits = q @ k.mT / 2  # the square root of 4 channels a head
    for query in range(9):
        for key in range(9):
            down, right = key // 3 - query // 3, key % 3 - query % 3
            logits[:, :, query, key] += block.table[:, down + 2, right + 2]
    out = (logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 3, 3, 8)
    torch.testing.assert_close(block(x), block.proj(out))


@pytest.mark.parametrize(("height", "width"), [(5, 9), (11, 2), (1, 1), (3, 4)])
def test_a_side_shorter_than_a_dilated_window_is_filled_up_with_zeros(height, width):
    """They are keys like others, and only the short side grows."""
    block = NeighborhoodAttention(8, 2, kernel_size=3, dilation=2).double()
    nn.init.normal_(block.qkv.bias)
    x = torch.randn(2, height, width, 8, dtype=torch.float64)
    around = F.pad(x, (0, 0, 0, max(0, 6 - width), 0, max(0, 6 - height)))
    torch.testing.assert_close(block(x), block(around)[:, :height, :width])
    moved = block(x)
    block.qkv.bias.data[16:] += 1  # the values; those of filled-up keys move with the others
    torch.testing.assert_close(block(x) - moved, block.proj.weight.sum(1).expand_as(moved))


def test_gradients_of_filled_up_maps():
    block = NeighborhoodAttention(2, 1, kernel_size=3).double()
    x = torch.randn(1, 2, 4, 2, dtype=torch.float64, requires_grad=True)
    names = [n for n, _ in block.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in block.parameters()]

    def run(x, *weights):
        return torch.func.functional_call(block, dict(zip(names, weights)), (x,))

    assert torch.autograd.gradcheck(run, (x, *weights))


def test_a_larger_kernel_takes_the_table_resized(tmp_path):
    small = backbones.create_model("dinat_nano", kernel_size=7)
    torch.save(officially_named(small), tmp_path / "small.pth")
    large = backbones.create_model("dinat_nano", kernel_size=11, checkpoint_path=tmp_path / "small.pth")
    for stage, larger in zip(small.stages, large.stages):
        table = stage.blocks[0].attention.table[None]
        expected = F.interpolate(table, (21, 21), mode="bicubic")[0]
        torch.testing.assert_close(larger.blocks[0].attention.table, expected)
        assert torch.equal(larger.blocks[0].mlp.fc1.weight, stage.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("layer_scale", [None, 0.1])
def test_official_files(tmp_path, overlap, layer_scale):
    """The release keeps each down-sampling with the stage before it."""
    arguments = dict(overlap=overlap, layer_scale=layer_scale)
    model = backbones.create_model("dinat_nano", **arguments)
    for entry in model.state_dict().values():
        entry.uniform_(0.5, 1)  # initial norms would be the same in another place
    official = officially_named(model)
    assert ("levels" if overlap else "layers") + ".0.downsample.norm.weight" in official
    torch.save(official, tmp_path / "official.pth")
    loaded = backbones.create_model("dinat_nano", checkpoint_path=tmp_path / "official.pth", **arguments)
    for n, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[n], value), n


@pytest.mark.parametrize("dense", ["detection", "segmentation"])
@pytest.mark.parametrize("overlap", [True, False])
def test_dense_backbones_norm_each_map_on_its_own(dense, overlap, tmp_path):
    classifier = backbones.create_model("dinat_nano", overlap=overlap).eval()
    torch.save(officially_named(classifier), tmp_path / "classifier.pth")
    model = backbones.create_model(
        "dinat_nano",
        overlap=overlap,
        features_only=True,
        dense=dense,
        out_indices=(1, 3),
        checkpoint_path=tmp_path / "classifier.pth",
    ).eval()
    norms = {n.split(".")[1] for n, _ in model.named_parameters() if n.startswith("model.norm")}
    assert norms == {"norm1", "norm3"}
    images = torch.randn(1, 3, 45, 70)
    maps = classifier.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
    for y, e in zip(model(images), maps, strict=True):
        torch.testing.assert_close(y, F.layer_norm(e.movedim(1, -1), e.shape[1:2]).movedim(-1, 1))


def test_sizes_of_odd_maps():
    """Convolutions and merging both round up."""
    for name in ("dinat_m", "dinats_t"):
        model = backbones.create_model(name, features_only=True, dense="detection", device="meta")
        maps = model(torch.empty(1, 3, 200, 264, device="meta"))
        assert [tuple(y.shape[2:]) for y in maps] == [(50, 66), (25, 33), (13, 17), (7, 9)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(depths=(2, 2, 2)), "a depth and a num_heads per stage"),
        (dict(num_heads=(1, 5, 4, 8)), "48 channels cannot be split into 5 heads"),
        (dict(dim=0), "dim=0"),
        (dict(patch_size=8), "a stride of 2 or 4, but patch_size=8"),
        (dict(kernel_size=4), "an odd kernel_size of at least 3.* kernel_size=4"),
        (dict(kernel_size=1), "kernel_size=1"),
        (dict(dilations=0), "dilation=0"),
        (dict(dilations=[[1, 2], [1], [1, 2], [1]]), r"which are \(2, 2, 2, 1\), but got \[\[1, 2\], \[1\]"),
        (dict(dilations=[[1, 2], [1, 2]]), "a row per stage"),
        (dict(dilations=1.5), "a row per stage .* but got 1.5"),
    ],
)
def test_wrong_sizes_are_named(wrong, said):
    with pytest.raises(InputError, match=said):
        backbones.create_model("dinat_nano", device="meta", **wrong)


def test_dense_dilations_need_a_row_per_stage():
    with pytest.raises(InputError, match="a row per stage"):
        backbones.create_model(
            "dinat_nano", dense="detection", features_only=True, dense_dilations=dict(detection=[[1, 2], [1, 2]])
        )


def test_a_task_without_dilations_is_named():
    with pytest.raises(InputError, match="no entry for dense='segmentation', only for detection"):
        backbones.create_model(
            "dinat_nano",
            features_only=True,
            dense="segmentation",
            dense_dilations=dict(detection=[[1, 2]] * 4),
            device="meta",
        )
