"""Pictures that change together with their boxes, masks and maps.

In the pictures here an object's pixels have a value that no other object's have, and its label is that value.
"""

import random
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import max_pool2d

from backbones import InputError
from training.annotation import IGNORED
from training.data import Picture
from training.data.dense.augment import DenseAugmentSettings
from training.data.dense.copy_paste import paste
from training.data.dense.geometry import nearest
from training.data.dense.settings import DenseSettings
from training.data.dense.transforms import decoded, training_transform
from training.seeding import seed_everything


@dataclass
class Scenes(DenseSettings):
    name: str = "scenes"

    def splits(self, kind):
        raise NotImplementedError


BLACK = Scenes(img_size=64, mean=[0.0] * 3, std=[1.0] * 3)  # what is padded looks like the background
GREY = replace(BLACK, channels=1, mean=[0.0], std=[1.0])
STILL = DenseAugmentSettings(hflip=0.0)
MULTI_SCALE = dict(short_sides=[48, 56, 72])
DETR = MULTI_SCALE | dict(first_sides=[40, 60], first_crop=[30, 50])
JITTER = dict(short_sides=[80], max_size=80, jitter=[0.1, 2.0], crop=[80, 80])
SEMANTIC = dict(jitter=[0.5, 2.0], crop=[50, 70], max_class_share=0.75)


@pytest.fixture(autouse=True)
def seeded():
    seed_everything(0, "test")


def scene(height: int, width: int, objects: int, channels: int = 3, round: bool = True, first: int = 1):
    """A black picture (height, width, channels) its values, and objects, which later ones hide if round."""
    values = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    for i in range(objects):
        if round:
            middle, half = np.random.rand(2) * (height, width), 2 + np.random.rand(2) * (height, width) / 3
            values[((y - middle[0]) / half[0]) ** 2 + ((x - middle[1]) / half[1]) ** 2 <= 1] = first + i
        else:  # in a column of its own
            left, right = np.sort(np.random.choice(width // objects + 1, 2, replace=False)) + i * (width // objects)
            top, bottom = np.sort(np.random.choice(height + 1, 2, replace=False))
            values[top:bottom, left:right] = first + i
    pixels = np.repeat(values[..., None], channels, 2)
    return Picture(Image.fromarray(pixels[..., 0] if channels == 1 else pixels), channels), values


def target_of(values: np.ndarray, kind: str) -> dict[str, torch.Tensor]:
    """What is in a picture of these values; every third object is a crowd."""
    if kind == "map":
        return {"map": torch.from_numpy(values.astype(np.int16))}
    labels = [int(value) for value in np.unique(values) if value]
    masks = torch.from_numpy(np.array([values == v for v in labels], np.uint8).reshape(-1, *values.shape))
    target = {"labels": torch.tensor(labels, dtype=torch.int64), "crowd": torch.tensor(labels) % 3 == 0}
    if kind != "boxes":
        target["masks"] = masks
    if kind != "segments":
        target |= {"boxes": around(masks), "area": masks.sum((1, 2)).float()}
    return target


def around(masks: torch.Tensor) -> torch.Tensor:
    boxes = torch.zeros(len(masks), 4)
    for i, mask in enumerate(masks):
        rows, columns = np.nonzero(mask.numpy())
        boxes[i] = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    return boxes


def check_pixels(image: torch.Tensor, target: dict, kind: str) -> None:
    """What a target says is what the picture's own pixels say."""
    assert image.dtype == torch.uint8
    truth = target_of(image[0].numpy(), kind)
    assert target.keys() == truth.keys()
    order = target["labels"].argsort() if kind != "map" else None
    for name, value in target.items():
        assert value.dtype == truth[name].dtype, name
        value = value if kind == "map" else value[order]
        assert value.shape == truth[name].shape, name
        if name == "area" and kind == "boxes":
            torch.testing.assert_close(value, truth[name])  # computed as a share
        else:
            assert value.equal(truth[name]), name


def same(one: tuple, other: tuple) -> bool:
    return one[0].equal(other[0]) and all(one[1][name].equal(other[1][name]) for name in one[1] | other[1])


@pytest.mark.parametrize("kind", ["boxes", "masks", "segments", "map"])
@pytest.mark.parametrize("seed", range(8))
def test_crops_flips_and_padding_are_exact(seed, kind):
    seed_everything(seed, "sample")
    data = BLACK if seed % 2 else GREY
    height, width = random.randint(30, 90), random.randint(30, 90)
    picture, values = scene(height, width, random.randint(0, 6), data.channels, round=kind != "boxes")
    crop = [random.randint(10, 100), random.randint(10, 100)]
    augment = DenseAugmentSettings(short_sides=[min(height, width)], crop=crop, hflip=0.5)
    transform = training_transform(data, augment, kind)
    for _ in range(8):
        image, target = transform(picture, target_of(values, kind))
        assert list(image.shape) == [data.channels, *crop]
        if kind == "map":  # what is padded is ignored
            padded = target["map"] == IGNORED
            assert padded.sum() == crop[0] * crop[1] - min(crop[0], height) * min(crop[1], width)
            assert not image[0][padded].any()
            target["map"] = target["map"].masked_fill(padded, 0)
        check_pixels(image, target, kind)


@pytest.mark.parametrize("options", [MULTI_SCALE, DETR, JITTER | {"jitter": [0.5, 2.0]}])
@pytest.mark.parametrize("seed", range(8))
def test_resizing_keeps_boxes_masks_and_pixels_together(seed, options):
    seed_everything(seed, "sample")
    height, width = random.randint(80, 160), random.randint(80, 160)
    y, x = np.mgrid[:height, :width]
    disc = (y / height - 0.5) ** 2 + (x / width - 0.45) ** 2 <= random.uniform(0.2, 0.4) ** 2
    target = target_of(disc.astype(np.uint8), "masks")
    picture = Picture(Image.fromarray(255 * disc.astype(np.uint8)), 1)
    image, found = training_transform(GREY, DenseAugmentSettings(**options), "masks")(picture, target)
    seen, mask = (image >= 128).float(), found["masks"]
    assert len(mask) == 1 and mask.dtype == torch.uint8 and seen.sum() > 100
    # Along the outline, pixels may be rounded to different sides.
    grown, shrunk = max_pool2d(seen, 3, 1, 1), -max_pool2d(-seen, 3, 1, 1)
    assert (mask <= grown).all() and (mask >= shrunk).all()
    assert (found["boxes"] - around(mask)).abs().max() <= 1.5
    assert found["area"].item() == mask.sum()


@pytest.mark.parametrize("seed", range(20))
def test_masks_and_maps_take_the_nearest_pixel(seed):
    seed_everything(seed, "sample")
    old, new = np.random.randint(1, 40, 2), np.random.randint(1, 90, 2)
    labels = torch.randint(-1, 150, (2, *old), dtype=torch.int16)
    top, left = (random.randrange(side) for side in new)
    window = top, left, random.randint(1, new[0] - top), random.randint(1, new[1] - left)
    found = nearest(labels, tuple(new), window)
    assert found.shape == (2, *window[2:]) and found.dtype == torch.int16
    for row in range(window[2]):
        for column in range(window[3]):
            y, x = (top + row + 0.5) * old[0] / new[0], (left + column + 0.5) * old[1] / new[1]
            assert found[:, row, column].equal(labels[:, int(y + 1e-9), int(x + 1e-9)])


def test_boxes_without_masks_are_scaled_and_clipped():
    picture, values = scene(60, 90, 3, round=False)
    target = target_of(values, "boxes")
    image, found = training_transform(BLACK, replace(STILL, short_sides=[120]), "boxes")(picture, target)
    assert image.shape == (3, 120, 180) and found["boxes"].allclose(2 * target["boxes"])
    assert found["area"].allclose(4 * target["area"]) and found["crowd"].equal(target["crowd"])
    # An object that fills half of its box is thought to fill half of what is left of it.
    target = {"boxes": torch.tensor([[0.0, 0, 90, 60]]), "area": torch.tensor([2700.0])}
    target |= {"labels": torch.tensor([1]), "crowd": torch.tensor([False])}
    augment = replace(STILL, short_sides=[60], crop=[30, 30])
    _, found = training_transform(BLACK, augment, "boxes")(picture, target)
    assert found["boxes"].tolist() == [[0, 0, 30, 30]] and found["area"].tolist() == [450]


def test_a_box_stays_as_annotated_until_the_object_is_cut():
    picture, _ = scene(40, 40, 0)
    masks = torch.zeros(1, 40, 40, dtype=torch.uint8)
    masks[0, 10:20, 10:20] = 1
    target = {"boxes": torch.tensor([[9.4, 9.6, 20.3, 20.2]]), "masks": masks, "area": torch.tensor([99.5])}
    target |= {"labels": torch.tensor([1]), "crowd": torch.tensor([False])}
    _, found = training_transform(BLACK, replace(STILL, short_sides=[40]), "masks")(picture, target)
    assert found["boxes"].equal(target["boxes"]) and found["area"].tolist() == [100]
    for seed in range(20):
        seed_everything(seed, "sample")
        transform = training_transform(BLACK, replace(STILL, short_sides=[40], crop=[15, 15]), "masks")
        _, found = transform(picture, target)
        if len(found["masks"]) and 0 < found["area"][0] < 100:
            assert (found["boxes"] - around(found["masks"])).abs().max() < 0.7
            assert (found["boxes"] == around(found["masks"])).any()


@pytest.mark.parametrize("kind", ["boxes", "masks", "segments"])
def test_pictures_without_objects(kind):
    picture, values = scene(50, 70, 0)
    empty = target_of(values, kind)
    values[0, 0] = 1
    corner = target_of(values, kind)
    for options in (MULTI_SCALE, DETR, JITTER, dict(crop=[20, 20])):
        transform = training_transform(BLACK, DenseAugmentSettings(**options), kind)
        found = [transform(picture, empty)[1] for _ in range(8)]
        if "crop" in options:  # which loses the only object
            found += [
                target for target in (transform(picture, corner)[1] for _ in range(8)) if not len(target["labels"])
            ]
            assert len(found) > 8
        for target in found:
            assert target.keys() == empty.keys() and {len(value) for value in target.values()} == {0}
            for name in target:
                assert target[name].dtype == empty[name].dtype and target[name].ndim == empty[name].ndim


def test_objects_below_a_pixel_are_dropped_with_all_that_is_known_of_them():
    values = np.zeros((64, 64), np.uint8)
    values[10:12, 10:40], values[20:50, 20:50] = 1, 2
    picture = Picture(Image.fromarray(values), 1)
    for kind in ("boxes", "masks"):
        _, found = training_transform(GREY, replace(STILL, short_sides=[16]), kind)(picture, target_of(values, kind))
        assert found["labels"].tolist() == [2] and {len(value) for value in found.values()} == {1}


@pytest.mark.parametrize("seed", range(6))
def test_sizes_stay_within_their_limits(seed):
    seed_everything(seed, "sample")
    height, width = random.randint(20, 200), random.randint(20, 200)
    picture, values = scene(height, width, 4)
    data = replace(BLACK, max_size=100)
    longest = set()
    for _ in range(20):
        image, _ = training_transform(data, DenseAugmentSettings(**MULTI_SCALE), "masks")(
            picture, target_of(values, "masks")
        )
        short, long = sorted(image.shape[1:])
        assert (short in (48, 56, 72) and long <= 100) or (short < 72 and long == 100)
        assert abs(short / long - min(height, width) / max(height, width)) < 0.02
        longest.add(long)
        image, target = training_transform(data, DenseAugmentSettings(**DETR), "masks")(
            picture, target_of(values, "masks")
        )
        assert min(image.shape[1:]) <= 72 and max(image.shape[1:]) <= 100
        assert target["masks"].shape[1:] == image.shape[1:]
        for options, kind in ((JITTER, "segments"), (SEMANTIC, "map")):
            image, target = training_transform(data, DenseAugmentSettings(**options), kind)(
                picture, target_of(values, kind)
            )
            assert list(image.shape[1:]) == options["crop"] == list(target.get("masks", target.get("map")).shape[-2:])
    assert len(longest) > 1 or max(height, width) / min(height, width) > 100 / 48


def test_jitter_is_relative_to_the_size_that_is_drawn():
    picture, values = scene(50, 100, 0)
    augment = DenseAugmentSettings(short_sides=[40], max_size=60, jitter=[0.5, 2.0])
    transform = training_transform(BLACK, augment, "map")
    longs = [transform(picture, target_of(values, "map"))[0].shape[2] for _ in range(60)]
    assert 30 <= min(longs) < 45 and 75 < max(longs) <= 120


def test_one_half_of_the_pictures_is_cropped_before_it_is_resized():
    """Of a hundred columns, numbered by their pixels, some fifty are then left."""
    picture = Picture(Image.fromarray(np.tile(np.arange(100, dtype=np.uint8), (100, 1))), 1)
    options = dict(short_sides=[100], first_sides=[100], first_crop=[40, 60], hflip=0.0)
    transform = training_transform(GREY, DenseAugmentSettings(**options), "map")
    target = {"map": torch.zeros(100, 100, dtype=torch.int16)}
    images = [transform(picture, target)[0].int() for _ in range(100)]
    columns = [int(image.max() - image.min()) + 1 for image in images]
    whole = columns.count(100)
    assert 30 < whole < 70
    assert all(min(image.shape[1:]) == 100 for image in images)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("options", "kind"),
    [(MULTI_SCALE, "boxes"), (DETR, "masks"), (JITTER | {"copy_paste": 0.7}, "masks"), (SEMANTIC, "map")],
)
def test_draws_depend_on_the_seed_alone(options, kind, channels):
    data = BLACK if channels == 3 else GREY
    picture, values = scene(60, 80, 5, channels)
    target = target_of(values, kind)
    before = {name: value.clone() for name, value in target.items()}
    results = []
    for _ in range(2):
        transform = training_transform(data, DenseAugmentSettings(**options, photometric=0.5), kind)
        for seed in range(6):
            seed_everything(seed, "sample")
            results.append(transform(picture, target, lambda: (picture, target)))
    for i in range(6):
        assert same(results[i], results[i + 6])
    assert not any(results[0][0].shape == image.shape and results[0][0].equal(image) for image, _ in results[1:6])
    assert same((torch.zeros(0), before), (torch.zeros(0), target))  # not changed in place


@pytest.mark.parametrize("channels", [1, 3])
def test_photometric_changes_colours_alone(channels):
    data = BLACK if channels == 3 else GREY
    picture, values = scene(40, 60, 5, channels, first=100)
    target = target_of(values, "masks")
    still = replace(STILL, short_sides=[40])
    image, expected = training_transform(data, still, "masks")(picture, target)
    transform = training_transform(data, replace(still, photometric=1.0), "masks")
    images = [transform(picture, target) for _ in range(40)]
    assert sum(not changed.equal(image) for changed, _ in images) >= 24
    assert all(changed.shape == image.shape and changed.dtype == torch.uint8 for changed, _ in images)
    assert all(same((image, found), (image, expected)) for _, found in images)


def test_padding_has_the_mean_colour():
    data = replace(BLACK, mean=[0.2, 0.5, 0.7])
    picture, values = scene(10, 20, 0)
    augment = replace(STILL, short_sides=[10], crop=[30, 30])
    image, target = training_transform(data, augment, "map")(picture, target_of(values, "map"))
    inside = target["map"] != IGNORED
    assert inside[:10, :20].all() and inside.sum() == 200
    assert not image[:, inside].any() and image[:, ~inside].unique(dim=1).flatten().tolist() == [51, 128, 178]


def test_no_class_has_too_large_a_share():
    """Of two classes side by side, a third of the crops have both in the share that is asked for."""
    labels = np.zeros((40, 100), np.uint8)
    labels[:, 50:] = 1
    picture = Picture(Image.fromarray(labels), 1)

    def shares(most: float, labels: torch.Tensor) -> list[float]:
        augment = replace(STILL, short_sides=[40], crop=[40, 40], max_class_share=most)
        transform, found = training_transform(GREY, augment, "map"), []
        for seed in range(100):
            seed_everything(seed, "sample")
            kept = transform(picture, {"map": labels})[1]["map"]
            kept = kept[kept != IGNORED]
            found.append(float((kept == 1).float().mean().clamp(min=1 - (kept == 1).float().mean())))
        return found

    labels = torch.from_numpy(labels.astype(np.int16))
    assert sum(share <= 0.75 for share in shares(1.0, labels)) < 50
    assert sum(share <= 0.75 for share in shares(0.75, labels)) > 93
    labels[10:] = IGNORED  # is not counted
    assert sum(share <= 0.75 for share in shares(0.75, labels)) > 93
    assert shares(0.75, torch.zeros(40, 100, dtype=torch.int16)) == [1.0] * 100  # there is nothing better
    augment = replace(STILL, crop=[40, 40], max_class_share=0.75)
    _, found = training_transform(GREY, augment, "map")(picture, {"map": labels.fill_(IGNORED)})
    assert (found["map"] == IGNORED).all()


@pytest.mark.parametrize("seed", range(25))
def test_pasted_objects_cover_what_is_below(seed):
    seed_everything(seed, "sample")
    sizes = [(random.randint(20, 70), random.randint(20, 70)) for _ in range(2)]
    sizes[1] = sizes[0] if seed % 2 else sizes[1]
    (below, below_values), (front, front_values) = (
        scene(*size, random.randint(0, 8), first=first) for size, first in zip(sizes, (1, 101))
    )
    still = replace(STILL, short_sides=[min(sizes[0])])
    target, front_target = target_of(below_values, "masks"), target_of(front_values, "masks")
    image, found = paste(
        *training_transform(BLACK, still, "masks")(below, target),
        *training_transform(BLACK, replace(still, short_sides=[min(sizes[1])]), "masks")(front, front_target),
    )
    assert image.shape == (3, *sizes[0])
    check_pixels(image, found, "masks")
    pasted = found["labels"][found["labels"] > 100]
    assert found["labels"].equal(torch.cat([found["labels"][found["labels"] <= 100], pasted]))  # the pasted ones last
    assert not (pasted % 3 == 0).any()  # no crowds
    height, width = (min(sides) for sides in zip(*sizes))
    for value in pasted.tolist():  # at their places, and complete
        there = front_values[:height, :width] == value
        assert (image[0, :height, :width].numpy() == value).sum() == there.sum() > 0


def test_copy_paste_pastes_a_random_half_and_leaves_no_hidden_object():
    picture, values = np.full((40, 40), 1, np.uint8), np.zeros((40, 40), np.uint8)
    for i in range(100):
        values[4 * (i // 10) : 4 * (i // 10) + 4, 4 * (i % 10) : 4 * (i % 10) + 4] = 101 + i
    target, front = target_of(picture, "masks"), target_of(values, "masks")
    front["crowd"][:] = False
    image, other = torch.from_numpy(picture)[None], torch.from_numpy(values)[None]
    counts = [len(paste(image, target, other, front)[1]["labels"]) - 1 for _ in range(20)]
    assert 30 < min(counts) < max(counts) < 70
    # One object that hides another one completely: there is the one or the other.
    front = {name: value[:1] for name, value in front.items()} | {"masks": torch.ones(1, 40, 40, dtype=torch.uint8)}
    labels = [paste(image, target, other, front)[1]["labels"].tolist() for _ in range(20)]
    assert [1] in labels and [101] in labels and [1, 101] not in labels


def test_copy_paste_comes_as_often_as_it_is_asked_for():
    (below, values), (front, others) = scene(40, 60, 0), scene(40, 60, 0)
    others[10:30, 10:30] = 101
    calls = []

    def other():
        calls.append(1)
        return front, target_of(others, "masks")

    transform = training_transform(BLACK, replace(STILL, copy_paste=0.5), "masks")
    objects = [len(transform(below, target_of(values, "masks"), other)[1]["labels"]) for _ in range(60)]
    assert 20 < len(calls) < 40 and 8 < sum(objects) < 24


@pytest.mark.parametrize("kind", ["boxes", "masks", "segments", "map"])
def test_evaluation_changes_nothing(kind):
    for channels in (1, 3):
        picture, values = scene(31, 47, 4, channels)
        target = target_of(values, kind)
        image, found = decoded(picture, target)
        assert image.shape == (channels, 31, 47) and (image == torch.from_numpy(values)).all()
        assert same((image, found), (image, target))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(hflip=1.5), r"recipe.dense.hflip must be between 0 and 1, but is 1.5"),
        (dict(photometric=-1), r"recipe.dense.photometric must be between 0 and 1, but is -1"),
        (dict(short_sides=[]), r"recipe.dense.short_sides must be null or a list .* but is \[\]"),
        (dict(short_sides=[480, 0]), r"recipe.dense.short_sides .* but is \[480, 0\]"),
        (dict(max_size=0), r"recipe.dense.max_size must be null or at least 1"),
        (dict(jitter=[2.0, 0.5]), r"recipe.dense.jitter must be null or two numbers above 0, the lesser first"),
        (dict(crop=[512]), r"recipe.dense.crop must be null or \[height, width\]"),
        (dict(first_sides=[400]), r"recipe.dense.first_crop must be given with recipe.dense.first_sides"),
        (dict(first_crop=[384, 600]), r"recipe.dense.first_crop must be given with recipe.dense.first_sides"),
        (dict(first_crop=[384], first_sides=[400]), r"recipe.dense.first_crop must be null or two numbers"),
        (dict(max_class_share=0.0, crop=[9, 9]), r"recipe.dense.max_class_share must be above 0 and at most 1"),
        (dict(max_class_share=0.75), r"recipe.dense.max_class_share must be 1 without recipe.dense.crop"),
    ],
)
def test_settings_that_cannot_work(options, said):
    with pytest.raises(InputError, match=said):
        DenseAugmentSettings(**options)


def test_settings_that_need_another_kind_of_target():
    for kind in ("boxes", "segments", "map"):
        with pytest.raises(InputError, match=r"recipe.dense.copy_paste is 0.5, but pasting objects needs masks"):
            training_transform(BLACK, DenseAugmentSettings(copy_paste=0.5), kind)
    with pytest.raises(InputError, match=r"recipe.dense.max_class_share is 0.75, but classes have shares in maps only"):
        training_transform(BLACK, DenseAugmentSettings(**SEMANTIC), "masks")
