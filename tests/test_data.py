"""Sources, decoding, and the sample stream."""

import hashlib
import os
import random
import signal
import struct
import time
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from backbones import InputError
from training.data import (
    AugmentSettings,
    BadImages,
    Digits,
    ImageFolder,
    LabelledPictures,
    Loader,
    Picture,
    evaluation_transform,
    training_transform,
)
from training.data.decode import BadImageError
from training.seeding import seed_everything
from training.tasks.token_labels import crop_label_map

from .conftest import huge_png


@pytest.fixture
def folder(tmp_path):
    """Two classes of six JPEGs of different sizes for training, three for validation."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for c, name in enumerate(("dark", "light")):
            (tmp_path / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 100, (40 + i, 50, 3)) + 150 * c
                Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / part / name / f"{i}.jpg")
    return tmp_path


def loader(data, seed=None, workers=0, batch_size=4, limit=10, **more):
    train, val = data.splits()
    augment = AugmentSettings(auto_augment="rand-m9-mstd0.5-inc1", degrees=10, zoom=0.1)
    transform = training_transform(data, augment) if seed is not None else evaluation_transform(data)
    samples = LabelledPictures(train if seed is not None else val, transform)
    return Loader(samples, batch_size, BadImages(limit), workers, seed, **more)


def stream(loader, epoch=0, start=0):
    """A hash and the indices of each batch."""
    return [
        (hashlib.sha256(batch.images.numpy().tobytes()).hexdigest(), batch.indices.tolist())
        for batch in loader.epoch(epoch, start)
    ]


def test_digits_are_split_stratified_and_never_shared():
    train, val = Digits().splits()
    assert (len(train), len(val)) == (1437, 360)
    assert not {train.name(i) for i in range(len(train))} & {val.name(i) for i in range(len(val))}
    counts = np.bincount([val.target(i) for i in range(len(val))])
    assert counts.min() >= 34 and counts.max() <= 37
    assert train.picture(0).image().size == (32, 32) and train.classes == list("0123456789")


def test_folders_are_read_as_imagenet_is_laid_out(folder):
    train, val = ImageFolder(root=str(folder)).splits()
    assert train.classes == val.classes == ["dark", "light"]
    assert [train.target(i) for i in range(len(train))] == [0] * 6 + [1] * 6
    assert train.picture(3).image().size == (50, 43) and train.name(7).endswith("train/light/1.jpg")


def test_grey_scale_and_colour(folder):
    file = folder / "train/dark/0.jpg"
    assert Picture.read(file, 1).image().mode == "L" and Picture.read(file, 3).image().mode == "RGB"


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("L", "png"), ("P", "png"), ("RGBA", "webp")])
def test_pictures_of_any_kind_become_rgb(tmp_path, mode, suffix):
    Image.new("RGB", (20, 30), (200, 100, 50)).convert(mode).save(tmp_path / f"x.{suffix}")
    picture = Picture.read(tmp_path / f"x.{suffix}", 3).image()
    assert picture.mode == "RGB" and picture.size == (20, 30)


@pytest.mark.parametrize("content", [b"", b"no picture", "cut"])
def test_unreadable_pictures(folder, content):
    file = folder / "train/dark/0.jpg"
    file.write_bytes(file.read_bytes()[:400] if content == "cut" else content)
    with pytest.raises(BadImageError):
        Picture.read(file, 3).image()


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_file_that_claims_too_many_pixels_is_not_decoded(kind, monkeypatch):
    """A file of some hundred bytes whose header says 20,000 x 20,000."""
    content = huge_png()
    if kind == "JPEG":
        jpeg = BytesIO()
        Image.new("L", (16, 16)).save(jpeg, kind)
        content = bytearray(jpeg.getvalue())
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = struct.pack(">HH", 20_000, 20_000)
    monkeypatch.setattr("simplejpeg.decode_jpeg", lambda *_, **__: pytest.fail("decoded"))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("decoded"))
    picture = Picture(bytes(content), 3)
    for ask in (picture.image, picture.pixels, lambda: picture.size):
        with pytest.raises(BadImageError, match=r"20000 x 20000|400000000 pixels"):
            ask()


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow about what it skips
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX"])
def test_a_damaged_file_is_a_picture_or_a_bad_image(kind):
    draw = random.Random(0)
    content = BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(content, kind)
    whole = content.getvalue()
    assert Picture(whole, 3).pixels().shape[2] == 3
    bad = 0
    for _ in range(60):
        damaged = bytearray(whole[: draw.randrange(len(whole))] if draw.random() < 0.5 else whole)
        for _ in range(draw.randrange(4)):
            if damaged:
                damaged[draw.randrange(min(len(damaged), draw.choice((64, 4096))))] = draw.randrange(256)
        picture = Picture(bytes(damaged), 3)
        try:
            width, height = picture.size
            assert picture.pixels(2).shape in ((height, width, 3), (-(-height // 2), -(-width // 2), 3))
        except BadImageError:
            bad += 1
    assert bad > 10


def test_batches_lie_channels_last_in_memory(folder):
    batch = next(loader(ImageFolder(root=str(folder), img_size=32), seed=0).epoch())
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("data", ["digits", "folder"])
def test_the_stream_depends_on_seed_epoch_and_index_alone(data, folder):
    data = Digits() if data == "digits" else ImageFolder(root=str(folder), img_size=32)
    size = 200 if data.name == "digits" else 3
    here, there = loader(data, seed=1, batch_size=size), loader(data, seed=1, workers=2, batch_size=size)
    first, second = stream(here), stream(here, epoch=1)
    torch.rand(7)  # whatever else has been drawn in between
    assert stream(there) == first and stream(there, epoch=1) == second
    assert stream(there, start=2) == first[2:] and stream(here, epoch=1, start=1) == second[1:]
    assert first != second and stream(loader(data, seed=2, batch_size=size)) != first
    indices = [i for _, batch in first for i in batch]
    assert len(set(indices)) == len(indices) == len(here) * size


def picture_hashes(batch):
    """Index and hash of each picture of a batch."""
    return [
        (int(index), hashlib.sha256(image.numpy().tobytes()).hexdigest())
        for index, image in zip(batch.indices, batch.images)
    ]


def steps(data, processes, accumulation, workers=0, repeats=1, start=0):
    """What each step of an epoch sees, in order of rank: sets of pictures, and the pairs that mixup makes."""
    batch_size = 24 // processes // accumulation
    more = dict(seed=3, workers=workers, batch_size=batch_size, processes=processes, step=24, repeats=repeats)
    ranks = [loader(data, rank=rank, **more).epoch(1, start * accumulation) for rank in range(processes)]
    parts = [picture_hashes(batch) for turn in zip(*ranks) for batch in turn]
    together = processes * accumulation
    for i in range(0, len(parts) // together * together, together):
        step = [picture for part in parts[i : i + together] for picture in part]
        pairs = {frozenset(pair) for part in parts[i : i + together] for pair in zip(part, reversed(part))}
        yield sorted(step), pairs


def test_a_step_sees_the_same_pictures_in_any_number_of_processes():
    data = Digits()
    alone = list(steps(data, 1, 1))
    assert len(alone) == 1437 // 24
    assert list(steps(data, 1, 3)) == list(steps(data, 2, 1)) == list(steps(data, 4, 1)) == alone
    assert list(steps(data, 2, 3, workers=1)) == alone
    assert list(steps(data, 4, 3, start=50)) == alone[50:]


@pytest.mark.parametrize("processes", [1, 2])
def test_repeated_augmentation(processes):
    """Three copies of a picture in a step, each augmented anew, none mixed with another of the same picture."""
    for step, pairs in steps(Digits(), processes, 1, repeats=3):
        counts = np.unique([index for index, _ in step], return_counts=True)[1]
        assert counts.tolist() == [3] * 8 and len({content for _, content in step}) > 20
        assert all(len({index for index, _ in pair}) == 2 for pair in pairs)


def test_processes_share_an_evaluation(folder):
    data = ImageFolder(root=str(folder), img_size=32)
    ranks = [loader(data, rank=rank, processes=4, batch_size=2) for rank in range(4)]
    assert {len(one) for one in ranks} == {1}  # so that none waits for another
    seen = [[i for batch in one.epoch() for i in batch.indices.tolist()] for one in ranks]
    assert seen == [[0, 1], [2, 3], [4, 5], [0]]


def test_label_maps_come_with_their_pictures(folder, tmp_path):
    """A map whose scores are the places in the picture, seen through the same crop and flip as the picture."""
    ramp = np.broadcast_to(np.linspace(0, 255, 64), (64, 64)).astype(np.uint8)
    for file in sorted((folder / "train").rglob("*.jpg")):
        Image.fromarray(ramp).convert("RGB").save(file, quality=100)
        places = torch.linspace(0, 1, 16).expand(1, 16, 16)
        maps = tmp_path / "maps" / file.parent.name
        maps.mkdir(parents=True, exist_ok=True)
        torch.save(torch.stack([places, torch.zeros(1, 16, 16)]).half(), maps / f"{file.stem}.pt")
    data = ImageFolder(root=str(folder), img_size=32)
    transform = training_transform(data, AugmentSettings())
    samples = LabelledPictures(data.splits()[0], transform, str(tmp_path / "maps"))
    one = Loader(samples, 12, BadImages(0), seed=1)
    [batch] = one.epoch()
    assert batch.label_maps.shape == (12, 2, 1, 16, 16) and batch.crops.shape == (12, 5)
    assert 0 < batch.crops[:, 4].sum() < 12
    seen = crop_label_map(batch.label_maps[:, 0].float(), batch.crops, 32)[:, 0]
    assert (seen - batch.images[:, 0].float() / 255).abs().mean() < 0.02
    (tmp_path / "maps/dark/0.pt").unlink()
    with pytest.raises(InputError, match=r"label map .*dark/0.pt cannot be read"):
        list(one.epoch())


def test_a_loader_that_waits_says_so_and_gives_up(folder, caplog, monkeypatch):
    monkeypatch.setattr("training.data.loader.PATIENCE", 0.2)
    data = ImageFolder(root=str(folder), img_size=32)
    slow = loader(data, seed=0, timeout=0.7)
    picture = slow.source.picture
    slow.source.picture = lambda index: (time.sleep(0.3), picture(index))[1]
    with pytest.raises(InputError, match=r"No batch of pictures came within 1 seconds.*raise trainer.timeout"):
        list(slow.epoch())
    assert "still waiting" in caplog.text
    slow.timeout = 60
    assert len(list(slow.epoch())) == 3


def test_a_worker_that_dies_is_named(folder):
    data = ImageFolder(root=str(folder), img_size=32)
    one = loader(data, seed=0, workers=1)
    picture = one.source.picture
    one.source.picture = lambda index: os.kill(os.getpid(), signal.SIGKILL) if index == 5 else picture(index)
    with pytest.raises(InputError, match="A process that loads data has died"):
        list(one.epoch())


def test_evaluation_sees_every_picture_once_in_order(folder):
    batches = list(loader(ImageFolder(root=str(folder), img_size=32)).epoch())
    assert torch.cat([batch.indices for batch in batches]).tolist() == list(range(6))
    assert batches[0].images.dtype == torch.uint8 and batches[0].images.shape == (4, 3, 32, 32)


def test_the_evaluation_crop(tmp_path):
    """A picture twice as wide as high, its halves of different colour, is resized by its short side and cropped."""
    picture = Image.new("RGB", (100, 50), (255, 0, 0))
    picture.paste((0, 0, 255), (50, 0, 100, 50))
    tensor = evaluation_transform(ImageFolder(img_size=28, crop_pct=0.875))(Picture(picture, 3))
    assert tensor.shape == (3, 28, 28)
    assert tensor[0, :, 0].min() > 200 and tensor[2, :, -1].min() > 200


@pytest.mark.parametrize(
    ("policy", "channels"), [("rand-m10-n8-mstd2-inc1", 1), ("rand-m10-n8-mstd2-inc1", 3), ("augmix-m10", 3), ("3a", 3)]
)
def test_every_policy_of_timm_works_at_any_strength(policy, channels):
    data = Digits(channels=channels, mean=[0.5] * channels, std=[0.5] * channels)
    transform = training_transform(data, AugmentSettings(auto_augment=policy))
    picture = Picture(Image.new("L" if channels == 1 else "RGB", (40, 40), 128), channels)
    for seed in range(60):
        seed_everything(seed, "test")
        assert transform(picture).shape == (channels, 32, 32)


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_pictures_are_named_skipped_and_counted(folder, caplog, workers):
    for i in (1, 4):
        (folder / f"train/dark/{i}.jpg").write_bytes(b"\xff\xd8 cut")
    (folder / "val/light/0.jpg").write_bytes(b"")
    data = ImageFolder(root=str(folder), img_size=32)
    train, val = loader(data, seed=0, workers=workers, limit=2), loader(data, workers=workers)
    for epoch in range(2):
        batches = list(train.epoch(epoch))
        assert [len(batch.targets) for batch in batches] == [4, 4, 4]  # the next readable picture takes the place
        assert not {1, 4} & set(torch.cat([batch.indices for batch in batches]).tolist())
    assert sorted(name[-14:] for name in train.bad_images.reasons) == ["ain/dark/1.jpg", "ain/dark/4.jpg"]
    assert caplog.text.count("dark/1.jpg") == 1
    # The next readable one takes the place in an evaluation, too, which counts each once.
    assert torch.cat([batch.indices for batch in val.epoch()]).tolist() == [0, 1, 2, 4, 4, 5]


def test_too_many_bad_pictures(folder):
    for i in range(3):
        (folder / f"train/light/{i}.jpg").write_bytes(b"")
    train = loader(ImageFolder(root=str(folder), img_size=32), seed=0, limit=2)
    with pytest.raises(InputError, match=r"3 pictures are unreadable, and data.max_bad_images allows 2.*light/\d.jpg"):
        list(train.epoch())


def test_a_batch_larger_than_the_data(folder):
    with pytest.raises(InputError, match="A batch of 13 is larger than the training set of 12 pictures"):
        loader(ImageFolder(root=str(folder)), seed=0, batch_size=13)


def test_folders_that_cannot_be_used(folder, tmp_path):
    with pytest.raises(InputError, match=r"needs data\.root=PATH"):
        ImageFolder().splits()
    with pytest.raises(InputError, match=r"/nowhere does not exist"):
        ImageFolder(root=str(tmp_path / "nowhere")).splits()
    (folder / "val/blue").mkdir()
    with pytest.raises(InputError, match=r"class\(es\) blue of .*val do not occur in .*train"):
        ImageFolder(root=str(folder)).splits()
    (folder / "val/blue").rmdir()
    for file in (folder / "val").rglob("*.jpg"):
        file.unlink()
    with pytest.raises(InputError, match=r"There are no pictures in .*val"):
        ImageFolder(root=str(folder)).splits()
