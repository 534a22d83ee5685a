"""What a tar shard holds: where each picture lies in it, and its label; read once, and kept in a small file."""

import json
import os
import re
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from backbones.errors import first_line

VERSION = 1  # of the form of the kept file
PICTURES = ("jpg", "jpeg", "png", "webp", "ppm", "pgm", "pbm", "bmp", "tif", "tiff")  # the first that a sample has
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # gzip, bzip2, xz, zstd
BLOCK = 512  # bytes: a tar is made of these, and a block of zeros ends it


class BadShard(Exception):
    """A shard that is missing or damaged; the message says why."""


_READING = threading.Lock()  # NumPy parses headers with `ast`, which threads upset in Python 3.11


class ShardIndex(NamedTuple):
    """The N samples of a shard that have a picture.

    Attributes:
        names: of the pictures' files in the shard, UTF-8 (N,).
        offsets, sizes: of their content, in bytes (N,).
        labels: as they are written, UTF-8, empty where there is none (N,).
        stamp: size (bytes) and time of the last change (ns) of the shard: a shard with another is another shard.
    """

    names: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    labels: np.ndarray
    stamp: tuple[int, int]

    @classmethod
    def of(cls, shard: Path, field: str) -> Self:
        """Read a shard from end to end, though not its pictures.

        Raises:
            BadShard: it is missing, compressed, damaged, or cut short, or has no pictures.
        """
        try:
            before = stamp_of(os.stat(shard))
            rows = list(_samples(shard, field))
        except (OSError, tarfile.TarError, EOFError, ValueError) as error:
            raise BadShard(first_line(error)) from error
        if not rows:
            raise BadShard(f"it has no pictures ({', '.join(PICTURES)})")
        names, offsets, sizes, labels = zip(*rows)
        return cls(
            np.array([name.encode() for name in names], dtype=bytes),
            np.array(offsets, dtype=np.int64),
            np.array(sizes, dtype=np.int64),
            np.array([label.encode() for label in labels], dtype=bytes),
            before,
        )

    def save(self, path: Path, field: str) -> None:
        """Write the index; whoever reads meanwhile finds all of it or nothing. Raises OSError."""
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
            try:
                np.savez(file, form=np.array([str(VERSION), field]), **self._asdict())
                file.flush()
                os.fchmod(file.fileno(), 0o644)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise

    @classmethod
    def load(cls, path: Path, field: str) -> Self | None:
        """A kept index; None where there is none, or a damaged one, or one of another form or label field."""
        try:
            with _READING, np.load(path, allow_pickle=False) as kept:
                if kept["form"].tolist() != [str(VERSION), field]:
                    return None
                return cls(*(kept[name] for name in cls._fields[:-1]), tuple(kept["stamp"].tolist()))
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):
            return None


def stamp_of(stat: os.stat_result) -> tuple[int, int]:
    """What tells a shard from another one at the same path: size in bytes, time of the last change in ns."""
    return stat.st_size, stat.st_mtime_ns


def _samples(shard: Path, field: str) -> Iterator[tuple[str, int, int, str]]:
    """Name, offset, size and label of each picture, grouped as WebDataset does.

    Neighbouring files of the same name up to the first dot are a sample, and the rest of the name, in lower case, is a
    field of it. The label is the text of `cls`, or else the entry `field` of `json`.
    """
    with open(shard, "rb") as file:
        if file.read(6).startswith(COMPRESSED):
            raise BadShard("it is compressed, so that no picture in it can be found quickly; decompress it")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            key, fields = None, {}
            for member in tar:
                match = re.fullmatch(r"((?:.*/)?[^./]+)\.([^/]+)", member.name)
                if not (member.isreg() and match) or re.match("__[^/]*__(/|$)", member.name):
                    continue
                if match[1] != key:
                    yield from _sample(tar, fields, field)
                    key, fields = match[1], {}
                if match[2].lower() in fields:
                    raise BadShard(f"it holds {member.name} twice")
                fields[match[2].lower()] = member
            yield from _sample(tar, fields, field)
        # tarfile takes whatever is no header for the end.
        file.seek(tar.offset)
        if file.read(BLOCK) != bytes(BLOCK):
            raise BadShard(f"it is damaged or cut short at byte {tar.offset}")


def _sample(
    tar: tarfile.TarFile, fields: dict[str, tarfile.TarInfo], field: str
) -> Iterator[tuple[str, int, int, str]]:
    picture = next((fields[name] for name in PICTURES if name in fields), None)
    if picture is None:
        return
    label = ""
    try:
        if "cls" in fields:
            label = tar.extractfile(fields["cls"]).read().decode().strip()
        elif "json" in fields:
            label = str(json.loads(tar.extractfile(fields["json"]).read())[field])
    except (ValueError, LookupError, TypeError):
        pass  # one picture without a label does not make a bad shard
    yield picture.name, picture.offset_data, picture.size, label
