"""Mask2Former around our backbones: what it learns from, and how queries become objects and segments."""

import random
import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

import backbones
from backbones import InputError
from training.tasks.dense import InstanceSegmentation, PanopticSegmentation
from training.tasks.dense.mask2former import QuerySegmenter, QuerySettings
from training.tasks.dense.neck import fitting_neck

pytest.importorskip("transformers")

THINGS = [True, False, True, False]
DATA = SimpleNamespace(mean=[0.5], std=[0.25], img_size=64, max_size=96)
TINY = dict(width=32, encoder_layers=1, decoder_layers=2, queries=5, points=32)


def nano(family: str):
    return backbones.create_model(
        f"{family}_nano", in_chans=1, img_size=(64, 96), features_only=True, dense="segmentation"
    )


def segmenter(family: str = "swin", things: list[bool] | None = None, **options) -> QuerySegmenter:
    backbone, settings = nano(family), QuerySettings(**(TINY | options))
    neck = fitting_neck(backbone, settings.neck, settings.width)
    return QuerySegmenter(backbone, neck, len(THINGS), things, settings, DATA)


def example(height: int, width: int, rectangles: list[tuple[int, int, int, int]], labels: list[int]):
    """Noise with brighter rectangles (left, top, right, bottom), and their masks."""
    image = torch.randint(0, 100, (1, height, width), dtype=torch.uint8)
    masks = torch.zeros(len(rectangles), height, width, dtype=torch.uint8)
    for mask, (left, top, right, bottom) in zip(masks, rectangles):
        mask[top:bottom, left:right] = 1
        image[:, top:bottom, left:right] += 100
    return image, {"masks": masks, "labels": torch.tensor(labels).long(), "crowd": torch.zeros(len(labels)).bool()}


@pytest.fixture
def batch():
    """Pictures of different sizes, none of them square, one of them without an object."""
    examples = [
        example(64, 90, [(5, 8, 40, 50), (50, 10, 80, 30)], [0, 3]),
        example(48, 70, [], []),
        example(61, 40, [(2, 20, 35, 58)], [1]),
    ]
    return [image for image, _ in examples], [target for _, target in examples]


def without_objects(targets):
    return [{name: value[:0] for name, value in target.items()} for target in targets]


def loss_of(model, images, targets) -> torch.Tensor:
    """The loss with the same draw of points each time."""
    torch.manual_seed(0)
    losses = model.train()(images, targets)
    assert list(losses) == ["loss"] and losses["loss"].shape == () and losses["loss"].isfinite()
    return losses["loss"]


# Learning


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["swin", "volo"])
def test_every_parameter_has_a_gradient(family, precision, batch):
    """Data-parallel training relies on it, in pictures without objects too."""
    model, (images, targets) = segmenter(family), batch
    for given in (targets, without_objects(targets), [targets[0]]):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = loss_of(model, images[: len(given)], given)
        loss.backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
        if given is targets:
            # As it begins, deformable attention samples where it does whatever the level.
            assert [name for name, p in model.named_parameters() if not p.grad.any()] == [
                "network.model.pixel_level_module.decoder.level_embed"
            ]


def test_a_few_steps_lower_the_loss(batch):
    model, (images, targets) = segmenter(), batch
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = loss_of(model, images, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-3:]) < 0.7 * sum(losses[:3])


def test_nothing_is_learned_from_crowds(batch):
    model, (images, targets) = segmenter(), batch
    crowds = [target | {"crowd": torch.ones_like(target["crowd"])} for target in targets]
    assert loss_of(model, images, crowds) == loss_of(model, images, without_objects(targets))
    beside = [targets[0] | {"crowd": torch.tensor([True, False])}, *targets[1:]]
    alone = [{name: value[1:] for name, value in targets[0].items()}, *targets[1:]]
    assert loss_of(model, images, beside) == loss_of(model, images, alone) != loss_of(model, images, targets)


def test_there_may_be_more_objects_than_queries():
    image, target = example(64, 64, [(8 * i, 0, 8 * i + 8, 64) for i in range(8)], [0, 1] * 4)
    assert len(target["labels"]) > TINY["queries"] and loss_of(segmenter(), [image], [target]) > 0


def test_the_backbone_is_as_it_was_and_gives_the_maps(batch):
    backbone = nano("swin")
    state = {name: value.clone() for name, value in backbone.state_dict().items()}
    settings = QuerySettings(**TINY)
    model = QuerySegmenter(backbone, fitting_neck(backbone, "auto", 32), 4, None, settings, DATA).train()
    assert all(torch.equal(backbone.state_dict()[name], value) for name, value in state.items())
    assert model.network.model.pixel_level_module.encoder.backbone is backbone
    assert not any("resnet" in type(module).__name__.lower() for module in model.modules())
    prefix = "network.model.pixel_level_module.encoder.backbone"
    assert {name for name, _ in model.named_parameters() if name.startswith(prefix)} == {
        f"{prefix}.{name}" for name, _ in backbone.named_parameters()
    }
    assert model.group_matcher()(f"{prefix}.model.stem.proj.weight") == (0,)
    decoder = model.network.model.transformer_module.decoder
    assert len(decoder.layers) == 2 and len(model.network.model.pixel_level_module.decoder.encoder.layers) == 1
    output = model.eval().network(torch.randn(1, 1, 64, 96))
    assert output.masks_queries_logits.shape == (1, 5, 32, 48)  # of the finest map
    assert output.class_queries_logits.shape == (1, 5, 5)


# From queries to objects and segments


SIZES = [(64, 90), (30, 100), (131, 70)]  # as it is, made larger up to the limit, made smaller


@pytest.mark.parametrize("family", ["swin", "volo"])
def test_predictions_are_of_the_pictures_own_pixels(family):
    images = [torch.randint(0, 256, (1, *size), dtype=torch.uint8) for size in SIZES]
    objects, segments = segmenter(family), segmenter(family, THINGS, score_threshold=0.0, overlap_threshold=0.0)
    with torch.inference_mode():
        predictions = objects.eval()(images), segments.eval()(images)
    for (height, width), found in zip(SIZES, predictions[0], strict=True):
        count = len(found["labels"])
        assert 0 < count <= 5 * 4 and found["masks"].shape == (count, height, width)
        assert found["masks"].dtype == torch.bool and found["masks"].flatten(1).any(1).all()
        assert found["scores"].shape == (count,) and (found["scores"] > 0).all() and (found["scores"] <= 1).all()
        assert found["labels"].dtype == torch.int64 and set(found["labels"].tolist()) <= {0, 1, 2, 3}
        for mask, box in zip(found["masks"], found["boxes"].tolist()):
            rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
            assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    for size, found in zip(SIZES, predictions[1], strict=True):
        numbers = set(found["segments"].unique().tolist()) - {-1}
        assert found["segments"].shape == size and found["segments"].dtype == torch.int64
        assert numbers == set(range(len(found["labels"]))) and found["labels"].dtype == torch.int64
        assert set(found["labels"].tolist()) <= {0, 1, 2, 3}


@pytest.mark.parametrize("size", SIZES)
def test_masks_lie_where_the_picture_shows_them(size):
    """With a network whose first query's mask is what is brighter than the mean, also in the padding."""

    class Bright(torch.nn.Module):
        def group_matcher(self):
            return {}

        def forward(self, batch):
            masks = torch.cat([20 * F.avg_pool2d(batch, 4), torch.full_like(F.avg_pool2d(batch, 4), -9)], 1)
            classes = torch.tensor([[[0.0, 0.0, 8.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 8.0]]])
            return SimpleNamespace(masks_queries_logits=masks, class_queries_logits=classes)

    height, width = size
    image = torch.zeros(1, height, width, dtype=torch.uint8)
    image[:, height // 3 :, width // 4 : width // 2] = 255
    for things in (None, THINGS):
        model = segmenter(things=things)
        model.network = Bright()
        [found] = model.eval()([image])
        assert found["labels"][0] == 2
        mask = found["masks"][0] if things is None else found["segments"] == 0
        truth = image[0] > 0
        assert (mask & truth).sum() > 0.85 * (mask | truth).sum()
    assert len(found["labels"]) == 1 and set(found["segments"].unique().tolist()) == {-1, 0}


def random_queries(seed: int, queries: int, height: int = 6, width: int = 7):
    """Probabilities (Q, 5), the last of no object, and smooth masks (Q, 6, 7) of which some are empty."""
    torch.manual_seed(seed)
    probabilities = (3 * torch.randn(queries, 5)).softmax(-1)
    masks = F.interpolate(2 * torch.randn(1, queries, 3, 3), (height, width), mode="bilinear")[0].sigmoid()
    masks[torch.rand(queries) < 0.2] *= 0.4
    return probabilities, masks


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("queries", [1, 6, 60])
def test_objects_are_the_surest_pairs_of_a_query_and_a_class(seed, queries):
    """The score is the class's probability times the mean of the mask's where it is above one half."""
    model = segmenter_without_network()
    probabilities, masks = random_queries(seed, queries)
    found = model._objects(probabilities, masks)
    pairs = [(probabilities[q, c].item(), q, c) for q in range(queries) for c in range(4)]
    expected = []
    for probability, query, label in sorted(pairs, reverse=True)[:100]:
        pixels = [value for value in masks[query].flatten().tolist() if value > 0.5]
        if pixels:
            expected.append((label, probability * sum(pixels) / len(pixels), masks[query] > 0.5))
    assert found["labels"].tolist() == [label for label, _, _ in expected]
    assert found["scores"].tolist() == pytest.approx([score for _, score, _ in expected], rel=1e-5)
    assert all(torch.equal(mask, pixels) for mask, (_, _, pixels) in zip(found["masks"], expected, strict=True))
    assert found["boxes"].shape == (len(expected), 4)


def segmenter_without_network(**options) -> QuerySegmenter:
    """Only what makes predictions of queries."""
    model = QuerySegmenter.__new__(QuerySegmenter)
    torch.nn.Module.__init__(model)
    model.settings, model.things, model.num_classes = QuerySettings(**options), THINGS, len(THINGS)
    return model


def segments_by_loops(probabilities, masks, score_threshold: float, overlap_threshold: float):
    """Numbers of all pixels, as lists, and the segments' labels."""
    sure = []
    for query, row in enumerate(probabilities.tolist()):
        label = max(range(5), key=lambda i, row=row: row[i])
        if label < 4 and row[label] > score_threshold:
            sure.append((row[label], label, masks[query].tolist()))
    rows, columns = range(masks.shape[1]), range(masks.shape[2])
    owners = [[max(range(len(sure)), key=lambda i, y=y, x=x: sure[i][0] * sure[i][2][y][x], default=None)
               for x in columns] for y in rows]  # fmt: skip
    numbers, labels = [[-1 for _ in columns] for _ in rows], []
    for i, (_, label, mask) in enumerate(sure):
        whole = [(y, x) for y in rows for x in columns if mask[y][x] >= 0.5]
        left = [(y, x) for y, x in whole if owners[y][x] == i]
        won = sum(owners[y][x] == i for y in rows for x in columns)
        if not left or won < overlap_threshold * len(whole):
            continue
        if THINGS[label] or label not in labels:
            labels.append(label)
            number = len(labels) - 1
        else:
            number = labels.index(label)
        for y, x in left:
            numbers[y][x] = number
    return numbers, labels


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("queries", [1, 8, 20])
def test_segments_are_those_of_the_paper(seed, queries):
    """Every pixel belongs to the surest query; what loses too much of its mask is left out; stuff is merged."""
    probabilities, masks = random_queries(seed, queries)
    thresholds = random.Random(seed).choice([(0.0, 0.0), (0.4, 0.3), (0.5, 0.8), (0.9, 0.5)])
    model = segmenter_without_network(score_threshold=thresholds[0], overlap_threshold=thresholds[1])
    found = model._segments(probabilities, masks)
    numbers, labels = segments_by_loops(probabilities, masks, *thresholds)
    assert found["segments"].tolist() == numbers and found["labels"].tolist() == labels
    assert found["labels"].dtype == found["segments"].dtype == torch.int64


def test_stuff_is_merged_and_things_are_not():
    masks = torch.zeros(5, 2, 6)
    for query in range(5):
        masks[query, :, query] = 0.9
    masks[4, :, 5] = 0.9
    probabilities = torch.full((5, 5), 0.01)
    for query, label in enumerate([1, 0, 1, 0, 3]):
        probabilities[query, label] = 0.96
    found = segmenter_without_network()._segments(probabilities, masks)
    assert found["labels"].tolist() == [1, 0, 0, 3] and found["segments"].tolist() == [[0, 1, 0, 2, 3, 3]] * 2
    # A weaker query loses what a surer one has too; with less than the threshold left it is not there at all.
    masks[1, :, 2:4], probabilities[1, 0], probabilities[3, 0] = 0.8, 0.99, 0.9
    masks[1, :, 3] = 0.95
    found = segmenter_without_network()._segments(probabilities, masks)
    assert found["labels"].tolist() == [1, 3] and found["segments"].tolist() == [[0, -1, 0, -1, 1, 1]] * 2


# Settings


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"queries": 0}, r"task.queries, encoder_layers and points must be at least 1, and decoder_layers 2"),
        ({"encoder_layers": 0}, r"task.queries, encoder_layers and points"),
        ({"points": 0}, r"task.queries, encoder_layers and points"),
        ({"decoder_layers": 1}, r"and decoder_layers 2"),
        ({"width": 48}, r"task.width is 48, but Mask2Former needs a multiple of 32"),
        ({"width": 0}, r"task.width is 0"),
    ],
)
def test_settings_that_cannot_work(options, said):
    with pytest.raises(InputError, match=said):
        QuerySettings(**options)


def test_tasks_are_built_around_it_or_say_why_not(monkeypatch):
    task = PanopticSegmentation.build(nano("swin"), list("abcd"), THINGS, DATA, **TINY)
    assert isinstance(task.model, QuerySegmenter) and task.model.things == THINGS
    task = InstanceSegmentation.build(nano("volo"), list("abcd"), None, DATA, head="mask2former", **TINY)
    assert isinstance(task.model, QuerySegmenter) and task.model.things is None
    with pytest.raises(InputError, match=r"'mask_rcnn', but panoptic segmentation has mask2former alone"):
        PanopticSegmentation.build(nano("swin"), list("abcd"), THINGS, DATA, head="mask_rcnn")
    with pytest.raises(InputError, match=r"There is no option task.hidden; there is: neck, queries"):
        PanopticSegmentation.build(nano("swin"), list("abcd"), THINGS, DATA, hidden=3)
    with pytest.raises(InputError, match=r"at 4, 8, 8 and 8; add task.neck=simple_pyramid"):
        PanopticSegmentation.build(nano("volo"), list("abcd"), THINGS, DATA, neck="none")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match=r"Mask2Former needs transformers: pip install 'backbones\[mask2former\]'"):
        PanopticSegmentation.build(nano("swin"), list("abcd"), THINGS, DATA, **TINY)
