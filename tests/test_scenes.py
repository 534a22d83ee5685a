"""Scenes of digits: the same every time, and annotated exactly."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from backbones import InputError
from training.data.dense import CocoFolder, DigitScenes, MaskFolder, export_coco, export_maps
from training.data.dense.scenes import CLASSES, LEAST_SEEN, ScenesSource

from .conftest import ROOT
from .test_export_scenes import assert_same

# Small, crowded, and not square.
SMALL = dict(size=[60, 90], scale=[14.0, 40.0], objects=[0, 6], train_scenes=12, val_scenes=12)
KINDS = ("boxes", "masks", "segments", "map")


def scenes(kind: str = "masks", split: str = "train", **options) -> ScenesSource:
    train, val = DigitScenes(**(SMALL | options)).splits(kind)
    return train if split == "train" else val


def content(source: ScenesSource, indices=range(6)) -> str:
    """A hash of pictures and targets."""
    found = hashlib.sha256()
    for index in indices:
        found.update(source.picture(index).pixels().tobytes())
        for name, value in sorted(source.target(index).items()):
            found.update(name.encode() + value.numpy().tobytes())
    return found.hexdigest()


@pytest.mark.parametrize("kind", KINDS)
def test_a_scene_depends_on_seed_split_and_index_alone(kind):
    one = content(scenes(kind))
    assert content(scenes(kind)) == one
    assert content(scenes(kind, train_scenes=9, val_scenes=3)) == one
    backwards = scenes(kind)
    for index in (5, 2, 4, 0):
        backwards.target(index)
    np.random.seed(3)
    torch.manual_seed(3)
    assert content(backwards) == one
    others = [content(scenes(kind, seed=1)), content(scenes(kind, "val")), content(scenes(kind), range(6, 12))]
    assert len({one, *others}) == 4
    assert len({content(scenes(kind), [index]) for index in range(12)}) == 12


def test_another_process_makes_the_same_scenes():
    code = f"""
import hashlib
from training.data.dense import DigitScenes
for source in DigitScenes(**{SMALL}).splits("masks"):
    parts = [source.picture(3).pixels(), *(source.target(3)[name].numpy() for name in ("masks", "labels"))]
    print(hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest())
"""
    printed = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).split()
    for source, found in zip(DigitScenes(**SMALL).splits("masks"), printed, strict=True):
        parts = [source.picture(3).pixels(), *(source.target(3)[name].numpy() for name in ("masks", "labels"))]
        assert hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest() == found


def test_training_and_validation_have_other_digits_and_backgrounds():
    train, val = DigitScenes(**SMALL).splits("masks")
    shapes = [{shape.tobytes() for shape in source._shapes} for source in (train, val)]
    assert len(train) == len(val) == 12 and train.name(3) == "scene 3 of train" and val.name(3) == "scene 3 of val"
    assert shapes[0] and shapes[1] and not shapes[0] & shapes[1]
    assert len(train._shapes) == 1437 and len(val._shapes) == 360
    behind = [scenes("map", split, objects=[0, 0]).target(0)["map"] for split in ("train", "val")]
    assert not torch.equal(*behind)
    default = DigitScenes().splits("boxes")
    assert [len(source) for source in default] == [2000, 200]


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_kinds_of_targets_tell_of_the_same_pixels(split):
    boxes, masks, segments, maps = (scenes(kind, split) for kind in KINDS)
    assert boxes.classes == masks.classes == CLASSES[:10] == [*"0123456789"]
    assert segments.classes == maps.classes == CLASSES and segments.things == [True] * 10 + [False] * 3
    assert boxes.things is masks.things is maps.things is None
    counts = set()
    for index in range(12):
        target = masks.target(index)
        objects, labels = target["masks"], target["labels"]
        assert objects.shape == (len(labels), 60, 90) and objects.dtype == torch.uint8
        assert labels.dtype == torch.int64 and set(labels.tolist()) <= set(range(10)) and not target["crowd"].any()
        assert objects.sum(0).max() <= 1  # no pixel in two
        counts.add(len(labels))
        for box, area, mask in zip(target["boxes"].tolist(), target["area"].tolist(), objects.numpy()):
            rows, columns = np.nonzero(mask)
            assert box == [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1] and area == len(rows)
        plain = boxes.target(index)
        assert set(plain) == {"boxes", "labels", "crowd", "area"}
        assert all(torch.equal(value, target[name]) for name, value in plain.items())

        label_map = maps.target(index)["map"]
        assert label_map.shape == (60, 90) and label_map.dtype == torch.int16 and label_map.min() >= 0
        expected = torch.full((60, 90), -1, dtype=torch.int16)
        for mask, label in zip(objects, labels):
            expected[mask > 0] = label.short()
        assert torch.equal(label_map < 10, expected >= 0)
        assert torch.equal(label_map[label_map < 10], expected[expected >= 0])
        whole = segments.target(index)
        assert torch.equal(whole["masks"].sum(0), torch.ones(60, 90, dtype=torch.int64))
        assert torch.equal(whole["masks"][: len(labels)], objects) and whole["labels"].dtype == torch.int64
        stuff = whole["labels"][len(labels) :].tolist()
        assert stuff == sorted({*stuff}) and 1 <= len(stuff) <= 2 and min(stuff) >= 10
        for mask, label in zip(whole["masks"], whole["labels"]):
            assert mask.any() and (label_map[mask > 0] == label).all()
        assert len(whole["crowd"]) == len(whole["labels"]) and not whole["crowd"].any()
    assert max(counts) <= 8 and len(counts) > 2


def test_most_of_every_digit_is_visible(monkeypatch):
    """Against what each was placed with, before others came in front; some are hidden in part."""
    source, placed, shares = scenes(objects=[6, 6], scale=[30.0, 40.0]), [], []
    place = ScenesSource._placed

    def spy(self, rng, shape):
        where, opacity = place(self, rng, shape)
        mask = np.zeros((60, 90), dtype=bool)
        mask[where] = opacity >= 0.5
        placed.append(mask)
        return where, opacity

    monkeypatch.setattr(ScenesSource, "_placed", spy)
    for index in range(12):
        placed.clear()
        for mask in source.target(index)["masks"].numpy() > 0:
            # It was placed with all that is visible of it, and perhaps more; of several such, with the least.
            whole = min(tried.sum() for tried in placed if not (mask & ~tried).any())
            shares.append(mask.sum() / whole)
    hidden = [share for share in shares if share < 0.99]
    assert len(shares) > 24 and min(shares) >= LEAST_SEEN == 0.85 and len(hidden) > 0.1 * len(shares)


def test_digits_can_be_seen_against_what_is_behind():
    """The mean of a digit's pixels is not that of the pixels around it."""
    source = scenes(objects=[1, 1], scale=[30.0, 40.0], noise=0.0)
    for index in range(12):
        pixels = source.picture(index).pixels()[..., 0].astype(float)
        (left, top, right, bottom), mask = (
            source.target(index)["boxes"][0].int().tolist(),
            source.target(index)["masks"],
        )
        inside, box = mask[0].numpy() > 0, np.zeros((60, 90), dtype=bool)
        box[top:bottom, left:right] = True
        assert abs(pixels[inside].mean() - pixels[box & ~inside].mean()) > 12


def test_grey_and_coloured_pictures_show_the_same_scene():
    grey, colour = scenes(), scenes(channels=3, mean=[0.5] * 3, std=[0.25] * 3)
    for index in range(4):
        one, three = grey.picture(index).pixels(), colour.picture(index).pixels()
        assert one.shape == (60, 90, 1) and three.shape == (60, 90, 3) and one.dtype == three.dtype == np.uint8
        assert grey.picture(index).size == colour.picture(index).size == (90, 60)
        luma = three @ np.array([0.299, 0.587, 0.114])
        assert np.abs(luma - one[..., 0]).max() <= 1
        assert np.ptp(three, axis=2).max() > 5  # there are colours
        first, second = grey.target(index), colour.target(index)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_as_many_digits_as_are_asked_for_in_the_sizes_that_are_asked_for():
    for size, scale in (([40, 200], [16.0, 16.0]), ([97, 64], [30.0, 42.0])):
        source = scenes(size=size, objects=[1, 1], scale=scale, degrees=0.0)
        for index in range(12):
            target = source.target(index)
            assert target["masks"].shape == (1, *size) and source.picture(index).pixels().shape == (*size, 1)
            [[left, top, right, bottom]] = target["boxes"].tolist()
            assert max(right - left, bottom - top) <= scale[1] and bottom - top > 0.5 * scale[0]
    empty = scenes(objects=[0, 0])
    for kind in KINDS:
        target = scenes(kind, objects=[0, 0]).target(0)
        assert kind == "map" or len(target["crowd"]) == (kind == "segments") * len(target["labels"])
    assert empty.target(0)["boxes"].shape == (0, 4) and empty.target(0)["masks"].shape == (0, 60, 90)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": [60]}, r"data.size needs a height and a width of at least 16"),
        ({"size": [15, 90]}, r"data.size needs a height and a width of at least 16"),
        ({"objects": [4, 2]}, r"objects and scale need a least and a most"),
        ({"objects": [-1, 2]}, r"objects and scale need a least and a most"),
        ({"scale": [30.0, 20.0]}, r"objects and scale need a least and a most"),
        ({"scale": [7.0, 20.0]}, r"of at least 0 objects and 8 pixels"),
        ({"scale": [20.0]}, r"objects and scale need a least and a most"),
        ({"scale": [20.0, 41.0]}, r"scale must leave room in data.size to turn a digit"),
        ({"noise": -0.1}, r"noise, seed and degrees must not be negative"),
        ({"seed": -1}, r"noise, seed and degrees must not be negative"),
        ({"degrees": -5.0}, r"noise, seed and degrees must not be negative"),
        ({"val_scenes": 0}, r"train_scenes and val_scenes must be at least 1"),
        ({"max_size": 63}, r"max_size must not be below img_size"),
    ],
)
def test_settings_that_cannot_work(options, said):
    with pytest.raises(InputError, match=said):
        DigitScenes(**(SMALL | options))


def test_any_angle_and_scale_that_the_settings_allow_fits_into_the_picture():
    for seed in range(6):
        source = scenes(seed=seed, degrees=180.0, scale=[8.0, 40.0], objects=[0, 12])
        for index in range(12):
            target = source.target(index)
            assert (target["masks"].flatten(1).sum(1) > 0).all()


def test_a_digit_fits_at_any_angle():
    source = scenes(degrees=180.0, scale=[40.0, 40.0], objects=[1, 2])
    assert all(len(source.target(index)["labels"]) >= 1 for index in range(12))


# Written as files


@pytest.mark.parametrize("channels", [1, 3])
def test_scenes_are_read_back_as_they_were(tmp_path, channels):
    colours = dict(channels=channels, mean=[0.5] * channels, std=[0.25] * channels)
    for split in ("train", "val"):
        export_coco(scenes("masks", split, **colours), scenes("segments", split, **colours), tmp_path / "coco", split)
        export_maps(scenes("map", split, **colours), tmp_path / "maps", split)
    folders = {"map": MaskFolder(root=str(tmp_path / "maps"), **colours)}
    for kind in KINDS:
        data = folders.get(kind) or CocoFolder(root=str(tmp_path / "coco"), **colours)
        for split, source in zip(("train", "val"), data.splits(kind), strict=True):
            assert_same(source, scenes(kind, split, **colours))
            assert source.things == scenes(kind, split).things
