"""Semantic segmentation from pictures to losses and label maps: preparation, windows, views and what is counted."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import backbones
from backbones import InputError
from training.annotation import IGNORED
from training.resizing import resized_size
from training.tasks.dense import SemanticSegmentation
from training.tasks.dense.decoders import WithAuxiliary, build_segmentation_model
from training.tasks.dense.preparation import batched, padded_maps, resized
from training.tasks.dense.segmenter import InferenceSettings, Segmenter

fast = settings(max_examples=12, deadline=None)
sides = st.integers(1, 80)
DATA = SimpleNamespace(mean=[0.5], std=[0.25], img_size=64, max_size=None)
CLASSES = ["a", "b", "c", "d"]


class Pools(torch.nn.Module):
    """Logits of 4 classes at a quarter of the size, by what is seen and by where in the picture or window it is."""

    def __init__(self, auxiliary: bool = False):
        super().__init__()
        self.conv, self.auxiliary = torch.nn.Conv2d(1, 4, 3, padding=1), auxiliary
        torch.nn.init.normal_(self.conv.weight)

    def group_matcher(self):
        return {}

    def forward(self, images):
        y, x = torch.meshgrid(*(torch.linspace(0, 1, side // 4) for side in images.shape[2:]), indexing="ij")
        logits = self.conv(F.avg_pool2d(images, 4)) + torch.stack([x, y, x * y, -x])
        return WithAuxiliary(logits, -logits[:, :, ::4, ::4]) if self.training and self.auxiliary else logits


def segmenter(network=None, data=DATA, aux_weight: float = 0.4, weights=(1.0,) * 4, **inference) -> Segmenter:
    return Segmenter(network or Pools(), data, InferenceSettings(**inference), aux_weight, torch.tensor(weights))


def picture(height: int, width: int, channels: int = 1) -> torch.Tensor:
    return torch.randint(0, 256, (channels, height, width), dtype=torch.uint8)


def label_map(height: int, width: int, ignored: float = 0.3) -> torch.Tensor:
    labels = torch.randint(0, 4, (height, width), dtype=torch.int16)
    return labels.masked_fill(torch.rand(height, width) < ignored, IGNORED)


# Preparation


@fast
@given(
    sizes=st.lists(st.tuples(sides, sides), min_size=1, max_size=3),
    channels=st.sampled_from([1, 3]),
    floats=st.booleans(),
    seed=st.integers(0, 99),
)
def test_pictures_side_by_side_are_normalised_and_filled_up(sizes, channels, floats, seed):
    torch.manual_seed(seed)
    images = [picture(*size, channels) for size in sizes]
    images = [image + torch.rand(image.shape) for image in images] if floats else images
    mean, std = torch.rand(channels) * 255, 1 + torch.rand(channels) * 99
    kept = [image.clone() for image in images]
    batch = batched(images, mean, std)
    height, width = (max(size[i] for size in sizes) for i in range(2))
    assert batch.shape[2] % 32 == batch.shape[3] % 32 == 0
    assert 0 <= batch.shape[2] - height < 32 and 0 <= batch.shape[3] - width < 32
    assert batch.shape[:2] == (len(images), channels) and batch.dtype == torch.float32
    assert batch.is_contiguous(memory_format=torch.channels_last)
    expected = torch.zeros(batch.shape)
    for number, image in enumerate(images):
        for channel in range(channels):
            expected[number, channel, : image.shape[1], : image.shape[2]] = (
                image[channel].float() - mean[channel]
            ) / std[channel]
    torch.testing.assert_close(batch, expected)
    assert all(torch.equal(a, b) for a, b in zip(images, kept))


def test_maps_are_filled_up_where_there_is_no_label():
    maps = [label_map(5, 9), label_map(8, 3)]
    together = padded_maps(maps, 8, 12, value=IGNORED)
    assert together.shape == (2, 8, 12) and together.dtype == torch.int64
    for one, labels in zip(together, maps):
        assert torch.equal(one[: labels.shape[0], : labels.shape[1]], labels.long())
        assert (one != IGNORED).sum() == (labels != IGNORED).sum()


# Losses


def loss_by_loops(logits, maps, weights) -> float:
    """The mean of -log p over labelled pixels by their class's weight, of logits enlarged to the batch."""
    logits = F.interpolate(logits, maps.shape[1:], mode="bilinear").log_softmax(1).tolist()
    found = [
        (-logits[picture][label][y][x], weights[label])
        for picture, rows in enumerate(maps.tolist())
        for y, row in enumerate(rows)
        for x, label in enumerate(row)
        if label != IGNORED
    ]
    return sum(loss * weight for loss, weight in found) / sum(weight for _, weight in found)


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0, 1.0), (0.5, 3.0, 1.0, 20.0)])
@pytest.mark.parametrize("auxiliary", [False, True])
@pytest.mark.parametrize("sizes", [[(32, 64)], [(33, 50), (20, 70)], [(64, 31), (64, 64), (5, 5)]])
def test_the_loss_is_the_cross_entropy_of_labelled_pixels(sizes, auxiliary, weights):
    images, targets = [picture(*size) for size in sizes], [{"map": label_map(*size)} for size in sizes]
    model = segmenter(Pools(auxiliary), aux_weight=0.3, weights=weights).train()
    losses = model(images, targets)
    batch = batched(images, torch.tensor([127.5]), torch.tensor([63.75]))
    maps = padded_maps([target["map"] for target in targets], *batch.shape[2:], IGNORED)
    output = model.network(batch)
    if auxiliary:
        expected = 0.3 * loss_by_loops(output.aux_logits, maps, weights)
        assert losses["aux_loss"].item() == pytest.approx(expected, rel=1e-4)
        output = output.logits
    assert losses["loss"].item() == pytest.approx(loss_by_loops(output, maps, weights), rel=1e-4)
    assert set(losses) == ({"loss", "aux_loss"} if auxiliary else {"loss"})
    # Twice the same pictures, or pictures without labels beside them, are as much to learn.
    more = [*images, picture(30, 20), *images]
    labels = [*targets, {"map": torch.full((30, 20), IGNORED, dtype=torch.int16)}, *targets]
    assert model(more, labels)["loss"].item() == pytest.approx(losses["loss"].item(), rel=1e-4)


@pytest.mark.parametrize("family", ["swin", "volo"])
@pytest.mark.parametrize("labelled", [True, False])
def test_every_parameter_has_a_gradient(family, labelled):
    """Data-parallel training relies on it, where nothing is labelled too: there the loss is 0, and no NaN."""
    network = build_segmentation_model(nano(family), 4, "fpn", width=32, auxiliary=True)
    model = segmenter(network).train()
    maps = [label_map(61, 90, ignored=0.3 if labelled else 1.0), label_map(40, 33, ignored=1.0)]
    losses = model([picture(61, 90), picture(40, 33)], [{"map": each} for each in maps])
    assert all(loss > 0 if labelled else loss == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert all(bool(p.grad.any()) == labelled for p in model.parameters())


def nano(family: str):
    return backbones.create_model(
        f"{family}_nano", in_chans=1, img_size=(64, 96), features_only=True, dense="segmentation"
    )


# Predictions


@fast
@given(height=st.integers(1, 300), width=st.integers(1, 300), side=st.integers(32, 128))
def test_windows_cover_a_picture_and_overlap_by_a_third(height, width, side):
    windows = list(segmenter(slide=side)._windows(height, width))
    seen = torch.zeros(height, width)
    for top, left, bottom, right in windows:
        assert 0 <= top < bottom <= height and 0 <= left < right <= width
        assert bottom - top == min(side, height) and right - left == min(side, width)
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1 and len(set(windows)) == len(windows)
    for axis, length in ((0, height), (1, width)):
        starts = sorted({window[axis] for window in windows})
        assert all(b - a <= side * 2 // 3 for a, b in pairwise(starts))
        assert len(starts) == 1 + max(0, -(-(length - side) // (side * 2 // 3)))  # no more than it takes
    assert list(segmenter()._windows(height, width)) == [(0, 0, height, width)]


def by_loops(model, image, slide, scales, flip) -> torch.Tensor:
    """The mean probabilities over sizes and sides, of the mean logits over windows."""
    seen = []
    for scale in scales:
        preparation = model.preparation
        scaled = resized(image, resized_size(*image.shape[1:], preparation.img_size, preparation.max_size, scale))
        height, width = scaled.shape[1:]
        for flipped in (False, True) if flip else (False,):
            view = torch.flip(scaled, [2]) if flipped else scaled
            found = [[[] for _ in range(width)] for _ in range(height)]
            side, tops, lefts = slide or max(height, width), {0}, {0}
            for starts, length in ((tops, height), (lefts, width)):
                while max(starts) + side < length:
                    starts.add(min(max(starts) + side * 2 // 3, length - side))
            for top in tops:
                for left in lefts:
                    window = view[:, top : top + side, left : left + side]
                    batch = batched([window], preparation.mean, preparation.std)
                    logits = F.interpolate(model.network(batch), batch.shape[2:], mode="bilinear")[0]
                    for y in range(window.shape[1]):
                        for x in range(window.shape[2]):
                            found[top + y][left + x].append(logits[:, y, x])
            mean = torch.stack([torch.stack([torch.stack(f).mean(0) for f in row], 1) for row in found], 1)
            mean = torch.flip(mean, [2]) if flipped else mean
            enlarged = F.interpolate(mean[None], image.shape[1:], mode="bilinear")[0]
            weighted = enlarged.softmax(0) / model.class_weights[:, None, None]
            seen.append(weighted / weighted.sum(0))
    return sum(seen) / len(seen)


@pytest.mark.parametrize(
    ("size", "img_size", "max_size", "slide", "scales", "flip"),
    [
        ((40, 70), 40, None, None, [1.0], False),
        ((40, 70), 40, None, 32, [1.0], False),
        ((70, 33), 33, None, 32, [1.0], True),
        ((30, 50), 45, 60, 32, [0.5, 1.0, 1.4], False),
        ((30, 50), 20, None, 48, [0.75, 1.25], True),
        ((100, 40), 40, 64, None, [1.0, 1.5], True),
    ],
)
def test_probabilities_are_the_mean_over_windows_sizes_and_sides(size, img_size, max_size, slide, scales, flip):
    data = SimpleNamespace(mean=[0.5], std=[0.25], img_size=img_size, max_size=max_size)
    weights = (1.0, 1.3, 0.8, 1.1) if flip else (1.0,) * 4
    model = segmenter(data=data, weights=weights, slide=slide, scales=scales, flip=flip).eval()
    image = picture(*size)
    with torch.inference_mode():
        found = model.probabilities(image)
        expected = by_loops(model, image, slide, scales, flip)
        [prediction] = model([image])
    assert found.shape == (4, *size)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.sum(0), torch.ones(size))
    assert prediction["map"].dtype == torch.int64 and torch.equal(prediction["map"], found.argmax(0))
    assert len(prediction["map"].unique()) > 1


@pytest.mark.parametrize("inference", [{}, {"slide": 48, "flip": True, "scales": [0.5, 1.0]}])
@pytest.mark.parametrize("family", ["swin", "volo"])
def test_predictions_do_not_depend_on_other_pictures(family, inference):
    network = build_segmentation_model(nano(family), 4, "fpn", width=32)
    torch.nn.init.normal_(network.head[1].weight)
    model = segmenter(network, **inference).eval()
    images = [picture(64, 90), picture(131, 70), picture(30, 100)]
    with torch.inference_mode():
        together, alone = model(images), [model([image])[0] for image in images]
    for image, one, other in zip(images, together, alone, strict=True):
        assert list(one) == ["map"] and one["map"].shape == image.shape[1:] and torch.equal(one["map"], other["map"])
        assert one["map"].min() >= 0 and one["map"].max() < 4


def test_what_is_read_after_mixed_precision_is_float():
    model = segmenter().eval()
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        probabilities = model.probabilities(picture(40, 50))
    assert probabilities.dtype == torch.float32
    torch.testing.assert_close(probabilities.sum(0), torch.ones(40, 50))


# Settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"inference": {"slide": 16}}, r"task.inference.slide must be null or at least 32 pixels .* 16 and \[1.0\]"),
        ({"inference": {"scales": []}}, r"scales positive numbers, but they are None and \[\]"),
        ({"inference": {"scales": [1.0, 0.0]}}, r"scales positive numbers"),
        ({"inference": {"slides": 64}}, r"There is no option task.inference.slides; there is: slide, scales, flip"),
        ({"decoder": "unet"}, r"task.decoder is 'unet', but must be one of upernet"),
        ({"decodr": "fpn"}, r"There is no option task.decodr; .* Did you mean decoder\?"),
        (
            {"class_weights": [1.0, 2.0, 3.0]},
            r"a positive number for each of the 4 classes \(a, b, c, …\)",
        ),
        ({"class_weights": [1.0, 2.0, 3.0, 0]}, r"task.class_weights must be null or a positive number"),
        ({"neck": "none"}, r"at 4, 8, 8 and 8; add task.neck=simple_pyramid"),
        ({"aux_weight": "much"}, r"task.aux_weight is 'much', but must be of the type float"),
    ],
)
def test_settings_that_cannot_work(options, said):
    with pytest.raises(InputError, match=said):
        SemanticSegmentation.build(nano("volo"), CLASSES, None, DATA, **options)


def test_a_weight_of_zero_has_no_auxiliary_head():
    for weight, names in ((0, {"loss"}), (0.4, {"loss", "aux_loss"})):
        task = SemanticSegmentation.build(
            nano("swin"), CLASSES, None, DATA, decoder="segformer", width=32, aux_weight=weight
        )
        losses = task.model.train()([picture(32, 40)] * 2, [{"map": label_map(32, 40)}] * 2)
        assert losses.keys() == names
