"""WebDataset's tar shards, read at random: local ones in place, others from a folder they are fetched into."""

import glob
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from backbones.errors import InputError, first_line

from .decode import BadImageError, Picture
from .lists import MOST_CLASSES, read_class_map
from .settings import DataSettings, Source
from .shard_cache import ShardCache, is_remote, webdataset
from .shard_index import BadShard, ShardIndex, stamp_of

log = logging.getLogger(__name__)

THREADS = 8  # that fetch and index shards


class ShardError(InputError):
    """More shards are missing or damaged than may be.

    A worker process may be where that turns up. PyTorch passes its errors on with the worker's traceback in front,
    which is cut off here, so that the message is the same paragraph.
    """

    def __init__(self, message: str):
        super().__init__(message.rpartition("ShardError: ")[2].strip())


class BadShards:
    """The missing and damaged shards of a run, as far as this process has met them."""

    def __init__(self, limit: int):
        self.limit = limit
        self.reasons: dict[str, str] = {}  # by name

    def add(self, name: str, reason: str) -> None:
        self.reasons.setdefault(name, reason)
        if len(self.reasons) > self.limit:
            raise ShardError(
                f"{len(self.reasons)} shard(s) cannot be used, and data.max_bad_shards allows {self.limit}. The last "
                f"one is {name} ({reason}). Restore it, or raise data.max_bad_shards to go on without."
            )


@dataclass
class Shard:
    """A shard that can be read: its name in messages, where it lies, and what it holds."""

    name: str
    path: Path
    index: ShardIndex

    def read(self, i: int) -> bytes:
        """The file of picture number `i`. The shard is opened for it, so that forks and many shards share no files.

        Raises:
            BadShard: the shard is gone, or another one is in its place.
            BadImageError: the picture cannot be read.
        """
        try:
            file = os.open(self.path, os.O_RDONLY)
        except OSError as error:
            raise BadShard(first_line(error)) from error
        try:
            if stamp_of(os.fstat(file)) != self.index.stamp:
                raise BadShard("it has been changed since the run began")
            return os.pread(file, int(self.index.sizes[i]), int(self.index.offsets[i]))
        except OSError as error:
            raise BadImageError(first_line(error)) from error
        finally:
            os.close(file)


class ShardSource:
    """The pictures of some shards, in their order.

    Args:
        labels: of each picture, -1 where it has no usable one.
        bad: counts shards that turn out to be bad; one counts as one unreadable picture, under its own name.
    """

    def __init__(self, shards: list[Shard], labels: np.ndarray, classes: list[str], channels: int, bad: BadShards):
        self.shards, self.classes, self.channels, self.bad = shards, classes, channels, bad
        self._labels = labels
        self._ends = np.cumsum([len(shard.index.names) for shard in shards])

    def __len__(self) -> int:
        return len(self._labels)

    def picture(self, index: int) -> Picture:
        shard, i = self._find(index)
        if self._labels[index] < 0:
            label = shard.index.labels[i].decode()
            raise BadImageError(f"its label, {label!r}, is no class" if label else "it has no label")
        try:
            return Picture(shard.read(i), self.channels)
        except BadShard as error:
            self.bad.add(shard.name, str(error))
            raise BadImageError(str(error)) from error

    def target(self, index: int) -> int:
        return int(self._labels[index])

    def name(self, index: int) -> str:
        shard, i = self._find(index)
        return shard.name if shard.name in self.bad.reasons else f"{shard.name}/{shard.index.names[i].decode()}"

    def _find(self, index: int) -> tuple[Shard, int]:
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.shards[number]
        return shard, int(index - self._ends[number] + len(shard.index.names))


@dataclass
class WebDataset(DataSettings):
    """Tar shards as WebDataset writes them: KEY.jpg beside KEY.cls, or beside KEY.json.

    Args:
        root: folder or URL that the patterns are relative to.
        train, val: which shards: WebDataset's patterns with braces (`train-{000000..001281}.tar`), several joined by
            `::`, URLs, `pipe:` commands; or, for local shards, shell patterns (`train-*.tar`).
        label: entry of the JSON that holds the label, in samples without `cls`.
        class_map: file with the names of the classes in the order of their labels (`lists.read_class_map` describes
            it). A label is then a number or a folder's name of the map; without it, a number, and its own name.
        max_bad_shards: shards that may be missing or damaged before the run stops; it goes on without the others.
        cache: folder for shards that are fetched, and for what is in local ones whose own folder cannot be written;
            ~/.cache/backbones/shards where it is not given.
        cache_gb: what that folder may hold, in 10⁹ bytes.
    """

    name: str = "webdataset"
    root: str | None = None
    train: str = "train-*.tar"
    val: str = "val-*.tar"
    label: str = "label"
    class_map: str | None = None
    max_bad_shards: int = 0
    cache: str | None = None
    cache_gb: float = 200.0

    def __post_init__(self):
        super().__post_init__()
        if self.max_bad_shards < 0 or self.cache_gb <= 0:
            raise InputError("data.max_bad_shards must not be negative, and data.cache_gb must be above 0.")

    def splits(self) -> tuple[Source, Source]:
        bad = BadShards(self.max_bad_shards)
        train = self._source(self.train, bad, None if self.class_map is None else read_class_map(self.class_map))
        return train, self._source(self.val, bad, {name: name for name in train.classes})

    def evaluation(self) -> Source:
        # A class map says all that the training shards are asked for.
        if self.class_map is None:
            return super().evaluation()
        return self._source(self.val, BadShards(self.max_bad_shards), read_class_map(self.class_map))

    def _source(self, pattern: str, bad: BadShards, names: dict[str, str] | None) -> ShardSource:
        """The source of a pattern; `names` of the classes as of a class map, None: as many as the labels say."""
        shards = self._open(pattern, bad)
        texts = [text.decode() for shard in shards for text in shard.index.labels]
        by_folder = {folder: label for label, folder in enumerate(names or {})}
        labels = np.array([_number(text) if text.isdecimal() else by_folder.get(text, -1) for text in texts])
        classes = [str(label) for label in range(labels.max() + 1)] if names is None else list(names.values())
        labels[labels >= len(classes)] = -1
        source = ShardSource(shards, labels, classes, self.channels, bad)
        wrong = np.flatnonzero(labels < 0)
        if len(wrong) > self.max_bad_images:
            first = int(wrong[0])
            expected = f"from 0 to {len(classes) - 1}" if classes else "that is a number"
            raise InputError(
                f"{len(wrong)} of {len(source)} pictures in shards have no label {expected}, and data.max_bad_images "
                f"allows {self.max_bad_images}. The first is {source.name(first)}, with the label {texts[first]!r}. A "
                f"label is the text of KEY.cls, or the entry data.label={self.label} of KEY.json."
            )
        return source

    def _open(self, pattern: str, bad: BadShards) -> list[Shard]:
        """The shards of a pattern, without the bad ones."""
        cache = ShardCache(Path(self.cache or "~/.cache/backbones/shards").expanduser(), self.cache_gb * 1e9)
        names = self._expand(pattern)
        remote = sum(is_remote(name) and not cache.path(name).exists() for name in names)
        log.info("Opening %d shard(s)%s", len(names), f", {remote} of which are fetched first" if remote else "")
        shards, changed = [], []
        with ThreadPoolExecutor(THREADS) as pool:
            futures = [pool.submit(self._open_one, name, cache) for name in names]
            try:
                for name, future in zip(tqdm(names, "Opening shards", unit="shard", disable=None), futures):
                    try:
                        shard, was_changed = future.result()
                    except BadShard as error:
                        bad.add(name, str(error))
                        log.warning("Left out a shard: %s (%s)", name, error)
                        continue
                    shards.append(shard)
                    changed += [name] * was_changed
            except BaseException:
                cache.closing = True
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        if changed:
            log.warning("%d shard(s) are others than when they were indexed, %s for one", len(changed), changed[0])
        if not shards:
            raise InputError(f"None of the {len(names)} shards of {pattern} can be used.")
        return shards

    def _open_one(self, name: str, cache: ShardCache) -> tuple[Shard, bool]:
        """A shard, and whether it is another than the one of the same name that was indexed before."""
        path = cache.fetch(name) if is_remote(name) else Path(name)
        kept = path.with_name(f"{path.name}.index")
        if not os.access(path.parent, os.W_OK):
            kept = cache.path(f"{path.absolute()}.index")
        index = ShardIndex.load(kept, self.label)
        try:
            if index is not None and index.stamp == stamp_of(os.stat(path)):
                return Shard(name, path, index), False
        except OSError as error:
            raise BadShard(first_line(error)) from error
        try:
            new = ShardIndex.of(path, self.label)
        except BadShard:
            if is_remote(name):
                path.unlink(missing_ok=True)  # so that the next run fetches it again
            raise
        new.save(kept, self.label)
        return Shard(name, path, new), index is not None

    def _expand(self, pattern: str) -> list[str]:
        """Names of the shards of a pattern."""
        names = []
        for part in pattern.split("::"):
            if self.root is not None and not is_remote(part):
                part = os.path.join(os.path.expanduser(self.root), part)
            for name in webdataset("shardlists").expand_urls(part) if "{" in part else [part]:
                name = name.removeprefix("file://")
                names += sorted(glob.glob(name)) if glob.has_magic(name) and not is_remote(name) else [name]
        if not names:
            raise InputError(
                f"There are no shards {pattern} in {self.root or os.getcwd()}. Set data.root=PATH, and data.train and "
                "data.val if the shards have other names, such as 'data.train=\"train-{000000..001281}.tar\"'."
            )
        return names


def _number(text: str) -> int:
    """A label; -1 for what can be none."""
    return int(text) if len(text) <= len(str(MOST_CLASSES)) and int(text) < MOST_CLASSES else -1
