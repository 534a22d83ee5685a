"""A program that trains, dies by SIGKILL at random moments, and goes on each time.

    python tests/dying.py SEED DEATHS [train.py's arguments]

A moment is a training step, a batch of an evaluation, or one of the system calls that write a file; each attempt gets a
few of them further. Prints in which of these it died, a line for each.
"""

import os
import random
import signal
import sys

import train
from training.tasks import Classification

MOMENTS = 30  # an attempt dies within so many


def _dying(function, name: str, countdown: list[int]):
    def wrapped(*arguments, **keywords):
        countdown[0] -= 1
        if countdown[0] == 0:
            os.write(1, f"died in {name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **keywords)

    return wrapped


def die_in(moments: int) -> None:
    """Let this process die after so many moments."""
    left = [moments]
    Classification.training_step = _dying(Classification.training_step, "training step", left)
    Classification.evaluation_step = _dying(Classification.evaluation_step, "evaluation", left)
    for call in ("replace", "fsync", "open"):
        setattr(os, call, _dying(getattr(os, call), f"os.{call}", left))


def attempt(moments: int | None, arguments: list[str]) -> bool:
    """Train in a process of its own, which dies after so many moments; whether it came to the end before."""
    child = os.fork()
    if child == 0:
        if moments is not None:
            die_in(moments)
        train.main([*arguments, "resume=auto"])
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if status not in (0, signal.SIGKILL):
        sys.exit(f"ended with status {status}")
    return status == 0


def main(seed: int, deaths: int, arguments: list[str]) -> None:
    draws = random.Random(seed)
    while deaths and not attempt(draws.randint(1, MOMENTS), arguments):
        deaths -= 1
    if deaths:
        sys.exit(f"came to the end with {deaths} deaths to go")
    attempt(None, arguments)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
