"""Files that are whole or not there at all, whenever the process dies."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from backbones.errors import InputError


def write_atomically(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to the disk, and rename it to `path`.

    Raises:
        InputError: the disk refuses, because it is full, say; what was at `path` before is still there.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:  # torch.save turns an OSError of the file into a RuntimeError
        temporary.unlink(missing_ok=True)
        kept = "The previous one is still there. " if path.exists() else ""
        raise InputError(
            f"{path} could not be written ({error}). {kept}Make room on the disk and resume the run."
        ) from error


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
