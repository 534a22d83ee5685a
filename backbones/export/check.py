"""Whether a written file gives the model's numbers, and how fast."""

import importlib.util
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from torch import Tensor

from ..kernels.dispatch import use
from ..subject import Subject, view_of, view_of_picture

SECONDS = 10.0  # that timing may take, apart from a first call of each
ROUNDS = 25  # at most

Run = Callable[[Tensor], list[Tensor]]


def open_file(path: Path) -> Run:
    """What a file computes, images (B, channels, H, W) to tensors: by onnxruntime, or by PyTorch."""
    if path.suffix != ".onnx":
        return listed(torch.export.load(path).module())
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()  # both sides are to have the same cores
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (images,) = session.get_inputs()
    return lambda x: [torch.from_numpy(y) for y in session.run(None, {images.name: x.numpy()})]


def listed(model: Callable[[Tensor], Tensor | list[Tensor]]) -> Run:
    """A model as a function to a list of tensors, without gradients."""

    def run(images: Tensor) -> list[Tensor]:
        with torch.no_grad(), use("reference"):
            outputs = model(images)
        return [outputs] if isinstance(outputs, Tensor) else list(outputs)

    return run


def photographs(subject: Subject, size: tuple[int, int], file: Path | None) -> dict[str, Tensor]:
    """Real images by name, (1, channels, H, W): a file, or scikit-learn's two where that is installed."""
    subject = replace(subject, size=size)
    if file is not None:
        return {file.name: view_of(subject, file).image}
    if subject.channels not in (1, 3) or importlib.util.find_spec("sklearn") is None:
        return {}
    from sklearn.datasets import load_sample_images

    found = load_sample_images()
    names = [Path(name).name for name in found.filenames]
    return {n: view_of_picture(subject, Image.fromarray(p)).image for n, p in zip(names, found.images)}


def mismatch(model: Run, exported: Run, images: Tensor) -> float:
    """Worst difference of all outputs, over the standard deviation of the model's (of a single number: its size)."""

    def of_one(expected: Tensor, y: Tensor) -> float:
        scale = expected.std() if expected.numel() > 1 else expected.abs()
        return ((y - expected).abs().max() / scale).item()

    return max(map(of_one, model(images), exported(images)))


def random_images(channels: int, size: tuple[int, int], dynamic: tuple[int, int] | None) -> dict[str, Tensor]:
    """Random images by their description, in two batches of `size` and, with `Backbone.export_sizes`, of others."""
    sizes = {size}
    if dynamic:
        least, step = dynamic
        sizes |= {(least, least), (size[0], size[1] + step), (least + 3 * step, least)}
    draw = torch.Generator().manual_seed(0)
    return {
        f"{batch} random of {height} x {width}": torch.randn(batch, channels, height, width, generator=draw)
        for height, width in sorted(sizes)
        for batch in (1, 3)
    }


def milliseconds(model: Run, exported: Run, images: Tensor) -> tuple[float, float]:
    """Median time of a call of each; they take turns, so that both see the same load."""
    runs, times = (model, exported), ([], [])
    for run in runs:
        run(images)
    start = time.perf_counter()
    while len(times[1]) < 3 or (len(times[1]) < ROUNDS and time.perf_counter() - start < SECONDS):
        for run, spent in zip(runs, times):
            begin = time.perf_counter()
            run(images)
            spent.append(1e3 * (time.perf_counter() - begin))
    return median(times[0]), median(times[1])
