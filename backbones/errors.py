"""Errors about what the caller gave: one paragraph that says what was wrong, what was expected, and what to do."""

from difflib import get_close_matches


class InputError(ValueError):
    """An argument, file or configuration that cannot work; the message is written for the person who gave it."""


class UnknownArgumentError(InputError, TypeError):
    """A keyword that the model does not have."""


def first_line(error: BaseException) -> str:
    """What an error says, cut to a line that fits into another message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]


def suggest(word: str, known: list[str]) -> str:
    """' Did you mean a, b?' for the known words nearest to `word`, or nothing."""
    near = get_close_matches(word, known, n=3, cutoff=0.5)
    return f" Did you mean {', '.join(near)}?" if near else ""
