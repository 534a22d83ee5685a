"""Tools for runs and data: python -m training report."""

import argparse
import json
import signal
import sys
from pathlib import Path

from safetensors.torch import save_file

from backbones.checkpoints import read_metadata

from .commandline import ending_well
from .data.dense import DigitScenes, export_coco, export_maps
from .engine import RunFolder, weights_of
from .report import report, table


def report_command(options: argparse.Namespace) -> None:
    rows = report(options.runs, options.picture)
    print(table(rows))
    print(f"Picture: {options.picture}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def weights_command(options: argparse.Namespace) -> None:
    run = RunFolder(options.run_folder)
    weights = weights_of(run.checkpoints, options.ema)
    save_file({name: value.contiguous() for name, value in weights.items()}, options.file, read_metadata(run.best))
    print(f"{options.file}: {len(weights)} tensors")


def scenes_command(options: argparse.Namespace) -> None:
    colours = dict(channels=options.channels, mean=[0.5] * options.channels, std=[0.25] * options.channels)
    scenes = DigitScenes(train_scenes=options.train, val_scenes=options.val, **colours)
    kinds = ("map",) if options.form == "maps" else ("masks", "segments")
    for sources in zip(("train", "val"), *map(scenes.splits, kinds)):
        split, *kinds_of_split = sources
        if options.form == "maps":
            export_maps(*kinds_of_split, options.folder, split)
        else:
            export_coco(*kinds_of_split, options.folder, split)
    print(f"{options.train} + {options.val} scenes are in {options.folder}")


def demo_command(options: argparse.Namespace) -> None:
    from .demo.command import demo  # what only the demo needs is imported here

    demo(**{key: value for key, value in vars(options).items() if key != "run"})


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description="Tools for runs and data.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("report", help="curves of several runs in one picture, and a table in Markdown")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, finished or not")
    command.add_argument("--picture", type=Path, default=Path("report.png"), help="report.png where it is not given")
    command.add_argument("--json", type=Path, help="a file for the table's figures")
    command.set_defaults(run=report_command)

    command = commands.add_parser("weights", help="the weights in a run's last checkpoint as one safetensors file")
    command.add_argument("run_folder", type=Path, metavar="RUN")
    command.add_argument("file", type=Path, metavar="FILE")
    command.add_argument("--ema", action="store_true", help="the moving average of the weights")
    command.set_defaults(run=weights_command)

    command = commands.add_parser("scenes", help="the embedded scenes as files, in the layout of COCO or of label maps")
    command.add_argument("folder", type=Path, metavar="FOLDER")
    command.add_argument("--form", choices=("coco", "maps"), default="coco", help="for data=coco_folder or mask_folder")
    command.add_argument("--train", type=int, default=200, metavar="N", help="training scenes (200)")
    command.add_argument("--val", type=int, default=50, metavar="N", help="validation scenes (50)")
    command.add_argument("--channels", type=int, choices=(1, 3), default=3, help="grey or coloured (3)")
    command.set_defaults(run=scenes_command)

    command = commands.add_parser("demo", help="a page in the browser: what networks see in a picture; needs Gradio")
    network = command.add_mutually_exclusive_group(required=True)
    network.add_argument(
        "--run", dest="runs", type=Path, action="append", metavar="RUN", help="a run or a folder of runs; repeatable"
    )
    network.add_argument("--backbone", metavar="NAME", help="a classifier of the zoo, with random weights, or:")
    weights = command.add_mutually_exclusive_group()
    weights.add_argument(
        "--checkpoint", type=Path, metavar="FILE", help="its weights, the project's or official ones, or a run folder"
    )
    weights.add_argument("--pretrained", action="store_true", help="its published weights, downloaded")
    command.add_argument("--port", type=int, default=7860, help="of the page (7860)")
    command.add_argument("--host", default="127.0.0.1", help="0.0.0.0 serves other machines, too (127.0.0.1)")
    command.set_defaults(run=demo_command)

    options = parser.parse_args()
    with ending_well(debug=False):
        options.run(options)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the program quietly
    main()
