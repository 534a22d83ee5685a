"""Reading checkpoints and loading them into models, strictly."""

import argparse
import logging
import pickle
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.models import adapt_input_conv
from torch import Tensor, nn

from .backbone import Backbone
from .errors import InputError, first_line

log = logging.getLogger(__name__)

WRAPPERS = ("state_dict_ema", "model_ema", "ema", "model", "state_dict")  # the averaged weights are the published ones
PREFIXES = ("module.", "backbone.", "encoder.", "model.")
STEM, HEAD = "stem.proj", "head.fc"


def read_checkpoint(path: str | Path, wrapper: str | None = None) -> dict[str, Tensor]:
    """The state dict in a `.safetensors`, `.pt`, `.pth` or `.pth.tar` file, without wrappers and common prefixes.

    Of several state dicts the averaged one is taken, or the one under `wrapper`.

    Nothing in the file is executed: pickles that hold anything but tensors and plain containers are refused.

    Raises:
        InputError: the file is missing, damaged, holds code, or holds no state dict.
    """
    return _unwrap(read_file(path), Path(path), (wrapper, *WRAPPERS))


def read_file(path: str | Path) -> Any:
    """What a file holds, as it is; `read_checkpoint` says which files, and what is refused."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"There is no checkpoint at {path}. Give a .safetensors, .pt, .pth or .pth.tar file.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # the options that training scripts add
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code is None:
            raise _damaged(path, "it is no file of weights") from error
        raise InputError(
            f"The checkpoint {path} holds more than weights ({code[1]}) and was refused: loading it would run code "
            "from the file. Save the state dict alone, with torch.save(model.state_dict(), path)."
        ) from error
    except (SafetensorError, EOFError, RuntimeError, OSError, ValueError, LookupError, struct.error) as error:
        raise _damaged(path, first_line(error)) from error


def read_metadata(path: str | Path) -> dict[str, str]:
    """What a `.safetensors` file says beside its tensors; nothing for other files, and damaged ones."""
    if Path(path).suffix != ".safetensors" or not Path(path).is_file():
        return {}
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except SafetensorError:
        return {}


def load_checkpoint(
    model: Backbone,
    path: str | Path,
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]],
    class_rows: Callable[[int, int], list[int | None] | None] = lambda old, new: None,
    wrapper: str | None = None,
) -> None:
    """Load this project's or the family's official file into a model; every entry must find its place.

    Position tables are resized to the model's. A classifier of another size is reduced by `class_rows` where the family
    has such a rule, else dropped and zero-initialised; a stem of other input channels is adapted as timm does. Dense
    backbones take a classifier's file without its norm and head; their own norms then keep their initial values.

    Args:
        convert: the family's renaming of official entries.
        class_rows: (old, new) numbers of classes to rows of the old classifier, or None.
        wrapper: where the published weights of the family are, in files that hold several.

    Raises:
        InputError: the file cannot be read, or is of another architecture (says which entries differ).
    """
    own = model.state_dict()
    state = read_checkpoint(path, wrapper)
    converted = convert(state)
    if len(converted.keys() & own.keys()) > len(state.keys() & own.keys()):
        state = converted
    for name, module in model.named_modules():
        table = f"{name}.table"
        if hasattr(module, "fit_table") and table in state:
            state[table] = module.fit_table(state[table])
        if hasattr(module, "fit_entries"):
            module.fit_entries(state, f"{name}.")
    kept = _fit_head(model, state, class_rows) | _fit_dense(model, state) | _fit_optional(model, state)
    _fit_stem(model, state, own)

    missing = [name for name in own if name not in state and name not in kept]
    unexpected = [name for name in state if name not in own]
    reshaped = [
        f"{name} ({tuple(value.shape)} in the file, {tuple(own[name].shape)} in the model)"
        for name, value in state.items()
        if name in own and value.shape != own[name].shape
    ]
    if missing or unexpected or reshaped:
        found = [
            f"{len(names)} {what}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            for what, names in (
                ("entries of the model are missing from it", missing),
                ("entries are unexpected", unexpected),
                ("entries have another shape", reshaped),
            )
            if names
        ]
        raise InputError(
            f"The checkpoint {path} does not fit this {type(model).__name__} model: {'; '.join(found)}. Build the "
            "model that the file was saved from (same name, hyper-parameters, and dense mode)."
        )
    model.load_state_dict(state, strict=False)  # strictness is the comparison above; `kept` entries stay as they are


def _unwrap(content: Any, path: Path, wrappers: Sequence[str | None]) -> dict[str, Tensor]:
    for wrapper in wrappers:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise InputError(
            f"The file {path} holds no state dict: tensors by name, bare or under one of {', '.join(WRAPPERS)}."
        )
    for prefix in PREFIXES:
        if any(name.startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): v for name, v in content.items() if name.startswith(prefix)}
    return dict(content)


def _fit_head(model: Backbone, state: dict[str, Tensor], class_rows) -> set[str]:
    """Make the classifier in `state` fit the model's; returns the model's entries that are to stay as they are."""
    if model.num_classes == 0:
        own = model.state_dict()
        for name in [name for name in state if name.startswith("head.") and name not in own]:
            del state[name]
        return set()
    names = {f"{layer}.{leaf}" for layer in model.classifiers for leaf in ("weight", "bias")}
    if not names <= state.keys() or state[f"{HEAD}.weight"].dim() != 2:
        return set()
    if len(state[f"{HEAD}.weight"]) == model.num_classes:
        return set()
    old = len(state[f"{HEAD}.weight"])
    rows = class_rows(old, model.num_classes)
    if rows is not None:
        absent = [i for i, row in enumerate(rows) if row is None]
        for name in names:
            state[name] = state[name][[row or 0 for row in rows]]
            state[name][absent] = 0
        log.info("Took %d of the checkpoint's %d classes; %d without a row are zero.", len(rows), old, len(absent))
        return set()
    for name in names:
        del state[name]
        nn.init.zeros_(model.get_parameter(name))
    log.info("Dropped the checkpoint's classifier of %d classes; the model's %d start at zero.", old, model.num_classes)
    return names


def _fit_dense(model: Backbone, state: dict[str, Tensor]) -> set[str]:
    """Leave out a classifier's final norm in a dense model; returns the output layers' entries that stay."""
    if not model.dense:
        return set()
    kept = {name for name in model.state_dict() if name.startswith(model.output_layers)} - state.keys()
    if not kept:
        return set()
    for name in [name for name in state if name.startswith(("norm.", "head.norm."))]:
        del state[name]
    layers = sorted({name.rpartition(".")[0] for name in kept})
    log.info("The checkpoint has no %s; they keep their initial values.", ", ".join(layers))
    return kept


def _fit_optional(model: Backbone, state: dict[str, Tensor]) -> set[str]:
    """Leave out optional entries that the model has not; returns those of the model that the checkpoint has not."""
    own = {name: value for name, value in model.state_dict().items() if name.startswith(model.optional)}
    for name in [name for name in state if name.startswith(model.optional)]:
        if name not in own or state[name].shape != own[name].shape:  # none in the model, or other classes
            del state[name]
            if name in own:
                nn.init.zeros_(own[name])
    kept = own.keys() - state.keys()
    if kept:
        log.info("The checkpoint has not, and the model starts anew with: %s.", ", ".join(sorted(kept)))
    return kept


def _fit_stem(model: Backbone, state: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    """Sum or repeat the stem's filters for another number of input channels, as timm does."""
    name = f"{STEM}.weight"
    official = (own[name].shape[0], 3, *own[name].shape[2:])
    if model.in_chans != 3 and name in state and state[name].shape == official:
        state[name] = adapt_input_conv(model.in_chans, state[name])
        log.info("Adapted the stem from 3 to %d input channel(s).", model.in_chans)


def _damaged(path: Path, reason: str) -> InputError:
    size = path.stat().st_size
    return InputError(
        f"The checkpoint {path} cannot be read; it is damaged or cut short ({size:,} bytes; {reason}). Fetch or save "
        "it again."
    )
