"""Fetching published files: each once, continued where it broke off, and taken only when it is whole."""

import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlparse

import torch
from filelock import FileLock
from tqdm import tqdm

from .errors import InputError

log = logging.getLogger(__name__)

ATTEMPTS = 4  # without a single new byte
PAUSE = 2  # seconds before the next attempt, where nothing has arrived
CHUNK = 1 << 20  # bytes
TIMEOUT = 60  # seconds without an answer


def download(url: str, folder: str | Path | None = None) -> Path:
    """Path of the file behind a URL, fetched unless the folder has it.

    What has arrived is kept as `<name>.part` and continued by the next attempt or call. The file gets its name only
    when it has the size that the server states. Processes that want the same file wait for each other.

    Args:
        folder: where files are kept; torch.hub's `checkpoints` (`TORCH_HOME`) when None.

    Raises:
        InputError: the file cannot be had; says why, and that calling again continues.
    """
    folder = Path(folder) if folder else Path(torch.hub.get_dir()) / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / unquote(urlparse(url).path).rpartition("/")[2]
    part = path.with_name(path.name + ".part")
    with FileLock(path.with_name(path.name + ".lock")):
        if not path.exists():
            log.info("Downloading %s to %s", url, path)
            try:
                _fetch(url, part)
            except (OSError, http.client.HTTPException) as error:
                raise InputError(
                    f"The weights at {url} could not be downloaded ({error}). Check the connection and try again, "
                    "which continues where this stopped; or fetch the file by other means and pass its path as "
                    "checkpoint_path."
                ) from error
            os.replace(part, path)
    return path


def _fetch(url: str, part: Path) -> None:
    """Append to `part` until it is complete; an interrupted connection is taken up again."""
    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            _fetch_rest(url, part)
            return
        except urllib.error.HTTPError:
            raise  # the server answered: asking again would not help
        except (OSError, http.client.HTTPException) as error:
            arrived = part.exists() and part.stat().st_size > before
            failures = 0 if arrived else failures + 1
            if failures == ATTEMPTS:
                raise
            time.sleep(PAUSE if failures else 0)
            log.warning("The download was interrupted (%s); continuing.", error)


def _fetch_rest(url: str, part: Path) -> None:
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:
            raise
        part.unlink()  # it is longer than the file, or complete but never named: one fetch from the start settles it
        answer = urllib.request.urlopen(url, timeout=TIMEOUT)
    with answer:
        have = have if answer.status == 206 else 0  # else the server sends the whole file again
        length = answer.headers.get("Content-Length")
        total = have + int(length) if length is not None else None
        with (
            open(part, "r+b" if have else "wb") as file,
            tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=None) as bar,
        ):
            file.seek(have)
            while chunk := answer.read(CHUNK):
                file.write(chunk)
                bar.update(len(chunk))
            have = file.tell()
    if total is not None and have != total:
        raise ConnectionError(f"{have:,} of {total:,} bytes arrived")
