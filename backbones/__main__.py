"""Tools of the zoo: python -m backbones list | info | explain | export | plot | tune."""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import NoReturn

import torch

from .backbone import DENSE
from .errors import InputError
from .kernels import workloads
from .kernels.settings import gpu_class
from .registry import list_models, model_info


def fail(message: str) -> NoReturn:
    """End as programs do for wrong usage or input."""
    print(message, file=sys.stderr)
    sys.exit(2)


def list_command(options: argparse.Namespace) -> None:
    names = list_models(options.pattern, pretrained=options.pretrained)
    if not names:
        fail(f"No model is named like {options.pattern!r}. Leave the pattern out for all names.")
    print("\n".join(names))


def info_command(options: argparse.Namespace) -> None:
    print(json.dumps(model_info(options.name), indent=2, default=str))


def tune_command(options: argparse.Namespace) -> None:
    if not torch.cuda.is_available():
        fail("Launch settings are measured on a GPU, and PyTorch sees none.")
    from .kernels.tune import milliseconds, tune

    chosen = [w for w in workloads.WORKLOADS if options.match in f"{w.operator} {w.name}"]
    if not chosen:
        fail(f"No workload has {options.match!r} in its name; the operators are called *_attention and *_aggregate.")
    device = torch.device("cuda", torch.cuda.current_device())
    best = tune(chosen, options.batch, getattr(torch, options.dtype), device, milliseconds)
    print("\nFor TUNED in kernels/settings.py:\n")
    print(f'    "{gpu_class(device)}": {{')
    for kernel, found in sorted(best.items()):
        print(f'        "{kernel}": dict({", ".join(f"{n}={v}" for n, v in found.items())}),')
    print("    },")


def explain_command(options: argparse.Namespace) -> None:
    from .explain.command import explain  # matplotlib is imported here alone

    print(explain(**{key: value for key, value in vars(options).items() if key != "run"}))


def plot_command(options: argparse.Namespace) -> None:
    from .plot import plot  # matplotlib is imported here alone

    only = dict(setting.partition("=")[::2] for setting in options.only)
    print(plot(options.table, options.output, only))


def export_command(options: argparse.Namespace) -> None:
    from .export.command import export  # imports SymPy

    print(export(**{key: value for key, value in vars(options).items() if key != "run"}))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m backbones", description="Tools of the zoo.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("list", help="names of models")
    command.add_argument("pattern", nargs="?", default="*", help="such as 'swin*'")
    command.add_argument("--pretrained", action="store_true", help="only those with published weights, with their tags")
    command.set_defaults(run=list_command)

    command = commands.add_parser("info", help="parameters, multiply-adds, strides and weights of a model, as JSON")
    command.add_argument("name", help="a name, or one with a tag")
    command.set_defaults(run=info_command)

    command = commands.add_parser("explain", help="a sheet on what a model does with a picture: attention, Grad-CAM, …")
    command.add_argument("--backbone", required=True, metavar="NAME", help="a name, or one with a tag")
    weights = command.add_mutually_exclusive_group()  # without either, random weights
    weights.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, or a run folder with its best ones")
    weights.add_argument("--pretrained", action="store_true", help="download the published weights")
    command.add_argument("--image", type=Path, required=True, metavar="FILE")
    command.add_argument("--output", type=Path, metavar="FILE", help="explain_NAME_IMAGE.png where it is not given")
    command.add_argument(
        "--point", type=float, nargs=2, metavar=("X", "Y"), help="in pixels of the picture; the middle"
    )
    command.add_argument("--class", dest="label", metavar="NAME", help="or number, for Grad-CAM; the likeliest class")
    command.set_defaults(run=explain_command)

    command = commands.add_parser("plot", help="published accuracy against measured speed and size, as a picture")
    command.add_argument(
        "table", type=Path, metavar="FILE.csv", help="of python -m benchmarks models --output FILE.csv"
    )
    command.add_argument("--output", type=Path, default=Path("plot.png"), metavar="FILE", help="plot.png if not given")
    command.add_argument("--only", nargs="+", default=[], metavar="KEY=VALUE", help="rows, such as mode=inference")
    command.set_defaults(run=plot_command)

    command = commands.add_parser("export", help="a model as an ONNX file or a graph of PyTorch, checked and timed")
    command.add_argument("name", metavar="NAME", help="a name, or one with a tag")
    command.add_argument("--format", choices=["onnx", "exported-program"], required=True)
    weights = command.add_mutually_exclusive_group()
    weights.add_argument("--checkpoint", type=Path, metavar="FILE", help="weights, or a run folder with its best ones")
    weights.add_argument("--pretrained", action="store_true", help="download the published weights")
    command.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the images, in pixels; the model's own"
    )
    command.add_argument("--dynamic", action="store_true", help="one graph for many image sizes")
    command.add_argument("--features", action="store_true", help="the maps of all stages in place of logits")
    command.add_argument("--dense", choices=DENSE, help="the maps of the family's official dense backbone")
    command.add_argument("--image", type=Path, metavar="FILE", help="for the check; photographs of scikit-learn")
    command.add_argument("--output", type=Path, metavar="FILE", help="NAME.onnx or NAME.pt2 where it is not given")
    command.set_defaults(run=export_command)

    command = commands.add_parser("tune", help="measure better launch settings for the Triton kernels; needs a GPU")
    command.add_argument("--match", default="", help="only workloads with this in their operator or name")
    command.add_argument("--batch", type=int, default=64)
    command.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    command.set_defaults(run=tune_command)

    options = parser.parse_args()
    try:
        options.run(options)
    except InputError as error:
        fail(str(error))


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the program quietly
    main()
