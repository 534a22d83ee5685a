"""When a linear layer on a map is faster as a 1 x 1 convolution on a CPU, in one process, alternating.

    python benchmarks/linear.py

The layers are those of swin_t's blocks. Prints medians in ms of both, for inference and for forward and backward, and
the ratios (above 1: the convolution is faster), with what `MapLinear` chooses.
"""

import argparse

import measure
import torch
import torch.nn.functional as F
from torch import Tensor

from backbones.layers.linear import faster_as_convolution

LAYERS = [  # side of the map, in and out channels
    *((56, 96, 288), (56, 96, 96), (56, 96, 384), (56, 384, 96)),
    *((28, 192, 576), (28, 192, 192), (28, 192, 768), (28, 768, 192)),
    *((14, 384, 1152), (14, 384, 384), (14, 384, 1536), (14, 1536, 384)),
    *((7, 768, 2304), (7, 768, 768), (7, 768, 3072), (7, 3072, 768)),
]


def as_convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.conv2d(x.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


def run(function, training: bool, *tensors: Tensor) -> measure.Run:
    """What calls the function on (x, weight, bias), and its backward pass with it."""
    gradient = torch.randn_like(F.linear(*tensors))

    def turn() -> None:
        with torch.set_grad_enabled(training):
            y = function(*tensors)
        if training:
            y.backward(gradient)
            for tensor in tensors:
                tensor.grad = None

    return turn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each side")
    options = parser.parse_args()
    print(f"{measure.headline()}, batch {options.batch}, medians of {options.rounds} alternating runs")
    titles = ("product, ms", "convolution", "ratio", "trained, ms", "convolution", "ratio", "chosen")
    print(f"{'map':<18}" + "".join(f"{title:>13}" for title in titles))
    for side, channels, out_channels in LAYERS:
        x = torch.randn(options.batch, side, side, channels, requires_grad=True)
        weight = torch.randn(out_channels, channels, requires_grad=True)
        bias = torch.randn(out_channels, requires_grad=True)
        cells = []
        for training in (False, True):
            runs = [run(function, training, x, weight, bias) for function in (F.linear, as_convolution)]
            product, convolution = measure.medians(runs, options.rounds)
            cells += [f"{1e3 * product:.2f}", f"{1e3 * convolution:.2f}", f"{product / convolution:.2f}"]
        cells.append("convolution" if faster_as_convolution(x, weight) else "product")
        print(f"{f'{side}, {channels} to {out_channels}':<18}" + "".join(f"{cell:>13}" for cell in cells))


if __name__ == "__main__":
    main()
