"""Tools for runs: python -m training report."""

import argparse
import json
import signal
import sys
from pathlib import Path

from .commandline import ending_well
from .report import report, table


def report_command(options: argparse.Namespace) -> None:
    rows = report(options.runs, options.picture)
    print(table(rows))
    print(f"Picture: {options.picture}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m training", description="Tools for runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("report", help="curves of several runs in one picture, and a table in Markdown")
    command.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, finished or not")
    command.add_argument("--picture", type=Path, default=Path("report.png"), help="report.png where it is not given")
    command.add_argument("--json", type=Path, help="a file for the table's figures")
    command.set_defaults(run=report_command)

    options = parser.parse_args()
    with ending_well(debug=False):
        options.run(options)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends the program quietly
    main()
