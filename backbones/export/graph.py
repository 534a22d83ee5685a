"""A model as a graph of PyTorch's own operators, for any batch and, where it is asked for, many image sizes."""

from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.fx.experimental import _config as symbolic_shapes

from ..errors import InputError
from ..kernels.dispatch import use

OPSET = 20  # of ONNX; what the graphs need is in it, and older runtimes have it


def capture(model: nn.Module, size: tuple[int, int], dynamic: bool = False) -> ExportedProgram:
    """The graph of a model in evaluation mode, for images (B, channels, H, W) of any B.

    Args:
        model: a `Backbone`, or what `features_only` makes of it.
        size: H and W, in pixels.
        dynamic: for all H and W of `Backbone.export_sizes` in place of `size` alone.

    Raises:
        InputError: the model cannot be exported for many sizes, or not for this one.
    """
    backbone = getattr(model, "model", model)
    shapes = {0: Dim("batch", min=2)}  # PyTorch's way to say any: a graph that supposes no batch of 1 takes one
    if dynamic:
        least, step = backbone.export_sizes()
        if any(side < least or side % step for side in size):
            raise InputError(
                f"A graph of this model for many sizes takes sides from {least} pixels on in steps of {step}, but "
                f"--size is {size[0]} {size[1]}. Give such a size, or leave --dynamic out for a graph of this one."
            )
        shapes |= {axis: step * Dim(name, min=least // step) for axis, name in ((2, "h"), (3, "w"))}
        size = (least + step, least + 2 * step)
    images = torch.zeros(2, backbone.in_chans, *size, dtype=next(model.parameters()).dtype)
    # Sizes are then not compared with 0 and 1, and memory layouts not with one another: a graph is for all of them.
    with torch.no_grad(), use("reference"), symbolic_shapes.patch(backed_size_oblivious=True):
        return torch.export.export(model, (images,), dynamic_shapes=(shapes,))


def write_onnx(program: ExportedProgram, path: Path, outputs: list[str]) -> None:
    """Write a graph as an ONNX file; weights of more than 1.5 GB get a file of their own beside it."""
    onnx = torch.onnx.export(program, input_names=["images"], output_names=outputs, opset_version=OPSET, verbose=False)
    onnx.save(path)
