"""Shards behind a URL or a command, fetched whole into a folder through WebDataset's pipes."""

import hashlib
import importlib
import logging
import os
import re
import select
import shlex
import time
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from filelock import FileLock

from backbones.errors import InputError, first_line

from .shard_index import BadShard

log = logging.getLogger(__name__)

ATTEMPTS = 3
PAUSE = 2  # seconds before the next attempt
SILENCE = 120  # seconds without a byte after which an attempt has failed
CHUNK = 1 << 20  # bytes


def webdataset(module: str) -> ModuleType:
    """A module of the package, which is asked for where its patterns or pipes are needed."""
    try:
        return importlib.import_module(f"webdataset.{module}")
    except ImportError as error:
        raise InputError(
            "Shards behind a URL or a pattern with braces need WebDataset: pip install 'backbones[webdataset]'."
        ) from error


def is_remote(shard: str) -> bool:
    """Whether a shard is named by a URL or a command (`pipe:…`), and not by a path."""
    return shard.startswith("pipe:") or "://" in shard


class ShardCache:
    """A folder of fetched shards, each of which is fetched once, whoever else uses the folder.

    Args:
        limit: what the folder may hold, in bytes.
    """

    def __init__(self, folder: Path, limit: float):
        self.folder, self.limit = folder, limit
        self.closing = False  # set to give up what is being fetched

    def path(self, name: str) -> Path:
        """Where in the folder, which is made, something of this name is kept."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"The folder for fetched shards cannot be made ({error}). Set data.cache.") from error
        readable = re.sub(r"[^\w.-]+", "_", name.partition("?")[0])[-80:]  # what follows ? can be a secret
        return self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-{readable}"

    def fetch(self, url: str) -> Path:
        """Path of the shard behind a URL or command.

        Raises:
            BadShard: it could not be had after some attempts.
            InputError: the folder is full.
        """
        path = self.path(url)
        with FileLock(f"{path}.lock"):
            for attempt in range(ATTEMPTS if not path.exists() else 0):
                time.sleep(PAUSE if attempt else 0)
                try:
                    self._fetch(url, path)
                    break
                except (OSError, ValueError) as error:  # ValueError: no pipe for this kind of URL
                    if attempt == ATTEMPTS - 1 or self.closing:
                        raise BadShard(f"fetching it failed: {first_line(error)}") from error
                    log.warning("Fetching %s failed (%s); trying again", url, first_line(error))
        return path

    def _fetch(self, url: str, path: Path) -> None:
        part = path.with_name(f"{path.name}.part")
        gopen = webdataset("gopen")
        if url.startswith("s3://") and "s3" not in gopen.gopen_schemes:
            command = f"pipe:aws s3 cp --only-show-errors {shlex.quote(url)} -"
        else:
            command = url
        try:
            with gopen.gopen(command) as pipe, open(part, "wb") as file:
                gopen.set_options(pipe, ignore_errors=True)  # its status is looked at below
                try:
                    while chunk := self._read(pipe):
                        file.write(chunk)
                except BaseException:
                    pipe.proc.kill()
                    raise
            if pipe.status != 0:
                called = pipe.args[0][0]
                called = called if isinstance(called, str) else shlex.join(called)
                raise OSError(f"status {pipe.status} of: {called}")
            with FileLock(self.folder / "room.lock"):  # a shard renamed while another counts would not be counted
                self._check_room()
                os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)

    def _read(self, pipe) -> bytes:
        """The next bytes of a pipe, b"" at its end."""
        ready = []
        waited = 0
        while not ready:
            if self.closing:
                raise OSError("it was given up")
            if waited >= SILENCE:
                raise OSError(f"nothing has arrived for {SILENCE} seconds")
            ready, _, _ = select.select([pipe.stream], [], [], 1)
            waited += 1
        # Past the pipe's own buffer, of which `select` knows nothing.
        return os.read(pipe.stream.fileno(), CHUNK)

    def _check_room(self) -> None:
        used = 0
        for entry in os.scandir(self.folder):
            with suppress(FileNotFoundError):  # another thread or process has just given it up
                used += entry.stat().st_size if entry.is_file() else 0
        if used > self.limit:
            raise InputError(
                f"The shards do not fit into {self.folder}: data.cache_gb allows {self.limit / 1e9:g} GB. Raise it, "
                "set data.cache to a folder on a larger disk, or remove shards of other data from it."
            )
