"""Every registered name through one suite. Shapes are checked on the meta device, which computes nothing."""

import pytest
import timm
import timm.optim
import torch

import backbones
from backbones import InputError

NAMES = backbones.list_models()
NANO = backbones.list_models("*_nano")

# The published parameter counts of the classifiers with 1000 classes.
PARAMETERS = {
    "swin_t": 28_288_354,
    "swin_s": 49_606_258,
    "swin_b": 87_768_224,
    "swin_l": 196_532_476,
    "swin_b_384": 87_903_584,
    "swin_l_384": 196_735_516,
}
# The published multiply-adds; the official counters add a term for each LayerNorm, hence 3 %.
GMACS = {
    "swin_t": 4.494,
    "swin_s": 8.747,
    "swin_b": 15.438,
    "swin_l": 34.487,
    "swin_b_384": 47.105,
    "swin_l_384": 103.952,
}


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=NANO)
def nano(request):
    return backbones.create_model(request.param, num_classes=7).eval()


def test_published_size_and_cost(name):
    info = backbones.model_info(name)
    if name in NANO:
        assert info["parameters"] < 1e6
        return
    assert info["parameters"] == PARAMETERS[name]
    assert info["macs"] / 1e9 == pytest.approx(GMACS[name], rel=0.03)


@pytest.mark.parametrize("size", [(200, 264), (225, 231), (32, 96)])
def test_feature_info_says_what_the_maps_are(name, size):
    model = backbones.create_model(name, features_only=True, device="meta")
    maps = model(torch.empty(2, 3, *size, device="meta"))
    assert [y.shape[1] for y in maps] == model.feature_info.channels()
    for y, stride in zip(maps, model.feature_info.reduction(), strict=True):
        assert y.shape[2:] == tuple(-(-side // stride) for side in size)


def test_timms_interface(name):
    model = timm.create_model(name, num_classes=5, in_chans=2, device="meta").eval()
    height, width = model.pretrained_cfg["input_size"][1:]
    images = torch.empty(2, 2, height, width, device="meta")
    features = model.forward_features(images)
    assert features.shape == (2, model.num_features, *model.pretrained_cfg["pool_size"])
    assert model.forward_head(features).shape == model(images).shape == (2, 5)
    assert model.forward_head(features, pre_logits=True).shape == (2, model.head_hidden_size)
    assert model.get_classifier().out_features == 5
    model.reset_classifier(0)
    assert model(images).shape == (2, model.num_features)
    model.reset_classifier(3, global_pool="max")
    assert model(images).shape == (2, 3) and model.global_pool == "max"
    entries = model.state_dict()
    assert model.pretrained_cfg["first_conv"] + ".weight" in entries
    assert model.pretrained_cfg["classifier"] + ".weight" in entries


def test_parameter_groups(name):
    model = backbones.create_model(name, device="meta")
    names = {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=False))
    assert len(groups) > sum(len(stage.blocks) for stage in model.stages)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", weight_decay=0.05, layer_decay=0.9)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 3


def test_intermediates(nano):
    images = torch.randn(2, 3, 64, 48)
    final, maps = nano.forward_intermediates(images)
    torch.testing.assert_close(final, nano.forward_features(images))
    last = nano.forward_intermediates(images, indices=[-1], intermediates_only=True)
    assert torch.equal(last[0], maps[-1])
    early, first = nano.forward_intermediates(images, indices=[0], stop_early=True)
    assert torch.equal(first[0], maps[0]) and torch.equal(early, maps[0])
    normed = nano.forward_intermediates(images, norm=True, intermediates_only=True)
    assert torch.equal(normed[-1], final) and torch.equal(normed[0], maps[0])


def test_features_only_is_pruned_and_equal(nano):
    name = nano.pretrained_cfg["architecture"]
    features = backbones.create_model(name, features_only=True, out_indices=(0, 2)).eval()
    features.model.load_state_dict({k: v for k, v in nano.state_dict().items() if k in features.model.state_dict()})
    images = torch.randn(1, 3, 40, 72)
    reverse = nano.forward_intermediates(images, indices=[2, -4], intermediates_only=True)
    assert [y.shape[1] for y in reverse] == [nano.feature_info[i]["num_chs"] for i in (2, 0)]
    expected = nano.forward_intermediates(images, indices=[0, 2], intermediates_only=True)
    for y, e in zip(features(images), expected, strict=True):
        assert torch.equal(y, e)
    assert len(features.model.stages) == 3 and not list(features.model.head.parameters())


@pytest.mark.parametrize("size", [(32, 32), (45, 70)])
def test_backward_reaches_every_parameter_with_and_without_checkpointing(nano, size):
    nano.train()
    images = torch.randn(2, 3, *size)
    nano(images).square().sum().backward()
    plain = {n: p.grad.clone() for n, p in nano.named_parameters()}
    nano.zero_grad()
    nano.set_grad_checkpointing()
    nano(images).square().sum().backward()
    for n, p in nano.named_parameters():
        assert plain[n].abs().sum() > 0, n
        torch.testing.assert_close(p.grad, plain[n], msg=n)


def test_images_of_a_batch_do_not_meet(nano):
    images = torch.randn(2, 3, 48, 64)
    other = images.clone()
    other[1] = 0
    torch.testing.assert_close(nano(images)[0], nano(other)[0])


def test_channels_last_and_bfloat16(nano):
    images = torch.randn(2, 3, 64, 64)
    expected = nano(images)
    torch.testing.assert_close(nano(images.contiguous(memory_format=torch.channels_last)), expected)
    half = nano.bfloat16()(images.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0.05, atol=0.02)


def test_inference_in_pieces_equals_the_batch_at_once(nano, monkeypatch):
    images = torch.randn(5, 3, 40, 64)
    expected = nano(images)
    monkeypatch.setattr("backbones.backbone.PIECE_BYTES", 30_000)  # two images of the first stage, all of the last
    seen = []
    nano.stages[0].blocks[0].register_forward_hook(lambda block, args, y: seen.append(len(y)))
    with torch.no_grad():
        torch.testing.assert_close(nano(images), expected)
    assert len(seen) > 1 and sum(seen) == 5


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # that sizes are fixed is what tracing means
def test_traces_for_any_batch(nano):
    traced = torch.jit.trace(nano, torch.randn(2, 3, 32, 32))
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(traced(images), nano(images))
    assert nano(images[:0]).shape == (0, 7)


def test_compiles_to_one_graph(nano):
    images = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(nano, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), nano(images))


def test_drop_path_acts_in_training_only():
    model = backbones.create_model("swin_nano", drop_path_rate=0.5)
    images = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_initial_weights_of_swin():
    model = backbones.create_model("swin_t")
    for n, p in model.named_parameters():
        if n.endswith("position_bias.table") or (p.dim() == 2 and n.endswith("weight")):
            assert p.std().item() == pytest.approx(0.02, rel=0.1) and abs(p.mean().item()) < 5e-3, n
        elif "norm" in n and n.endswith("weight"):
            assert (p == 1).all(), n
        elif n.endswith("bias") and not n.startswith("stem.proj"):
            assert not p.any(), n
    bound = 48**-0.5  # Kaiming uniform with a = sqrt(5): 1 / sqrt(fan_in)
    stem = model.stem.proj.weight
    assert stem.abs().max() <= bound and stem.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("dense", ["detection", "segmentation"])
def test_dense_backbones_norm_each_map_on_its_own(dense):
    dense_model = backbones.create_model("swin_nano", features_only=True, dense=dense, out_indices=(1, 3)).eval()
    norms = {n.split(".")[1] for n, _ in dense_model.named_parameters() if n.startswith("model.norm")}
    assert norms == {"norm1", "norm3"}
    plain = backbones.create_model("swin_nano", features_only=True, out_indices=(1, 3), img_size=36).eval()
    weights = {k: v for k, v in dense_model.model.state_dict().items() if not k.startswith("norm")}
    plain.model.load_state_dict(weights)
    images = torch.randn(1, 3, 36, 52)  # 18 x 26 tokens: the classification network is not defined there
    for y, e in zip(dense_model(images), plain(images), strict=True):
        torch.testing.assert_close(y, torch.nn.functional.layer_norm(e.movedim(1, -1), e.shape[1:2]).movedim(-1, 1))


def test_a_small_image_shrinks_the_windows_of_the_classification_network_only():
    """At 192 px the last map of swin_b_384 has 6 x 6 tokens, fewer than a window of 12 x 12."""
    at_size = backbones.create_model("swin_b_384", img_size=192, device="meta")
    windows = [stage.blocks[0].attention.position_bias.table.shape[0] for stage in at_size.stages]
    assert windows == [23**2, 23**2, 23**2, 11**2]
    dense = backbones.create_model("swin_b_384", img_size=192, features_only=True, dense="detection", device="meta")
    assert dense.model.stages[3].blocks[0].attention.position_bias.table.shape[0] == 23**2


def test_set_input_size_gives_what_building_at_that_size_gives():
    model = backbones.create_model("swin_nano", num_classes=3)
    model.set_input_size(img_size=64, window_size=8)
    built = backbones.create_model("swin_nano", num_classes=3, img_size=64, window_size=8)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in built.named_parameters()}
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("images", "said"),
    [(torch.zeros(1, 1, 64, 64), "images of 3 channel"), (torch.zeros(1, 3, 16, 64), "at least 32 pixels a side")],
)
def test_images_that_do_not_fit(nano, images, said):
    with pytest.raises(InputError, match=said):
        nano(images)
