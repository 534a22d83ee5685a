"""Decoders and heads of semantic segmentation on every family's maps, and the backbone's layers in such a network."""

import pytest
import torch
import torch.nn.functional as F
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.segformer.decoder import SegformerDecoder
from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from timm.optim._param_groups import param_groups_layer_decay

import backbones
from backbones import InputError
from training.tasks.dense.decoders import (
    DECODERS,
    FCNHead,
    SegmentationHead,
    WithAuxiliary,
    build_decoder,
    build_segmentation_model,
)
from training.tasks.dense.model import freeze_stages
from training.tasks.dense.neck import fitting_neck

FAMILIES = backbones.list_families()
STEM = {"gcvit": {"stem_stride": 2}, "overlock": {"stem_stride": 4}, "volo": {"patch_size": 8}}
LIBRARY = ("upernet", "fpn", "segformer")
CHANNELS = [5, 6, 7, 8]


def nano(family: str, **keywords):
    """The smallest network of a family, whose maps begin at stride 2 or 4 as its pictures are small."""
    arguments = dict(in_chans=1, img_size=(64, 96), features_only=True, dense="segmentation") | keywords
    return backbones.create_model(f"{family}_nano", **arguments)


def segmenter(family: str, decoder: str, width: int = 32, **keywords):
    """A network of four classes."""
    return build_segmentation_model(nano(family), 4, decoder, width=None if decoder == "linear" else width, **keywords)


def total(output) -> torch.Tensor:
    """A number that depends on all outputs."""
    return sum(x.square().mean() for x in (output if isinstance(output, tuple) else (output,)))


# Every family with every decoder


@pytest.mark.parametrize(("decoder", "neck"), [*((name, "auto") for name in DECODERS), ("segformer", "simple_pyramid")])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_with_every_decoder(family, decoder, neck):
    finest = 4 if neck == "simple_pyramid" else nano(family).feature_info.reduction()[0]
    model = segmenter(family, decoder, neck=neck, auxiliary=decoder == "upernet").train()
    optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, layer_decay=0.9)
    for size in ((64, 96), (61, 74)):
        output = model(torch.randn(2, 1, *size))
        assert isinstance(output, WithAuxiliary) == (decoder == "upernet")
        total(output).backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
        optimizer.step()
        optimizer.zero_grad()
    logits = model.eval()(torch.randn(1, 1, 64, 96))
    assert logits.shape == (1, 4, 64 // finest, 96 // finest) and logits.isfinite().all()


@pytest.mark.parametrize("dense", [None, "detection", "segmentation"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_at_its_published_strides(family, dense):
    """Of 200 x 264 pixels, and of these padded to multiples of 32: the finest map's size, and without any neck."""
    backbone = nano(family, dense=dense, **STEM.get(family, {"patch_size": 4}))
    model = build_segmentation_model(backbone, 4, "fpn", width=32, neck="auto" if family == "volo" else "none").eval()
    images = torch.randn(1, 1, 200, 264)
    with torch.inference_mode():
        assert model(images).shape == (1, 4, 50, 66)
        assert model(F.pad(images, (0, 24, 0, 24))).shape == (1, 4, 56, 72)


# The library's decoders


def library(name: str, width: int):
    kinds = {
        "upernet": lambda: UPerNetDecoder([1, 1, *CHANNELS], decoder_channels=width),
        "fpn": lambda: FPNDecoder([1, 1, *CHANNELS], pyramid_channels=2 * width, segmentation_channels=width),
        "segformer": lambda: SegformerDecoder([1, 0, *CHANNELS], segmentation_channels=width),
    }
    return kinds[name]().eval()


@pytest.mark.parametrize("name", LIBRARY)
def test_decoders_are_the_librarys(name):
    ours, theirs = build_decoder(name, CHANNELS, 32).eval(), library(name, 32)
    theirs.load_state_dict(ours.decoder.state_dict())
    maps = [torch.randn(2, c, 24 // 2**i, 16 // 2**i) for i, c in enumerate(CHANNELS)]
    kept = [x.clone() for x in maps]
    expected = theirs([torch.empty(2, 1, 96, 64), torch.empty(2, 0, 48, 32), *(x.clone() for x in maps)])
    assert torch.equal(ours(maps), expected) and ours.out_channels == expected.shape[1] == 32
    assert all(torch.equal(a, b) for a, b in zip(maps, kept))  # UPerNet writes into the list that it gets


@pytest.mark.parametrize("name", LIBRARY)
@pytest.mark.parametrize("rounding", ["up", "down"])
def test_maps_that_are_not_twice_as_large_are_padded_with_zeros(name, rounding):
    decoder = build_decoder(name, CHANNELS, 32).eval()
    sizes = [(25, 33)]
    for _ in range(3):
        sizes.append(tuple((side + (rounding == "up")) // 2 for side in sizes[-1]))
    maps = [torch.randn(1, c, *size) for c, size in zip(CHANNELS, sizes)]
    full = [torch.zeros(1, c, 32 // 2**i, 40 // 2**i) for i, c in enumerate(CHANNELS)]
    for x, y in zip(full, maps):
        x[:, :, : y.shape[2], : y.shape[3]] = y
    assert torch.equal(decoder(maps), decoder(full)[:, :, :25, :33])


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_gradients_of_small_batches(name, layout):
    """Against finite differences, in training mode: batch norm's were once wrong for one picture."""
    decoder = build_decoder(name, CHANNELS, None if name == "linear" else 32).double()
    batch = 2 if name == "upernet" else 1
    maps = [torch.randn(batch, c, 16 // 2**i, 24 // 2**i).double() for i, c in enumerate(CHANNELS)]
    maps = [x.contiguous(memory_format=layout).requires_grad_() for x in maps]
    weight = torch.randn_like(decoder(maps))
    inputs = [*maps, *decoder.parameters()]
    grads = torch.autograd.grad((decoder(maps) * weight).sum(), inputs)
    directions = [torch.randn_like(x) for x in inputs]
    step = 1e-8  # short, so that no ReLU switches on the way
    ends = []
    with torch.no_grad():
        for sign in (1, -2):
            for x, direction in zip(inputs, directions):
                x += sign * step * direction
            ends.append((decoder(maps) * weight).sum())
    slope = sum((grad * direction).sum() for grad, direction in zip(grads, directions))
    torch.testing.assert_close((ends[0] - ends[1]) / (2 * step), slope, rtol=1e-6, atol=1e-6)


def test_upernet_asks_for_more_than_one_picture():
    decoder = build_decoder("upernet", CHANNELS, 32)
    maps = [torch.randn(1, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate(CHANNELS)]
    with pytest.raises(InputError, match=r"batch of one picture. Train with trainer.batch_size=2"):
        decoder(maps)
    assert decoder.eval()(maps).shape == (1, 32, 16, 16)


def test_what_cannot_be_decoded_is_said():
    for name, width, said in (
        ("uper", None, r"'uper', but must be one of upernet, .* Did you mean upernet\?"),
        ("fpn", 48, r"32 groups of channels, so task.width=48 must be divisible"),
        ("vwformer", 0, r"task.width is 0"),
        ("linear", 64, r"remove task.width=64"),
    ):
        with pytest.raises(InputError, match=said):
            build_decoder(name, CHANNELS, width)
    with pytest.raises(InputError, match=r"those of the backbone are at 4, 8, 8 and 8; add task.neck=simple_pyramid"):
        build_segmentation_model(nano("volo"), 4, "fpn", neck="none")
    with pytest.raises(InputError, match=r"leave out task.neck=simple_pyramid and the auxiliary head"):
        build_segmentation_model(nano("swin"), 4, "linear", auxiliary=True)


def test_decoders_have_their_usual_widths():
    widths = {name: build_decoder(name, CHANNELS).out_channels for name in DECODERS}
    assert widths == {"upernet": 512, "fpn": 128, "segformer": 256, "vwformer": 256, "linear": sum(CHANNELS)}


# Heads and the network


def test_a_linear_probe_is_linear():
    """In evaluation: the logits of a sum of maps are the sum of the logits, apart from what no map gives."""
    decoder, head = build_decoder("linear", CHANNELS).eval(), SegmentationHead(sum(CHANNELS), 4).eval()
    one, two = ([torch.randn(1, c, 9 - i, 11) for i, c in enumerate(CHANNELS)] for _ in range(2))

    def logits(maps):
        return head(decoder(maps))

    none = logits([torch.zeros_like(x) for x in one])
    both = logits([x + y for x, y in zip(one, two)])
    torch.testing.assert_close(both - none, logits(one) + logits(two) - 2 * none)


def test_heads():
    maps = torch.randn(2, 8, 6, 7)
    head, aux = SegmentationHead(8, 5, dropout=0.5), FCNHead(8, 5)
    assert head.eval()(maps).shape == aux(maps).shape == (2, 5, 6, 7)
    torch.testing.assert_close(head(maps), F.conv2d(maps, head[1].weight, head[1].bias))
    dropped = head.train()[0](maps)
    assert all(bool(x.any()) == bool((x != 0).all()) for x in dropped.flatten(0, 1))  # whole channels


def test_auxiliary_logits_are_of_stride_16_and_of_training():
    model = segmenter("swin", "segformer", neck="simple_pyramid", auxiliary=True)
    output = model.train()(torch.randn(2, 1, 64, 96))
    assert output.logits.shape == (2, 4, 16, 24) and output.aux_logits.shape == (2, 4, 4, 6)
    assert model.eval()(torch.randn(2, 1, 64, 96)).shape == (2, 4, 16, 24)
    total(output.aux_logits).backward()
    assert model.neck.levels[2][0].weight.grad.any()
    assert all(p.grad is None for p in model.decoder.parameters())


# The backbone's layers


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_of_the_backbone_decay_and_all_else_is_the_last_one(family):
    model = segmenter(family, "segformer")
    network = model.backbone.model
    own = group_parameters(network, network.group_matcher(), reverse=True)
    count = max(own.values()) + 1
    names = {id(p): name for name, p in model.named_parameters()}
    kept = model.no_weight_decay()
    assert kept == {f"backbone.model.{name}" for name in network.no_weight_decay()} and kept <= set(names.values())
    seen = []
    for group in param_groups_layer_decay(model, 0.05, no_weight_decay_list=kept, layer_decay=0.5):
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            layer = own[name.removeprefix("backbone.model.")] if name.startswith("backbone.") else count
            assert group["lr_scale"] == 0.5 ** (count - layer), name
            assert (group["weight_decay"] == 0) == (parameter.ndim <= 1 or name in kept), name
    assert sorted(seen) == sorted(names.values())
    stages = group_parameters(network, network.group_matcher(coarse=True), reverse=True)
    coarse = group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    assert {name: coarse[f"backbone.model.{name}"] for name in stages} == stages
    assert {group for name, group in coarse.items() if not name.startswith("backbone.")} == {max(stages.values()) + 1}


@pytest.mark.parametrize("family", FAMILIES)
def test_frozen_stages_stay_as_they_are(family):
    before = None
    for stages in (-1, 0, 1, 2, 3, 4):
        model = segmenter(family, "segformer")
        network = model.backbone.model
        freeze_stages(model.backbone, stages)
        frozen = {name for name, p in network.named_parameters() if not p.requires_grad}
        assert before is None or before <= frozen
        for i in range(4):
            parameters = [p for stage in network.stages[i : i + 1] for p in stage.parameters()]
            assert all(p.requires_grad != (i < stages) for p in parameters)
        assert all(p.requires_grad == (stages < 1) for p in network.stem.parameters())
        assert {name for name, p in network.named_parameters() if p.requires_grad} or stages == 4
        before = frozen

        model.train()
        state = {name: value.clone() for name, value in network.state_dict().items()}
        optimizer = create_optimizer_v2(model, "adamw", lr=0.1, layer_decay=0.9)
        total(model(torch.randn(2, 1, 32, 64))).backward()
        optimizer.step()
        parts = [f"stages.{i}." for i in range(stages)] + ["stem."] * (stages > 0) + [""] * (stages == 4)
        fixed = [name for name in state if name.startswith(tuple(parts))]
        assert bool(fixed) == (stages > 0) and all(
            torch.equal(network.state_dict()[name], state[name]) for name in fixed
        )
        assert any(not torch.equal(network.state_dict()[name], state[name]) for name in state) == (stages < 4)
        assert [stage.training for stage in network.stages] == [i >= stages for i in range(4)]
        assert network.training == (stages < 4) and not any(module.training for module in model.eval().modules())


def test_overlock_is_frozen_in_the_order_in_which_pictures_pass():
    backbone = nano("overlock")
    freeze_stages(backbone, 2)
    assert all(p.requires_grad for p in backbone.model.overview.parameters())
    freeze_stages(backbone, 3)
    assert not any(p.requires_grad for p in backbone.model.overview.parameters())
    assert not any(p.requires_grad for p in backbone.model.context_proj.parameters())


def test_more_stages_than_there_are_cannot_be_frozen():
    for stages in (5, -2):
        with pytest.raises(InputError, match=rf"{stages} stages of the backbone cannot be frozen, as it has 4"):
            freeze_stages(nano("swin"), stages)


@pytest.mark.parametrize(
    ("kind", "first", "read", "read_of_volo"),
    [
        ("auto", 0, [0, 1, 2, 3], [0, 3]),
        ("auto", 1, [1, 2, 3], [3]),
        ("simple_pyramid", 0, [1, 2, 3], [0, 3]),
        ("simple_pyramid", 1, [2, 3], [3]),
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_that_are_read_are_those_that_were_there(family, kind, first, read, read_of_volo):
    backbone, images = nano(family).eval(), torch.randn(1, 1, 64, 96)
    strides, maps = backbone.feature_info.reduction(), backbone(images)
    read = read_of_volo if family == "volo" else read
    finest = 4 * 2**first if family == "volo" or kind == "simple_pyramid" else strides[first]
    neck = fitting_neck(backbone, kind, 8, finest)
    assert list(backbone.out_indices) == read and backbone.feature_info.reduction() == [strides[i] for i in read]
    outputs = backbone(images)
    assert len(outputs) == len(read) and all(torch.equal(x, maps[i]) for x, i in zip(outputs, read))
    assert backbone.feature_info.channels() == [x.shape[1] for x in outputs]
    total(tuple(outputs)).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []
    assert neck.strides == [finest * 2**i for i in range(4 - first)]
    shapes = [(1, channels, 64 // stride, 96 // stride) for channels, stride in zip(neck.channels, neck.strides)]
    assert [x.shape for x in neck(outputs)] == shapes
    if kind == "simple_pyramid":  # a backbone that has only what is read keeps it
        fitting_neck(backbone, kind, 8, finest)
        assert list(backbone.out_indices) == read


def test_a_pyramid_of_coarse_patches_leaves_out_the_last_stage():
    backbone = nano("swin", patch_size=8)
    model = build_segmentation_model(backbone, 4, "segformer", neck="simple_pyramid", width=32)
    assert len(backbone.model.stages) == 3 and model(torch.randn(2, 1, 64, 96)).shape == (2, 4, 16, 24)
    model = build_segmentation_model(nano("swin", patch_size=8), 4, "segformer", width=32)
    assert len(model.backbone.model.stages) == 4 and model(torch.randn(2, 1, 64, 96)).shape == (2, 4, 8, 12)
