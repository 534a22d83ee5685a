"""Files that are whole or not there at all, whenever the process dies."""

import errno
import os
from pathlib import Path

from backbones.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def write_atomically(path: Path, content: bytes | memoryview, called: Path | None = None) -> None:
    """Fill a temporary file beside `path`, flush it to the disk, and rename it to `path`.

    Args:
        called: what an error calls it, where that is another file.

    Raises:
        InputError: the disk refuses, because it is full, say; what was at `path` before is still there.
    """
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself
        finally:
            os.close(folder)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        called = called or path
        kept = " The previous one is still there." if called.exists() else ""
        advice = " Make room on the disk, then resume the run." if error.errno in FULL else ""
        raise InputError(f"{called} could not be written ({error}).{kept}{advice}") from error


def write_text(path: Path, text: str) -> None:
    """`write_atomically` for text, as UTF-8."""
    write_atomically(path, text.encode())
