"""How the programs end: exit codes, and errors as one paragraph."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from backbones.errors import InputError

from .engine import Interrupted

# Lines of Hydra's and OmegaConf's messages about their own insides.
NOISE = ("reference_type=", "object_type=", "Config search path", "provider=", "See https://hydra.cc")
USAGE, TRY_AGAIN = 2, 75  # what was given cannot work; stopped by a signal with the state saved


@contextmanager
def ending_well(debug: bool) -> Iterator[None]:
    """Turn errors about the input, and interruptions, into their message and exit code; bugs keep their traceback.

    Args:
        debug: keep every traceback.
    """
    try:
        yield
    except Interrupted as stopped:
        print(f"{stopped} Nothing is lost; go on with: {stopped.go_on}")
        sys.exit(TRY_AGAIN)
    except KeyboardInterrupt:
        print("Stopped by SIGINT.")
        sys.exit(TRY_AGAIN)
    except BrokenPipeError:  # whoever read the output has gone, as in `train.py | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        message = paragraph(error)
        if debug or message is None:
            raise
        print(f"Error: {message}", file=sys.stderr)
        sys.exit(USAGE)


def _about_configuration(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("hydra", "omegaconf")


def paragraph(error: BaseException) -> str | None:
    """The message on one line; of configuration errors, with the cause that names the key. None: it is a bug."""
    if not _about_configuration(error):
        about_the_machine = isinstance(error, OSError) and error.errno is not None  # a full disk, a missing permission
        return " ".join(str(error).split()) if isinstance(error, InputError) or about_the_machine else None
    texts = [str(error)]
    if error.__cause__ is not None and str(error.__cause__) not in texts[0]:
        texts.append(str(error.__cause__))
    lines = [line.strip() for text in texts for line in text.splitlines()]
    kept = [line.rstrip(".;,") for line in lines if line and not line.startswith(NOISE)]
    message = "; ".join(kept).replace(":;", ":")
    return f"{message}. --help shows the groups, --cfg job every key."
