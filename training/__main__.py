"""Tools for runs: python -m training report."""

import argparse
import json
import signal
import sys
from pathlib import Path

from safetensors.torch import save_file

from backbones.checkpoints import read_metadata

from .commandline import ending_well
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


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description="Tools for runs.")
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

    options = parser.parse_args()
    with ending_well(debug=False):
        options.run(options)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the program quietly
    main()
