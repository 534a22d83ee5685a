"""What is GC ViT's own: its windows, the queries of each level, its convolutions, first weights and dense backbones."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import backbones
from backbones import InputError
from backbones.attention import GlobalQueryAttention, WindowAttention
from backbones.families.gcvit import Downsample, QueryGenerator, ResidualConv

# As small as the family gets with windows that follow from the image size.
SMALL = dict(dim=8, depths=(1, 2, 2, 2), num_heads=(1, 2, 4, 8), num_classes=5)


def windows(model):
    """Side of each level's window, of its queries too."""
    levels = [{block.attention.window_size for block in stage.blocks} for stage in model.stages]
    sides = [stage.query_generator.window_size for stage in model.stages]
    assert levels == [{side} for side in sides]
    return tuple(sides)


def officially_named(model) -> dict[str, torch.Tensor]:
    """The state dict as the release would name it, with its index buffers."""
    places = dict(depthwise="conv.0", squeeze="conv.2.fc.0", excite="conv.2.fc.2", pointwise="conv.3")
    official = {}
    for name, value in model.state_dict().items():
        parts = name.replace(".conv.", ".").split(".")
        parts = [places.get(part, part) for part in parts]
        if parts[0] == "stem":
            parts[:2] = ["patch_embed", {"downsample": "conv_down"}.get(parts[1], parts[1])]
        elif parts[0] == "stages":
            parts[0] = "levels"
            if parts[2] == "downsample":
                parts[1] = str(int(parts[1]) - 1)
            elif parts[2] == "query_generator":
                parts[2:4] = ["q_global_gen", "to_q_global"]
            elif parts[4] == "attention":
                parts[4:6] = [
                    "attn",
                    {"kv": "qkv", "position_bias": "relative_position_bias_table"}.get(parts[5], parts[5]),
                ]
                parts = parts[:6] if parts[-1] == "table" else parts
            elif parts[4] in ("scale1", "scale2"):
                parts[4:] = [f"gamma{parts[4][-1]}"]
        elif parts[0] == "head":
            parts = ["head", parts[2]]
        official[".".join(parts)] = value
        if parts[-1] == "relative_position_bias_table":
            official[".".join([*parts[:-1], "relative_position_index"])] = torch.zeros(4, 4, dtype=torch.int64)
    return official


@pytest.mark.parametrize("dense", [None, "detection", "segmentation"])
def test_initial_weights_of_gcvit(dense):
    """The release leaves linear layers of its dense backbones as PyTorch makes them, and their tables are zero."""
    model = backbones.create_model("gcvit_s", depths=(1, 2, 2, 1), dense=dense, features_only=dense is not None)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d))}
    for n, p in model.named_parameters():
        layer, _, leaf = n.rpartition(".")
        few = 4 / p.numel() ** 0.5
        if leaf == "table":
            assert not p.any() if dense else p.std().item() == pytest.approx(0.02, rel=few), n
        elif leaf == "gamma":
            assert (p == 1e-5).all(), n
        elif layer not in layers:  # norms
            assert (p == (leaf == "weight")).all(), n
        elif dense is None and isinstance(layers[layer], nn.Linear):
            assert p.std().item() == pytest.approx(0.02, rel=few) if leaf == "weight" else not p.any(), n
        else:  # uniform up to 1 / sqrt(fan_in), weights and biases
            bound = layers[layer].weight[0].numel() ** -0.5
            assert p.abs().max() <= bound and p.std().item() == pytest.approx(bound / 3**0.5, rel=few), n
        if p.dim() > 1:
            assert abs(p.mean().item()) <= few * p.std().item(), n
    assert not getattr(model, "model", model).no_weight_decay()  # the release decays the tables


def test_no_convolution_but_the_first_has_a_bias():
    model = backbones.create_model("gcvit_nano", device="meta")
    named = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.bias is not None}
    assert named == {"stem.proj"}
    named = {n.split(".")[-1] for n, m in model.named_modules() if isinstance(m, nn.Linear) and m.bias is None}
    assert named == {"squeeze", "excite"}
    assert {m.eps for m in model.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}


def test_which_models_scale_their_layers():
    for name in backbones.list_models("gcvit_*"):
        model = backbones.create_model(name, device="meta", depths=(1, 1, 1, 1))
        scaled = any(n.endswith(".gamma") for n, _ in model.named_parameters())
        assert scaled == name.startswith(("gcvit_s", "gcvit_b", "gcvit_l")), name


def test_blocks_alternate_anew_in_every_level_and_drop_more_and_more():
    model = backbones.create_model("gcvit_xt", drop_path_rate=0.2, device="meta")
    for stage, depth in zip(model.stages, (3, 4, 6, 5), strict=True):
        kinds = [type(block.attention) for block in stage.blocks]
        assert kinds == [(WindowAttention, GlobalQueryAttention)[i % 2] for i in range(depth)]
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0.2 * i / 17 for i in range(18)])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gcvit_xxt", (7, 7, 14, 7)),
        ("gcvit_l", (7, 7, 14, 7)),
        ("gcvit_l_384", (12, 12, 24, 12)),
        ("gcvit_l_512", (16, 16, 32, 16)),
    ],
)
def test_windows_follow_the_image_size_and_are_24_in_dense_backbones(name, expected):
    shallow = dict(depths=(2, 2, 2, 2), device="meta")
    assert windows(backbones.create_model(name, **shallow)) == expected
    for dense in ("detection", "segmentation"):
        model = backbones.create_model(name, dense=dense, features_only=True, **shallow)
        assert windows(model.model) == (24,) * 4


def test_windows_that_are_given():
    shallow = dict(depths=(2, 2, 2, 2), device="meta")
    assert windows(backbones.create_model("gcvit_t", img_size=256, **shallow)) == (8, 8, 16, 8)
    assert windows(backbones.create_model("gcvit_t", img_size=(320, 224), **shallow)) == (7, 7, 14, 7)
    assert windows(backbones.create_model("gcvit_t", window_size=5, **shallow)) == (5,) * 4
    given = dict(window_size=(7, 7, 14, 7), dense="detection", features_only=True)
    assert windows(backbones.create_model("gcvit_t", **given, **shallow).model) == (7, 7, 14, 7)


@pytest.mark.parametrize("name", ["gcvit_xxt", "gcvit_l_384", "gcvit_l_512"])
def test_a_classifiers_maps_are_whole_windows_and_its_queries_one(name):
    """At the size it is built for, nothing is filled up or resized."""
    model = backbones.create_model(name, **SMALL).eval()
    seen = []
    for stage in model.stages:
        stage.query_generator.units[-1].register_forward_hook(lambda unit, args, y: seen.append(y.shape[1:3]))
    with torch.no_grad():
        side = model.pretrained_cfg["input_size"][1]
        maps = model.forward_intermediates(torch.randn(1, 3, side, side), intermediates_only=True)
    for y, window, made, stage in zip(maps, windows(model), seen, model.stages, strict=True):
        assert all(length % window == 0 for length in y.shape[2:])
        assert made == ((2 * window,) * 2 if stage.query_generator.pool else (window,) * 2)


def test_which_levels_pool_their_queries():
    shallow = dict(depths=(2, 2, 2, 2), device="meta")

    def pools(**arguments):
        model = backbones.create_model("gcvit_t", **arguments, **shallow)
        stages = (model.model if "dense" in arguments else model).stages
        assert [len(stage.query_generator.units) for stage in stages] == [3, 2, 1, 1]
        return [stage.query_generator.pool for stage in stages]

    dense = dict(dense="detection", features_only=True)
    assert pools() == pools(img_size=384) == [True, True, False, False]
    assert pools(**dense) == pools(window_size=7, **dense) == [True, True, True, False]
    assert pools(window_size=(7, 7, 14, 7), **dense) == pools(window_size=14, **dense) == [True, True, False, False]


def test_a_residual_convolution_squeezes_and_excites_without_norms():
    conv = ResidualConv(10).double()
    assert conv.squeeze.weight.shape == (2, 10)  # a quarter, rounded down
    x = torch.randn(2, 5, 7, 10, dtype=torch.float64)
    y = F.gelu(F.conv2d(x.permute(0, 3, 1, 2), conv.depthwise.weight, padding=1, groups=10))
    gate = torch.sigmoid(F.gelu(y.mean((2, 3)) @ conv.squeeze.weight.T) @ conv.excite.weight.T)
    y = F.conv2d(y * gate[:, :, None, None], conv.pointwise.weight).permute(0, 2, 3, 1)
    torch.testing.assert_close(conv(x), x + y)


@pytest.mark.parametrize("batch", [1, 2])
def test_gradients_of_a_residual_convolution(batch):
    conv = ResidualConv(4).double()
    x = torch.randn(batch, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(conv, (x,))


def test_downsampling_adds_to_the_normed_map_and_norms_again():
    downsample = Downsample(6, 12).double()
    for norm in (downsample.norm1, downsample.norm2):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    x = torch.randn(2, 5, 8, 6, dtype=torch.float64)
    y = downsample.conv(downsample.norm1(x)).permute(0, 3, 1, 2)
    y = F.conv2d(y, downsample.reduction.weight, stride=2, padding=1)
    assert y.shape == (2, 12, 3, 4)
    torch.testing.assert_close(downsample(x), downsample.norm2(y.permute(0, 2, 3, 1)))


def test_the_stem_is_a_convolution_and_a_downsampling_of_the_same_width():
    stem = backbones.create_model("gcvit_xxt", **SMALL).double().stem
    images = torch.randn(2, 3, 33, 46, dtype=torch.float64)
    x = F.conv2d(images, stem.proj.weight, stem.proj.bias, stride=2, padding=1).permute(0, 2, 3, 1)
    assert x.shape == (2, 17, 23, 8) and stem(images).shape == (2, 9, 12, 8)
    torch.testing.assert_close(stem(images), stem.downsample(x))


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (9, 14), (4, 4), (3, 4)])
def test_queries_are_raw_features_resized_to_the_window(size, pool):
    generator = QueryGenerator(6, 2, pool, 4).double()
    x = torch.randn(2, *size, 6, dtype=torch.float64)
    y = x
    for unit in generator.units:
        y = unit(y)
        if pool:  # what is around the map is never the largest
            y = F.pad(y, (0, 0, 1, 1, 1, 1), value=-torch.inf)
            y = y.unfold(1, 3, 2).unfold(2, 3, 2).amax((-2, -1))
    assert y.shape[1:3] == ((-(-size[0] // 4), -(-size[1] // 4)) if pool else size)
    if y.shape[1:3] != (4, 4):
        y = F.interpolate(y.permute(0, 3, 1, 2), (4, 4), mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    torch.testing.assert_close(generator(x), y)
    names = {n.split(".", 2)[2] for n, _ in generator.named_parameters()}
    assert names == {f"{layer}.weight" for layer in ("depthwise", "squeeze", "excite", "pointwise")}


def test_gradients_of_resized_queries():
    generator = QueryGenerator(4, 1, True, 3).double()
    x = torch.randn(1, 3, 8, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(generator, (x,))


def test_all_blocks_of_a_level_ask_with_the_queries_of_its_input():
    model = backbones.create_model("gcvit_nano", depths=(4, 1, 1, 1)).double().eval()
    level = model.stages[0]
    seen = []
    for block in level.blocks:
        block.register_forward_hook(lambda block, args, y: seen.append(args))
    x = torch.randn(2, 16, 12, 20, dtype=torch.float64)
    out = level(x)
    query = level.query_generator(x)
    assert len(seen) == 4
    for _, given in seen:
        assert torch.equal(given, query)
    y = x
    for i, block in enumerate(level.blocks):
        normed = block.norm1(y)
        y = y + (block.attention(normed, query) if i % 2 else block.attention(normed))
        y = y + block.mlp(block.norm2(y))
    torch.testing.assert_close(out, y)


def test_the_queries_of_a_later_level_are_of_its_downsampled_input():
    model = backbones.create_model("gcvit_nano").double().eval()
    level = model.stages[1]
    x = torch.randn(2, 11, 16, 20, dtype=torch.float64)
    y = level.downsample(x)
    query = level.query_generator(y)
    for block in level.blocks:
        y = block(y, query)
    torch.testing.assert_close(level(x), y)
    with torch.no_grad():
        torch.testing.assert_close(level(x), y)


@pytest.mark.parametrize("layer_scale", [None, 0.3])
def test_a_block_norms_before_each_branch(layer_scale):
    model = backbones.create_model("gcvit_nano", layer_scale=layer_scale).double()
    query, x = torch.randn(2, 4, 4, 20, dtype=torch.float64), torch.randn(2, 6, 9, 20, dtype=torch.float64)
    for block in model.stages[0].blocks:
        for p in (*block.scale1.parameters(), *block.scale2.parameters()):
            nn.init.normal_(p)
        gamma1, gamma2 = (1 if layer_scale is None else s.gamma for s in (block.scale1, block.scale2))
        normed = F.layer_norm(x, (20,))
        y = x + gamma1 * (block.attention(normed, query) if block.is_global else block.attention(normed))
        y = y + gamma2 * block.mlp.fc2(F.gelu(block.mlp.fc1(F.layer_norm(y, (20,)))))
        torch.testing.assert_close(block(x, query), y)
        block.drop_path.drop_prob = 1 - 1e-12
        assert torch.equal(block.train()(x, query), x)


def test_logits_are_of_the_mean_of_normed_tokens():
    model = backbones.create_model("gcvit_nano", num_classes=5).double().eval()
    nn.init.normal_(model.norm.weight)
    images = torch.randn(2, 3, 40, 56, dtype=torch.float64)
    last = model.forward_intermediates(images, intermediates_only=True)[-1].flatten(2).transpose(1, 2)
    normed = F.layer_norm(last, (160,), model.norm.weight, model.norm.bias)
    torch.testing.assert_close(model(images), model.head.fc(normed.mean(1)))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (dict(img_size=64), dict(img_size=96)),
        (dict(img_size=96), dict(img_size=(64, 128))),
        (dict(img_size=64), dict(window_size=(3, 2, 5, 4))),
        (dict(window_size=(3, 2, 5, 4)), dict(img_size=96)),
    ],
)
def test_another_input_size_gives_the_network_built_for_it(before, after, tmp_path):
    model = backbones.create_model("gcvit_xxt", **SMALL, **before).eval()
    torch.save(model.state_dict(), tmp_path / "small.pt")
    built = backbones.create_model("gcvit_xxt", **SMALL, **(before | after), checkpoint_path=tmp_path / "small.pt")
    model.set_input_size(**after)
    assert windows(model) == windows(built)
    images = torch.randn(2, 3, 96, 128)
    torch.testing.assert_close(model(images), built.eval()(images))


def test_a_dense_backbone_of_another_window_pools_as_if_built_with_it():
    model = backbones.create_model("gcvit_xxt", **SMALL, dense="detection", features_only=True).model
    pools = []
    for window in (14, 24, (7, 7, 14, 7)):
        model.set_input_size(window_size=window)
        pools.append(model.stages[2].query_generator.pool)
    assert pools == [False, True, False] and windows(model) == (7, 7, 14, 7)


def test_tables_of_a_classifier_are_resized_for_a_dense_backbone(tmp_path):
    classifier = backbones.create_model("gcvit_xxt", **SMALL)
    torch.save({"state_dict": officially_named(classifier)}, tmp_path / "classifier.pth.tar")
    dense = backbones.create_model(
        "gcvit_xxt", **SMALL, features_only=True, dense="detection", checkpoint_path=tmp_path / "classifier.pth.tar"
    ).model
    for stage, larger in zip(classifier.stages, dense.stages):
        for block, resized in zip(stage.blocks, larger.blocks, strict=True):
            table = block.attention.position_bias.table
            side = 2 * block.attention.window_size - 1
            grid = table.T.reshape(1, -1, side, side)
            expected = F.interpolate(grid, (47, 47), mode="bicubic", align_corners=False).reshape(-1, 47**2).T
            torch.testing.assert_close(resized.attention.position_bias.table, expected)


@pytest.mark.parametrize("dense", ["detection", "segmentation"])
def test_dense_backbones_norm_each_map_on_its_own(dense, tmp_path):
    classifier = backbones.create_model("gcvit_nano").eval()
    torch.save(officially_named(classifier), tmp_path / "classifier.pth.tar")
    model = backbones.create_model(
        "gcvit_nano",
        features_only=True,
        dense=dense,
        out_indices=(1, 3),
        checkpoint_path=tmp_path / "classifier.pth.tar",
    ).eval()
    norms = {n.split(".")[1] for n, _ in model.named_parameters() if n.startswith("model.norm")}
    assert norms == {"norm1", "norm3"}
    images = torch.randn(1, 3, 45, 70)
    classifier.stages[2].query_generator.pool = True  # what a dense backbone does
    maps = classifier.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
    for y, e in zip(model(images), maps, strict=True):
        torch.testing.assert_close(y, F.layer_norm(e.movedim(1, -1), e.shape[1:2]).movedim(-1, 1))


def test_official_files(tmp_path):
    """Odd blocks, also those of two digits, have keys and values alone under the name of all three."""
    arguments = dict(depths=(1, 2, 13, 2), layer_scale=0.1)
    model = backbones.create_model("gcvit_nano", **arguments)
    for entry in model.state_dict().values():
        entry.uniform_(0.5, 1)  # initial norms would be the same in another place
    official = officially_named(model)
    assert official["levels.2.blocks.11.attn.qkv.weight"].shape == (160, 80)
    assert official["levels.2.blocks.12.attn.qkv.weight"].shape == (240, 80)
    assert {
        "patch_embed.conv_down.conv.2.fc.0.weight",
        "levels.0.q_global_gen.to_q_global.2.conv.3.weight",
    } <= official.keys()
    torch.save({"state_dict": {f"module.{n}": v for n, v in official.items()}}, tmp_path / "official.pth.tar")
    loaded = backbones.create_model("gcvit_nano", checkpoint_path=tmp_path / "official.pth.tar", **arguments)
    for n, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[n], value), n


def test_averaged_weights_come_first(tmp_path):
    model = backbones.create_model("gcvit_nano")
    official = officially_named(model)
    other = {n: torch.zeros_like(v) for n, v in official.items()}
    torch.save({"state_dict": other, "state_dict_ema": official, "epoch": 3}, tmp_path / "official.pth.tar")
    loaded = backbones.create_model("gcvit_nano", checkpoint_path=tmp_path / "official.pth.tar")
    assert torch.equal(loaded.stem.proj.weight, model.stem.proj.weight)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(depths=(2, 2, 2)), "four levels, each with a depth and a num_heads"),
        (dict(depths=(2, 2, 2), num_heads=(1, 2, 4)), "four levels"),
        (dict(num_heads=(1, 3, 4, 8)), "40 channels cannot be split into 3 heads"),
        (dict(stem_stride=0), "stem_stride=0"),
        (dict(window_size=(4, 4, 4, 0)), r"window_size=\(4, 4, 4, 0\)"),
        (dict(window_size=0), "at least 1 token.* window_size=0"),
        (dict(window_size=(4, 4, 4, 2, 2)), "one window_size per level, four in all"),
    ],
)
def test_wrong_sizes_are_named(wrong, said):
    with pytest.raises(InputError, match=said):
        backbones.create_model("gcvit_nano", device="meta", **wrong)


@pytest.mark.parametrize("wrong", [0, (4, 4, 4, 0), (4, 4)])
def test_a_refused_window_leaves_the_model_as_it_was(wrong):
    model = backbones.create_model("gcvit_nano", num_classes=3).eval()
    images = torch.randn(1, 3, 32, 32)
    expected = model(images)
    with pytest.raises(InputError, match="one window_size per level"):
        model.set_input_size(img_size=64, window_size=wrong)
    assert torch.equal(model(images), expected)
    model.set_input_size(img_size=32)
    assert torch.equal(model(images), expected)
