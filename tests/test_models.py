"""Every registered name through one suite. Shapes are checked on the meta device, which computes nothing."""

import pytest
import timm
import timm.optim
import torch

import backbones
from backbones import InputError
from backbones.published import facts

from .test_export import COMPILED

NAMES = backbones.list_models()
NANO = backbones.list_models("*_nano")
# All names are built and counted. What else is said of a name is by default tested for the nano and one more of each
# family, as variants differ in sizes alone, and for the others with `-m slow`.
SMALL = ("biformer_t", "davit_t", "dinats_t", "gcvit_xxt", "l2vit_t", "litv2_s", "overlock_xt", "swin_t", "volo_d1")
two_of_each_family = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in (*NANO, *SMALL) else pytest.mark.slow) for name in NAMES]
)


@pytest.fixture(params=NANO)
def nano(request):
    return backbones.create_model(request.param, num_classes=7).eval()


@pytest.mark.parametrize("name", NAMES)
def test_published_size_and_cost(name):
    info = backbones.model_info(name)
    if name in NANO:
        assert info["parameters"] < 1e6
        return
    published = facts(info["family"])["published"][name]
    assert info["parameters"] == published["parameters"]
    assert info["macs"] / 1e9 == pytest.approx(published["gmacs"], rel=0.03)


@two_of_each_family
def test_feature_info_says_what_the_maps_are(name):
    model = backbones.create_model(name, features_only=True, device="meta")
    for size in ((200, 264), (225, 231), (32, 96)):
        maps = model(torch.empty(2, 3, *size, device="meta"))
        assert [y.shape[1] for y in maps] == model.feature_info.channels()
        for y, stride in zip(maps, model.feature_info.reduction(), strict=True):
            assert all(abs(got - side / stride) < 1 for got, side in zip(y.shape[2:], size))


@two_of_each_family
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


@two_of_each_family
def test_parameter_groups(name):
    model = backbones.create_model(name, device="meta")
    names = {n for n, _ in model.named_parameters()}
    assert model.no_weight_decay() <= names
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=False))
    assert len(groups) > sum(len(stage.blocks) for stage in model.stages)
    optimizer = timm.optim.create_optimizer_v2(model, "adamw", weight_decay=0.05, layer_decay=0.9)
    assert len({group["lr_scale"] for group in optimizer.param_groups}) > 3


@pytest.mark.parametrize("dense", [None, "detection", "segmentation"])
@pytest.mark.parametrize("family", backbones.list_families())
def test_a_parameter_learns_with_the_layer_that_its_stage_implies(family, dense):
    model = backbones.create_model(
        f"{family}_nano", device="meta", **({"features_only": True} if dense else {}), dense=dense
    )
    model = model.model if dense else model
    layer = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert set(layer) == {n for n, _ in model.named_parameters()}
    below = max(number for n, number in layer.items() if n.startswith("stem."))
    for i, stage in enumerate(model.stages):
        own = {n: number for n, number in layer.items() if n.startswith(f"stages.{i}.")}
        first = {number for n, number in own.items() if n.startswith(f"stages.{i}.blocks.0.")}
        assert len(first) == 1 and len(set(own.values())) == len(stage.blocks)
        for n, number in own.items():
            assert ".blocks." in n or {number} == first, n
        assert min(own.values()) > below
        below = max(own.values())
    assert {number for n, number in layer.items() if n.startswith(("norm", "head."))} <= {below, below + 1}


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


@pytest.mark.parametrize("dense", ["detection", "segmentation"])
@pytest.mark.parametrize(("name", "as_dense"), [("davit_nano", {}), ("l2vit_nano", dict(window_size=7))])
def test_dense_backbones_are_the_classifier_with_a_norm_for_each_map(name, as_dense, dense, tmp_path):
    """Of these families; `as_dense` is what their dense backbones change about it."""
    classifier = backbones.create_model(name, **as_dense).eval()
    torch.save(classifier.state_dict(), tmp_path / "classifier.pt")
    model = backbones.create_model(
        name, features_only=True, dense=dense, out_indices=(1, 3), checkpoint_path=tmp_path / "classifier.pt"
    ).eval()
    norms = {n.split(".")[1] for n, _ in model.named_parameters() if n.startswith("model.norm")}
    assert norms == {"norm1", "norm3"}
    images = torch.randn(1, 3, 45, 70)
    maps = classifier.forward_intermediates(images, indices=[1, 3], intermediates_only=True)
    for y, e in zip(model(images), maps, strict=True):
        normed = torch.nn.functional.layer_norm(e.movedim(1, -1), e.shape[1:2]).movedim(-1, 1)
        torch.testing.assert_close(y, normed)


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


def test_gradient_of_a_single_image_in_training(nano):
    """PyTorch's CPU code gets it wrong for some memory orders of what comes back to a batch norm."""
    nano.double().train()
    images, direction = torch.randn(2, 1, 3, 64, 48, dtype=torch.float64).unbind(0)
    images.requires_grad_()
    maps = nano.forward_intermediates(images, intermediates_only=True, norm=True)
    weights = [torch.randn_like(y) for y in maps]
    sum((y * w).sum() for y, w in zip(maps, weights)).backward()

    def loss(step):
        maps = nano.forward_intermediates(images + step * direction, intermediates_only=True, norm=True)
        return sum((y * w).sum() for y, w in zip(maps, weights))

    with torch.no_grad():
        slope = (loss(1e-6) - loss(-1e-6)) / 2e-6
    torch.testing.assert_close((images.grad * direction).sum(), slope, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("nano", COMPILED, indirect=True)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # that sizes are fixed is what tracing means
def test_traces_for_any_batch(nano):
    traced = torch.jit.trace(nano, torch.randn(2, 3, 32, 32))
    images = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(traced(images), nano(images))
    assert nano(images[:0]).shape == (0, 7)


@pytest.mark.parametrize("nano", COMPILED, indirect=True)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # TorchScript is on its way out
def test_scripts_for_any_size(nano):
    scripted = torch.jit.script(nano)
    images = torch.randn(2, 3, 40, 52)
    torch.testing.assert_close(scripted(images), nano(images))


def test_drop_path_acts_in_training_only(nano):
    model = backbones.create_model(nano.pretrained_cfg["architecture"], drop_path_rate=0.5)
    images = torch.randn(8, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize(
    ("images", "said"),
    [(torch.zeros(1, 1, 64, 64), "images of 3 channel"), (torch.zeros(1, 3, 16, 64), "at least 32 pixels a side")],
)
def test_images_that_do_not_fit(nano, images, said):
    with pytest.raises(InputError, match=said):
        nano(images)
