"""Options of a task as they come from a configuration."""

from dataclasses import fields
from typing import Any, TypeVar

from backbones.errors import InputError, suggest

Settings = TypeVar("Settings")


def settings_of(kind: type[Settings], options: dict[str, Any], group: str = "task", **more: Any) -> Settings:
    """A dataclass of the options in a group of the configuration; those of `more` are not for the user.

    Raises:
        InputError: there is no such option, or it has not the type of its default.
    """
    known = {field.name: field for field in fields(kind) if field.name not in more}
    for name, value in options.items():
        if name not in known:
            raise InputError(
                f"There is no option {group}.{name}; there is: {', '.join(known)}.{suggest(name, [*known])}"
            )
        wanted = type(getattr(kind, name, None))
        if wanted in (int, float, str) and not (isinstance(value, wanted) or (wanted is float and type(value) is int)):
            raise InputError(f"{group}.{name} is {value!r}, but must be of the type {wanted.__name__}.")
    return kind(**options, **more)
