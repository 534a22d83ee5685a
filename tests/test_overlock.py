"""What is OverLoCK's own: its three nets, their merged form, the auxiliary head, and its dense backbones."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from timm.models import group_parameters
from torch import nn

import backbones
from backbones import InputError
from backbones.families.overlock import WithAuxiliary
from backbones.layers import ChannelScale, DilatedDepthwiseConv

PARITY = Path(__file__).parent / "parity"
sys.path.insert(0, str(PARITY))
import parity  # noqa: E402

build = partial(backbones.create_model, "overlock_nano")
SHALLOW = dict(depths=(1, 1, 1, 1), sub_depths=(2, 2))


@pytest.fixture(scope="module")
def official(tmp_path_factory):
    """A file of the shallow model as the release would write it."""
    case = parity.load_case(PARITY / "overlock" / "overlock_xt_shallow_224.json")
    file = tmp_path_factory.mktemp("official") / "shallow.pth"
    torch.save({n: v.float() for n, v in parity.standin_checkpoint(case["manifest"]).items()}, file)
    return file


def trained(**arguments):
    """A nano model whose weights and statistics are nobody's initial values."""
    torch.manual_seed(0)
    model = build(num_classes=5, **arguments).double().eval()
    for entry in model.state_dict().values():
        if entry.is_floating_point():
            entry.add_(0.1 * torch.rand_like(entry))
    return model


def test_initial_weights_of_overlock():
    model = backbones.create_model("overlock_xt", **SHALLOW)
    for n, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            few = 4 / (2 * module.weight.numel()) ** 0.5  # four standard errors of a measured deviation
            assert module.weight.std().item() == pytest.approx(0.02, rel=few), n
            assert module.bias is None or not module.bias.any(), n
        elif isinstance(module, (nn.BatchNorm2d, nn.LayerNorm, ChannelScale)):
            assert (module.weight == 1).all() and not module.bias.any(), n
    for n, p in model.named_parameters():
        if n.endswith(("gamma", "beta", "small_bias", "large_bias")):
            assert not p.any(), n


def test_layer_scale_is_absent_in_the_base_net_and_in_front_of_the_first_focus_block():
    names = {n.rpartition(".")[0] for n, _ in backbones.create_model("overlock_xt", device="meta").named_parameters()}
    assert {n.partition(".")[0] for n in names if n.endswith(".ls")} == {"overview"}
    assert "stages.2.blocks.0.x_scale" not in names
    assert {"stages.2.blocks.1.x_scale", "stages.3.blocks.0.h_scale"} <= names


def test_drop_path_rises_through_base_overview_and_focus_nets():
    model = build(drop_path_rate=0.6)
    order = [*model.stages[:2], *model.overview, *model.stages[2:]]
    rates = [block.drop_path.drop_prob for stage in order for block in stage.blocks]
    assert rates == pytest.approx(torch.linspace(0, 0.6, 7).tolist())


def test_layer_decay_follows_the_images_through_the_nets():
    model = backbones.create_model("overlock_xt", device="meta", features_only=True, dense="detection").model
    layer = group_parameters(model, model.group_matcher(), reverse=True)
    in_order = [
        "stem.proj.weight",
        "stages.0.blocks.1.dwconv.weight",
        "stages.1.downsample.proj.weight",
        "overview.0.downsample.proj.weight",
        "overview.1.blocks.1.dwconv.weight",
        "context_proj.weight",
        "stages.2.blocks.0.dwconv1.weight",
        "stages.3.blocks.1.dwconv1.weight",
        "norm3.weight",
    ]
    layers = [layer[n] for n in in_order]
    assert layers == sorted(layers) and len(set(layers)) == len(layers) - 1  # the projection is the last block's


@pytest.mark.parametrize("size", [(64, 64), (45, 70)])
def test_merged_form_equals_the_training_form(size):
    model = trained()
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    expected = model(images)
    before = sum(p.numel() for p in model.parameters())
    assert model.reparameterize() is model
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
    assert sum(p.numel() for p in model.parameters()) < before
    built = build(num_classes=5, reparameterized=True)
    assert {n: p.shape for n, p in built.state_dict().items()} == {n: p.shape for n, p in model.state_dict().items()}


def test_evaluation_merges_without_changing_the_model():
    model = trained()
    state = {n: v.clone() for n, v in model.state_dict().items()}
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = model(images)
    for module in model.modules():
        if isinstance(module, DilatedDepthwiseConv):
            module.training = True  # its norms stay in evaluation: branch by branch
    torch.testing.assert_close(model(images), expected, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


def test_files_of_either_form_load_into_the_merged_one(official, tmp_path):
    load = partial(backbones.create_model, "overlock_xt", checkpoint_path=official, **SHALLOW)
    apart, merged = load(), load(reparameterized=True)
    assert all(
        torch.allclose(value, merged.state_dict()[n], rtol=1e-5, atol=1e-6)
        for n, value in apart.reparameterize().state_dict().items()
    )
    torch.save(merged.state_dict(), tmp_path / "merged.pt")
    again = backbones.create_model(
        "overlock_xt", checkpoint_path=tmp_path / "merged.pt", reparameterized=True, **SHALLOW
    )
    assert all(torch.equal(value, again.state_dict()[n]) for n, value in merged.state_dict().items())
    with pytest.raises(InputError, match=r"holds the merged form.* reparameterized=True"):
        backbones.create_model("overlock_xt", checkpoint_path=tmp_path / "merged.pt", **SHALLOW)


def test_auxiliary_head_is_there_unused_trained_or_absent(official):
    images = torch.randn(2, 3, 64, 64)
    load = partial(backbones.create_model, "overlock_xt", checkpoint_path=official, **SHALLOW)
    kept, used, absent = load(), load(aux_head=True), load(aux_head=False)
    assert kept.state_dict().keys() == used.state_dict().keys()
    assert {n for n in kept.state_dict() if n not in absent.state_dict()} == {
        n for n in kept.state_dict() if n.startswith("aux_head.")
    }
    assert torch.equal(kept.train()(images), absent.train()(images))
    outputs = used.train()(images)
    assert isinstance(outputs, WithAuxiliary) and outputs.aux_logits.shape == outputs.logits.shape == (2, 1000)
    assert isinstance(used.eval()(images), torch.Tensor)


def test_a_loss_of_both_heads_reaches_every_parameter():
    model = build(aux_head=True, num_classes=7).train()
    logits, aux_logits = model(torch.randn(2, 3, 32, 32))
    (logits.square().sum() + 0.4 * aux_logits.square().sum()).backward()
    assert [n for n, p in model.named_parameters() if not p.grad.any()] == []
    with torch.no_grad():
        overview = model.forward_nets(torch.randn(2, 3, 32, 32), 3)[1]
        pooled = model.aux_head[0](overview).mean((2, 3))
        torch.testing.assert_close(model.aux_head[1](model.aux_head[0](overview)), model.aux_head[1].fc(pooled))


def test_an_auxiliary_head_that_is_not_trained_has_no_gradient_but_zero():
    """Data-parallel training asks for the gradient of every parameter."""
    model = backbones.create_model("overlock_xt", num_classes=7, **SHALLOW).train()
    images = torch.randn(2, 3, 32, 32)
    logits = model(images)
    logits.square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert all(p.grad.count_nonzero() == 0 for p in model.aux_head.parameters())
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(images), model(images), rtol=1e-2, atol=1e-2)


def test_auxiliary_head_follows_the_classifier(official, tmp_path, caplog):
    with caplog.at_level("INFO"):
        model = backbones.create_model("overlock_xt", checkpoint_path=official, num_classes=7, aux_head=True, **SHALLOW)
    assert model.aux_head[1].fc.weight.shape[0] == 7 and "aux_head.1.fc.weight" in caplog.text
    official_norm = torch.load(official)["aux_head.0.weight"]
    assert torch.equal(model.aux_head[0].weight, official_norm)
    model.reset_classifier(3)
    assert model.aux_head[1].fc.out_features == 3
    model.reset_classifier(0)
    assert model.aux_head is None
    torch.save(build(num_classes=7).state_dict(), tmp_path / "without.pt")
    build(num_classes=7, aux_head=True, checkpoint_path=tmp_path / "without.pt")


def test_dense_overview_net_continues_from_the_normed_map():
    images = torch.randn(1, 3, 64, 80)
    model = build(features_only=True, dense="segmentation").eval()
    before = model(images)
    nn.init.uniform_(model.model.norm1.bias)
    after = model(images)
    assert [torch.equal(b, a) for b, a in zip(before, after)] == [True, False, False, False]
    nn.init.uniform_(model.model.norm0.bias)
    assert [torch.equal(b, a) for b, a in zip(after, model(images))] == [False, True, True, True]


def test_detection_adds_the_overview_to_the_last_map():
    images = torch.randn(1, 3, 64, 80)
    detection = build(features_only=True, dense="detection").eval()
    segmentation = build(features_only=True, dense="segmentation").eval()
    out = detection.model.overview_out
    assert (out[2].weight == 1e-5).all()
    nn.init.ones_(out[2].weight)
    own = detection.model.state_dict()
    segmentation.model.load_state_dict({n: v for n, v in own.items() if not n.startswith("overview_out")})
    overview = segmentation.model.forward_nets(images, 3)[1]
    maps = segmentation(images)
    for y, e in zip(detection(images), [*maps[:3], maps[3] + out(overview)], strict=True):
        torch.testing.assert_close(y, e)


def test_a_classifiers_file_starts_a_detector(official):
    load = partial(backbones.create_model, "overlock_xt", checkpoint_path=official, **SHALLOW)
    dense = load(features_only=True, dense="detection")
    plain = load()
    assert torch.equal(dense.model.context_proj.weight, plain.context_proj.weight)
    assert (dense.model.norm3.weight == 1).all() and (dense.model.overview_out[2].weight == 1e-5).all()


def test_early_maps_need_no_overview_net():
    early = build(features_only=True, out_indices=(0, 1)).model
    assert not list(early.overview.parameters()) and not list(early.context_proj.parameters())
    third = build(features_only=True, dense="detection", out_indices=(2,))
    names = {n.split(".")[1] for n, _ in third.named_parameters()}
    assert {"norm1", "norm2", "overview"} <= names and not {"norm0", "norm3", "overview_out"} & names
    images = torch.randn(1, 3, 64, 64)
    assert third(images)[0].shape[1] == third.feature_info.channels()[0]
    early.reset_classifier(4, "avg")
    assert early.eval()(images).shape == (1, 4)


@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_a_single_image_are_right(training):
    """PyTorch's batch norm on CPU has wrong ones at batch size 1 where a gradient comes in with transposed strides."""
    model = trained().train(training)
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(images).square().sum(), images)
    with torch.no_grad():
        direction = torch.randn_like(images)
        sides = [model(images + step * direction).square().sum() for step in (1e-5, -1e-5)]
    assert (gradient * direction).sum().item() == pytest.approx((sides[0] - sides[1]).item() / 2e-5, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(depths=(1, 1, 1)), r"four dims .* but got .*depths=\(1, 1, 1\)"),
        (dict(sub_depths=(1, 0)), r"sub_depths=\(1, 0\)"),
        (dict(num_heads=(5, 2)), "48 channels cannot be split into two halves of 10 heads"),
        (dict(kernel_sizes=(7, 7, 6, 5)), "no branches for a kernel of 6 tokens"),
        (dict(stem_stride=3), "stride of 2 or 4 pixels, but stem_stride is 3"),
    ],
)
def test_hyper_parameters_that_do_not_fit(wrong, said):
    with pytest.raises(InputError, match=said):
        build(**wrong)
