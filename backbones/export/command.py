"""From names and files to a checked file on disk, and what is known of it beside it."""

import importlib.metadata
import importlib.util
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..backbone import check_images
from ..errors import InputError, first_line
from ..subject import load_subject, numbered
from .check import listed, milliseconds, mismatch, open_file, photographs, random_images
from .graph import OPSET, capture, write_onnx

SUFFIXES = {"onnx": ".onnx", "exported-program": ".pt2"}
PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "exported-program": ()}
TOLERANCE = 1e-3


def export(
    name: str,
    format: str,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    features: bool = False,
    dense: str | None = None,
    image: Path | None = None,
    output: Path | None = None,
) -> str:
    """Write a model as a file for other programs, check and time it; returns what to tell the person who asked for it.

    Args:
        checkpoint: a file of weights, or a run folder.
        size: height and width of the images, in pixels; the model's own where it is None.
        dynamic: write one graph for many sizes.
        features, dense: write the maps of all stages, or those of the dense backbone, in place of logits.
        image: a picture for the check; scikit-learn's photographs where it is None.
        output: the file; NAME.onnx or NAME.pt2 where it is None.

    Raises:
        InputError: something given that cannot work, or a file that does not give the model's numbers; says why.
    """
    path = output or Path(f"{name}{SUFFIXES[format]}")
    check_packages(format)
    check_path(path, format)
    subject = load_subject(name, checkpoint, pretrained, dense, features or dense is not None)
    backbone = getattr(subject.model, "model", subject.model)
    sizes = backbone.export_sizes() if dynamic else None
    if size is None:
        size = [max(sizes[0], -(-side // sizes[1]) * sizes[1]) for side in subject.size] if sizes else subject.size
    size = tuple(size)
    zeros = torch.zeros(1, subject.channels, *size)
    check_images(zeros, subject.channels, backbone.min_size)
    images = photographs(subject, size, image) | random_images(subject.channels, size, sizes)

    program = capture(subject.model, size, dynamic)
    model = listed(subject.model)
    outputs = model(zeros)
    names = [f"map{i}" for i in range(len(outputs))] if features or dense else ["logits"]
    unchecked = write(program, path, format, names)
    exported = open_file(unchecked)
    found = {words: mismatch(model, exported, x) for words, x in images.items()}
    if not max(found.values()) <= TOLERANCE:  # also where one is no number
        raise InputError(
            f"The exported file does not give the model's numbers: they differ by up to {max(found.values()):.1e} of "
            f"their standard deviation, and {TOLERANCE:.0e} is allowed ({described(found)}). The file stays at "
            f"{unchecked}, under no name that a program would take it by; do not use it."
        )
    before, after = milliseconds(model, exported, torch.randn_like(zeros))
    facts = dict(
        name=name,
        weights=subject.weights,
        format=format,
        opset=OPSET if format == "onnx" else None,
        size=size,
        dynamic_size=dict(least=sizes[0], step=sizes[1]) if sizes else None,
        inputs=dict(images=["batch", subject.channels, *(("height", "width") if dynamic else size)]),
        outputs={n: ["batch", *y.shape[1:]] for n, y in zip(names, outputs)},  # for images of `size`
        mean=subject.mean,
        std=subject.std,
        classes=None if features or dense or subject.classes == numbered(len(subject.classes)) else subject.classes,
        mismatch=found,
        tolerance=TOLERANCE,
        milliseconds=dict(torch=before, exported=after, ratio=before / after, threads=torch.get_num_threads()),
        versions={package: importlib.metadata.version(package) for package in ("torch", "timm", *PACKAGES[format])},
    )
    for file in unchecked.parent.iterdir():
        file.replace(path.parent / file.name)
    unchecked.parent.rmdir()
    path.with_name(path.name + ".json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return report(path, facts)


def check_packages(format: str) -> None:
    missing = [package for package in PACKAGES[format] if importlib.util.find_spec(package) is None]
    if missing:
        raise InputError(
            f"Writing and checking an ONNX file needs {', '.join(missing)}. Install the extra: "
            'pip install "backbones[export]". The format exported-program needs nothing more than PyTorch.'
        )


def check_path(path: Path, format: str) -> None:
    """Raise InputError before the work, if its result could not be written."""
    if path.suffix != SUFFIXES[format]:
        raise InputError(f"A file of the format {format} ends in {SUFFIXES[format]}, but --output is {path}.")
    if path.is_dir() or not os.access(path.parent, os.W_OK):
        raise InputError(f"{path} cannot be written: its folder does not exist or is protected, or it is a folder.")


def write(program: ExportedProgram, path: Path, format: str, outputs: list[str]) -> Path:
    """Write the file into a folder beside `path`, which it leaves when it has passed the check; returns where it is.

    A file that does not pass, or whose check was interrupted, can be looked at there, and is not taken for a good one.
    """
    folder = path.with_name(path.name + ".unchecked")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        if format == "onnx":
            write_onnx(program, folder / path.name, outputs)
        else:
            torch.export.save(program, folder / path.name)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({first_line(error)}).") from error
    return folder / path.name


def described(found: dict[str, float]) -> str:
    return ", ".join(f"{words}: {value:.1e}" for words, value in found.items())


def report(path: Path, facts: dict[str, Any]) -> str:
    """What was written, how exact it is, and how fast."""
    times, sizes, size = facts["milliseconds"], facts["dynamic_size"], "{} x {} px".format(*facts["size"])
    taken = f"sides from {sizes['least']} px on in steps of {sizes['step']}" if sizes else size
    runtime = "onnxruntime" if facts["format"] == "onnx" else "the exported program"
    mismatches = "".join(f"           {value:.1e}  {words}\n" for words, value in facts["mismatch"].items())
    return (
        f"{path}: {facts['name']} for any batch and {taken} (weights: {facts['weights']})\n"
        f"Mismatch:  {max(facts['mismatch'].values()):.1e} of the standard deviation\n"
        f"{mismatches}"
        f"Speed:     {times['exported']:.1f} ms by {runtime}, {times['torch']:.1f} ms by PyTorch, "
        f"{times['ratio']:.2f} x (1 image of {size}, {times['threads']} threads)\n"
        f"Facts:     {path.name}.json"
    )
