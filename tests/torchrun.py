"""A program for torchrun: train.py, writing the loss of each part of each step to a file per process.

    torchrun tests/torchrun.py FOLDER [train.py's arguments]

With SEED and DEATHS in the environment, one process, each time another, dies at a random moment in so many attempts.
"""

import os
import random
import sys
from pathlib import Path

import train
from tests.dying import MOMENTS, die_in
from training.tasks import Classification

folder = Path(sys.argv[1])
sys.argv[1:] = sys.argv[2:]
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
training_step = Classification.training_step


def recorded(task, batch):
    losses = training_step(task, batch)
    with open(folder / f"losses{rank}", "a") as file:
        file.write(f"{sum(losses.values()).item()!r}\n")
    return losses


Classification.training_step = recorded
if attempt < int(os.environ.get("DEATHS", 0)):
    draws = random.Random(f"{os.environ['SEED']} {attempt}")
    who, moments = draws.randrange(int(os.environ["WORLD_SIZE"])), draws.randint(1, MOMENTS)
    if who == rank:
        die_in(moments)
train.main(sys.argv[1:])
