"""Tar shards of grey pictures for the tests, and what is read from them."""

import hashlib
import io
import tarfile
from pathlib import Path

from PIL import Image

from training.data import AugmentSettings, BadImages, LabelledPictures, Loader, training_transform

PER_SHARD = 5


def picture(shade: int, form: str = "PNG") -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (40, 36), (shade, shade, shade)).save(content, form)
    return content.getvalue()


def write_shard(path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def write_split(folder, split: str, count: int) -> None:
    """Shards of grey pictures; shade 10 n for number n of all, of class n % 2."""
    for shard in range(count):
        files = {}
        for n in range(shard * PER_SHARD, (shard + 1) * PER_SHARD):
            files |= {f"{n:04}.png": picture(10 * n), f"{n:04}.cls": str(n % 2).encode()}
        write_shard(folder / f"{split}-{shard:06}.tar", files)


def write_splits(folder: Path) -> Path:
    """The folder, new, with 4 shards to train and one to evaluate."""
    folder.mkdir()
    write_split(folder, "train", 4)
    write_split(folder, "val", 1)
    return folder


def shade(source, index: int) -> int:
    return source.picture(index).image().getpixel((0, 0))[0]


def loader(data, workers=0, limit=10):
    transform = training_transform(data, AugmentSettings())
    return Loader(LabelledPictures(data.splits()[0], transform), 3, BadImages(limit), workers, seed=1)


def stream(loader, epoch=0, start=0):
    return [
        (hashlib.sha256(batch.images.numpy().tobytes()).hexdigest(), batch.indices.tolist())
        for batch in loader.epoch(epoch, start)
    ]
