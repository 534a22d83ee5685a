"""Class maps and lists of pictures, as text files: which label a folder has, and which label a file."""

import json
from collections.abc import Iterator
from pathlib import Path

from backbones.errors import InputError, first_line

MOST_CLASSES = 1_000_000  # a larger number is no label but a mistake, for which no classifier should be made


def read_class_map(file: str | Path) -> dict[str, str]:
    """Name of each class by its folder, in the order of the labels.

    Two forms: text with a line per class, `FOLDER NAME` (the name may hold spaces; a folder that does is followed by a
    tab; without a name it is the folder's); or JSON, {"0": [FOLDER, NAME], …}, as imagenet_class_index.json has it.

    Raises:
        InputError: the file is not there or of another form, or names a folder twice.
    """
    entries = _json_entries(file) if Path(file).suffix == ".json" else _text_entries(file)
    names: dict[str, str] = {}
    for where, folder, name in entries:
        if folder in names:
            raise InputError(f"{where} names the folder {folder} again, but a folder has one class. Remove a line.")
        names[folder] = name
    if not names:
        raise InputError(f"The class map {file} is empty; it needs a line per class, FOLDER or FOLDER NAME.")
    return names


def _text_entries(file: str | Path) -> Iterator[tuple[str, str, str]]:
    for where, line in lines_of(file, "class map"):
        folder, _, name = line.partition("\t" if "\t" in line else " ")
        yield where, folder.strip(), name.strip() or folder.strip()


def _json_entries(file: str | Path) -> Iterator[tuple[str, str, str]]:
    form = 'expected {"0": [FOLDER, NAME], "1": …} with every label from 0 on.'
    try:
        entries = json.loads(_read(file, "class map"))
    except ValueError as error:
        raise InputError(f"The class map {file} is no JSON ({first_line(error)}); {form}") from error
    if not isinstance(entries, dict):
        raise InputError(f"The class map {file} holds a {type(entries).__name__}; {form}")
    for label in range(len(entries)):
        match entries.get(str(label)):
            case [str(folder), str(name)]:
                yield f"{file}, label {label},", folder, name
            case entry:
                raise InputError(f"The class map {file} has {entry!r} for label {label}; {form}")


def read_file_list(file: str | Path, num_classes: int = MOST_CLASSES) -> tuple[list[str], list[int]]:
    """Paths and labels of a list with a line `PATH LABEL` per picture, such as ImageNet's train.txt and val.txt.

    Args:
        num_classes: what labels must be below.

    Raises:
        InputError: the file is not there or empty, or a line has no label, or one that is no class.
    """
    paths, labels = [], []
    for where, line in lines_of(file, "list"):
        path, _, label = line.replace("\t", " ").rpartition(" ")
        if not (path and label.isdecimal()):
            raise InputError(f"{where} is {line!r}, but must be a path and its label, a number from 0 on: PATH LABEL.")
        if int(label) >= num_classes:
            raise InputError(
                f"{where} has the label {label}, but there are {num_classes} classes, 0 to {num_classes - 1}. Correct "
                "it, or the class map or the training data that say which classes there are."
            )
        paths.append(path.strip())
        labels.append(int(label))
    if not paths:
        raise InputError(f"The list {file} is empty; it needs a line per picture, PATH LABEL.")
    return paths, labels


def lines_of(file: str | Path, what: str) -> Iterator[tuple[str, str]]:
    """Where a line is, for messages, and the line, of those that are not blank."""
    for number, line in enumerate(_read(file, what).splitlines(), start=1):
        if line.strip():
            yield f"{file}, line {number},", line.strip()


def _read(file: str | Path, what: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The {what} {file} cannot be read ({first_line(error)}).") from error
