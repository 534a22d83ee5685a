"""Batches of pictures with boxes, masks or maps: the same for any number of workers and processes."""

from collections import Counter
from itertools import chain, pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from training.data import BadImageError, BadImages, Loader
from training.data.dense import (
    AnnotatedPictures,
    DenseAugmentSettings,
    DigitScenes,
    MaskFolder,
    training_transform,
)
from training.data.dense.batches import DenseBatch
from training.seeding import seed_everything

SCENES = DigitScenes(size=[40, 60], scale=[12.0, 26.0], objects=[0, 4], img_size=40, train_scenes=13, val_scenes=5)
AUGMENT = DenseAugmentSettings(jitter=[0.5, 1.5], crop=[48, 56], hflip=0.5, photometric=0.5, copy_paste=0.7)


class Numbers:
    """Samples that are their own index, of pictures that are read in no time."""

    def __init__(self, count: int):
        self.source = range(count)

    def read(self, index: int) -> int:
        return index

    def collate(self, samples: list[int]) -> torch.Tensor:
        return torch.tensor(samples)


# Which pictures are side by side


def steps(wide: np.ndarray | None, count: int, step: int, processes: int, accumulation: int, epoch: int = 0):
    """What each whole step of an epoch sees, by all processes."""
    batch_size = step // processes // accumulation
    more = dict(seed=5, step=step, processes=processes, wide=wide)
    ranks = [Loader(Numbers(count), batch_size, BadImages(0), rank=rank, **more) for rank in range(processes)]
    turns = [[i for batch in turn for i in batch.tolist()] for turn in zip(*(one.epoch(epoch) for one in ranks))]
    return [sorted(chain(*turns[i : i + accumulation])) for i in range(0, len(turns), accumulation)]


@settings(max_examples=12, deadline=None)
@given(
    count=st.integers(8, 120),
    share=st.sampled_from([0.0, 0.03, 0.3, 0.5, 0.9, 1.0]),
    step=st.sampled_from([4, 8]),
    seed=st.integers(0, 99),
    epoch=st.integers(0, 3),
)
def test_the_pictures_of_a_step_are_all_wide_or_all_high(count, share, step, seed, epoch):
    wide = np.random.default_rng(seed).random(count) < share
    found = steps(wide, count, step, 1, 1, epoch)
    seen = Counter(i for each in found for i in each)
    assert max(seen.values()) == 1 and len(seen) == len(found) * step == count // step * step  # each once
    alike = [len({bool(wide[i]) for i in each}) == 1 for each in found]
    enough = wide.sum() // step + (~wide).sum() // step
    assert all(alike[:enough]) and len(found) - enough <= 1  # but for what is left of both
    # The same steps whoever takes part in them, and in another order the next time.
    for processes, accumulation in ((2, 1), (4, 1), (1, 2), (2, 2)):
        others = steps(wide, count, step, processes, accumulation, epoch)
        assert [each for each in others if len(each) == step] == found
    assert count < 20 or steps(wide, count, step, 1, 1, epoch + 1) != found


def test_an_order_of_pictures_that_are_alike_stays_as_it_is():
    for count, step in ((50, 8), (16, 4)):
        plain = steps(None, count, step, 2, 1)
        assert steps(np.ones(count, dtype=bool), count, step, 2, 1) == plain
        assert steps(np.zeros(count, dtype=bool), count, step, 2, 1) == plain


def test_wide_and_high_pictures_come_in_turns():
    """Not all wide ones first: steps are ordered by when they are full."""
    wide = np.arange(400) % 2 == 0
    found = steps(wide, 400, 8, 1, 1)
    kinds = [bool(wide[each[0]]) for each in found]
    assert sum(kinds) == 25 and sum(a != b for a, b in pairwise(kinds)) > 15
    assert sorted(chain(*found)) == list(range(400))


# What they are


def training_loader(source=None, augment=AUGMENT, kind: str = "masks", **options) -> Loader:
    source = source or SCENES.splits(kind)[0]
    samples = AnnotatedPictures(source, training_transform(SCENES, augment, kind))
    return Loader(samples, **(dict(batch_size=3, bad_images=BadImages(9), seed=2) | options))


def same(one: DenseBatch, other: DenseBatch) -> bool:
    return (
        torch.equal(one.indices, other.indices)
        and all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))
        and all(
            a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
            for a, b in zip(one.targets, other.targets, strict=True)
        )
    )


@pytest.mark.parametrize("kind", ["masks", "map"])
def test_batches_depend_on_seed_epoch_and_index_alone(kind):
    augment = AUGMENT if kind == "masks" else DenseAugmentSettings(jitter=[0.5, 1.5], crop=[30, 30], photometric=0.5)
    here, there = (training_loader(kind=kind, augment=augment, workers=workers) for workers in (0, 2))
    first, second = list(here.epoch(0)), list(here.epoch(1))
    torch.rand(5)  # whatever else has been drawn in between
    np.random.rand(5)
    for epoch, expected in ((0, first), (1, second)):
        assert all(same(a, b) for a, b in zip(there.epoch(epoch), expected, strict=True))
    assert all(same(a, b) for a, b in zip(there.epoch(1, start=2), second[2:], strict=True))
    assert not any(same(a, b) for a, b in zip(first, second))
    for batch in first:
        assert isinstance(batch, DenseBatch) and len(batch.images) == len(batch.targets) == len(batch.indices) == 3
        for image, target in zip(batch.images, batch.targets):
            assert (
                image.dtype == torch.uint8
                and image.shape[1:] == (target["masks" if kind == "masks" else "map"]).shape[-2:]
            )
            assert all(type(value) is torch.Tensor for value in target.values())


def test_a_picture_is_augmented_the_same_in_any_number_of_processes():
    found = {}
    for processes in (1, 2):
        for rank in range(processes):
            loader = training_loader(batch_size=6 // processes, processes=processes, rank=rank, step=6)
            for batch in loader.epoch(3):
                for image, index in zip(batch.images, batch.indices.tolist()):
                    found.setdefault(index, []).append(image)
    assert len(found) == 12 and all(len(images) == 2 and torch.equal(*images) for images in found.values())


def test_evaluation_sees_every_picture_as_it_is():
    source = SCENES.splits("boxes")[1]
    batches = list(Loader(AnnotatedPictures(source), 2, BadImages(0)).epoch())
    assert [batch.indices.tolist() for batch in batches] == [[0, 1], [2, 3], [4]]
    for batch in batches:
        for image, target, index in zip(batch.images, batch.targets, batch.indices.tolist()):
            assert torch.equal(image, torch.from_numpy(source.picture(index).pixels()).permute(2, 0, 1))
            assert all(torch.equal(value, target[name]) for name, value in source.target(index).items())


# Damaged files


@pytest.fixture
def folder(tmp_path):
    """Six pictures with maps, of which number 1 and the map of number 4 are damaged."""
    draw = np.random.default_rng(0)
    for split in ("train", "val"):
        for part, channels in (("images", (3,)), ("masks", ())):
            (tmp_path / part / split).mkdir(parents=True)
            for i in range(6):
                pixels = draw.integers(0, 256 if channels else 4, (30 + i, 40, *channels), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / part / split / f"{i}.png")
        (tmp_path / f"images/{split}/1.png").write_bytes((tmp_path / f"images/{split}/1.png").read_bytes()[:700])
        (tmp_path / f"masks/{split}/4.png").write_bytes(b"no picture")
    return MaskFolder(root=str(tmp_path), num_classes=4, img_size=32)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_pictures_and_maps_are_replaced_and_named(folder, workers):
    train, val = folder.splits("map")
    samples = AnnotatedPictures(train, training_transform(folder, DenseAugmentSettings(crop=[32, 32]), "map"))
    loader = Loader(samples, 3, BadImages(2), workers, seed=0)
    for epoch in range(2):
        batches = list(loader.epoch(epoch))
        indices = [i for batch in batches for i in batch.indices.tolist()]
        assert sorted(indices) == [0, 2, 2, 3, 5, 5] and [len(batch.images) for batch in batches] == [3, 3]
        for batch in batches:
            assert all(target["map"].shape == (32, 32) for target in batch.targets)
    reasons = {name[-11:]: reason for name, reason in loader.bad_images.reasons.items()}
    assert sorted(reasons) == ["train/1.png", "train/4.png"] and "masks/train/4.png" in reasons["train/4.png"]
    evaluated = Loader(AnnotatedPictures(val), 4, BadImages(2), workers)
    assert [batch.indices.tolist() for batch in evaluated.epoch()] == [[0, 2, 2, 3], [5, 5]]


# The other picture of copy-paste


def test_what_is_pasted_comes_from_the_seeded_generator(monkeypatch):
    source = SCENES.splits("masks")[0]
    samples, asked, draw = AnnotatedPictures(source, lambda picture, target, other: other()), [], source.target
    monkeypatch.setattr(source, "target", lambda index: (asked.append(index), draw(index))[1])

    def drawn(seed: int) -> int:
        """The index of the other picture."""
        asked.clear()
        seed_everything(seed, "sample", 0, 0, 0)
        picture, target = samples._another()
        [index] = asked
        assert picture.size == (60, 40) and torch.equal(target["labels"], draw(index)["labels"])
        return index

    first = [drawn(seed) for seed in range(120)]
    assert first == [drawn(seed) for seed in range(120)]
    assert set(first) == set(range(13))  # any picture
    monkeypatch.undo()
    pasted, plain = (
        [batch for batch in training_loader(augment=DenseAugmentSettings(hflip=0.0, copy_paste=share)).epoch()]
        for share in (1.0, 0.0)
    )
    counts = [[len(target["labels"]) for batch in batches for target in batch.targets] for batches in (pasted, plain)]
    assert counts[0] != counts[1] and sum(counts[0]) > sum(counts[1])


def test_another_picture_is_the_next_that_can_be_read(monkeypatch):
    source, damaged = SCENES.splits("masks")[0], {3, 4, 12}
    picture = source.picture

    def torn(index):
        if index in damaged:
            raise BadImageError("it is torn")
        return picture(index)

    monkeypatch.setattr(source, "picture", torn)
    samples = AnnotatedPictures(source)
    for first, expected in ((3, 5), (4, 5), (12, 0), (7, 7)):
        monkeypatch.setattr("random.randrange", lambda count, first=first: first)
        found, target = samples._another()
        assert np.array_equal(found.pixels(), picture(expected).pixels())
        assert torch.equal(target["masks"], source.target(expected)["masks"])
    damaged.update(range(13))
    with pytest.raises(BadImageError, match="no picture of the data can be read"):
        samples._another()
