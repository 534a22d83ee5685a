"""A table of measurements in a CSV, which an interrupted measurement goes on with."""

import csv
import io
from pathlib import Path
from typing import Any

from backbones.errors import InputError
from training.engine.files import write_text

Row = dict[str, Any]


class Table:
    """Rows by what was measured where, in a file if there is one.

    Args:
        path: the file, begun or to be begun.
        columns: of the file, in order.
        key: the columns that tell rows apart.

    Raises:
        InputError: the file has other columns.
    """

    def __init__(self, path: Path | None, columns: list[str], key: list[str]):
        self.path, self.columns, self.key, self.rows = path, columns, key, []
        if path is not None and path.exists():
            with path.open(newline="") as file:
                reader = csv.DictReader(file)
                if reader.fieldnames != columns:
                    raise InputError(f"{path} has other columns than {', '.join(columns)}. Choose another --output.")
                self.rows = list(reader)

    def lacks(self, row: Row) -> bool:
        return not any(all(str(row[column]) == str(other[column]) for column in self.key) for other in self.rows)

    def add(self, rows: list[Row]) -> None:
        self.rows += rows
        if self.path is not None:
            text = io.StringIO()
            writer = csv.DictWriter(text, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows({name: short(value) for name, value in row.items()} for row in self.rows)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, text.getvalue())


def short(value: Any) -> Any:
    """A figure with the digits that mean something."""
    return f"{value:.5g}" if isinstance(value, float) else value
