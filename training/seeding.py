"""Randomness as a function of what it is for, so that no generator's state ever has to be saved."""

import random
from zlib import crc32

import numpy as np
import torch


def seed_everything(seed: int, purpose: str, *key: int) -> None:
    """Set the global generators of Python, NumPy and torch to a state that depends on the arguments alone."""
    state = _state(seed, purpose, key)
    random.seed(state)
    np.random.seed(state)
    _seed_torch(state)


def seed_torch(seed: int, purpose: str, *key: int) -> None:
    """`seed_everything` for torch's generators alone."""
    _seed_torch(_state(seed, purpose, key))


def _state(seed: int, purpose: str, key: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence((seed, crc32(purpose.encode()), *key)).generate_state(1)[0])


def _seed_torch(state: int) -> None:
    torch.default_generator.manual_seed(state)
    if torch.cuda.is_initialized():  # torch.manual_seed would queue a call, with its traceback, where it is not
        torch.cuda.manual_seed_all(state)
