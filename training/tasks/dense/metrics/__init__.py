"""How good found boxes, masks and maps are.

Each module has `record`, which keeps of one picture what its metric needs, small, on the processor and to be sent to
other processes, and `evaluate`, which gives the metrics of many records. The numbers do not depend on the order of the
records or on which process made them, as long as each picture is there once: `first_of_each` sees to that.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar


class Record(Protocol):
    """What is kept of one picture."""

    index: int  # the picture's, in its split


@dataclass
class Scores:
    """Metrics of a split.

    Args:
        metrics: name to a fraction in [0, 1].
        per_class: rows of a table, one for every class that occurs, in the order of the labels.
    """

    metrics: dict[str, float]
    per_class: list[dict[str, str | float]]


R = TypeVar("R", bound=Record)


def first_of_each(records: Iterable[R]) -> list[R]:
    """The first record of every picture, by index: several processes may have seen the same one."""
    first: dict[int, R] = {}
    for record in records:
        first.setdefault(record.index, record)
    return [first[index] for index in sorted(first)]
