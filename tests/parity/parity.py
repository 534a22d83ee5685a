"""Deterministic stand-in checkpoints and inputs for parity tests.

A parity case (`<family>/<variant>.json`) holds the state-dict manifest of a family's *official*
release (key names and shapes exactly as in its published checkpoints) and what the official model
computes in float64 with the stand-in weights below. A port passes when the stand-in checkpoint, sent
through its own checkpoint conversion, loads with no key missing or left over and reproduces the numbers.

Everything here depends only on NumPy's frozen `RandomState` streams, so the values are the same on
every machine and version.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

# Name fragments of additive position tables: drawn wide, so that a wrong index shows up in the output.
POSITION_TABLES = ("relative_position_bias_table", "rpb", "pos_embed", "position_embed")


def standin_tensor(name: str, shape: list[int], dtype: str = "float32") -> torch.Tensor:
    """The stand-in value of one official state-dict entry.

    Float entries are drawn from a stream seeded by the entry's name: position tables N(0, 0.5),
    residual position filters (`pos_embed.weight`) and biases and running means N(0, 0.1), running variances in
    [0.75, 1.25], other vectors (norm scales,
    layer scales) N(1, 0.1), matrices and filters N(0, 1/sqrt(fan_in)). Integer entries are zero: they
    are counters or index tables, which a port computes for itself.
    """
    if not dtype.startswith("float"):
        return torch.zeros(shape, dtype=getattr(torch, dtype))
    noise = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(tuple(shape) or (1,))
    leaf = name.rsplit(".", 1)[-1]
    if any(fragment in leaf for fragment in POSITION_TABLES):
        value = 0.5 * noise
    elif name.endswith("pos_embed.weight"):
        value = 0.1 * noise
    elif leaf == "running_var":
        value = 1.0 + 0.25 * np.tanh(noise)
    elif leaf in ("running_mean", "bias") or leaf.endswith("_bias"):
        value = 0.1 * noise
    elif len([d for d in shape if d != 1]) <= 1:
        value = 1.0 + 0.1 * noise
    else:
        value = noise / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float64).reshape(shape))


def standin_checkpoint(manifest: list) -> dict[str, torch.Tensor]:
    """A whole official-format state dict (float64) from a manifest of [name, shape, dtype] rows."""
    return {name: standin_tensor(name, shape, dtype) for name, shape, dtype, *_ in manifest}


def standin_images(batch: int, height: int, width: int, channels: int = 3) -> torch.Tensor:
    """Images (batch, channels, height, width), float64, N(0, 1)."""
    return torch.from_numpy(np.random.RandomState(0).standard_normal((batch, channels, height, width)))


def probe(tensor: torch.Tensor, count: int = 64) -> dict:
    """Shape, mean, standard deviation and `count` evenly spaced values of a tensor."""
    flat = tensor.detach().double().flatten()
    where = torch.linspace(0, flat.numel() - 1, min(count, flat.numel())).round().long()
    return {
        "shape": list(tensor.shape),
        "mean": float(flat.mean()),
        "std": float(flat.std()),
        "values": [float(f"{v:.10g}") for v in flat[where].tolist()],
    }


def mismatch(tensor: torch.Tensor, expected: dict) -> float:
    """Largest |difference| over the probed values, relative to the expected standard deviation.

    Infinite when the shape differs or the tensor holds a non-finite value.
    """
    if list(tensor.shape) != expected["shape"] or not torch.isfinite(tensor).all():
        return float("inf")
    got = torch.tensor(probe(tensor, len(expected["values"]))["values"], dtype=torch.float64)
    want = torch.tensor(expected["values"], dtype=torch.float64)
    return float((got - want).abs().max() / max(expected["std"], 1e-12))


def load_case(path: str | Path) -> dict:
    return json.loads(Path(path).read_text())
