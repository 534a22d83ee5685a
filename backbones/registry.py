"""Names to models: the factory, the list of what there is, and the registration in timm."""

import fnmatch
import inspect
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from timm.layers import to_2tuple
from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    resolve_pretrained_cfg,
)
from torch import nn

from .backbone import Backbone
from .checkpoints import load_checkpoint
from .errors import InputError, UnknownArgumentError, suggest
from .published import checkpoints, facts, pretrained_cfgs
from .saved import SOURCES, find_weights, read_config

FACTORY_ARGUMENTS = {"features_only", "out_indices", "feature_cls", "device", "dtype"}


@dataclass
class Variant:
    """A registered name: the class that builds it, its constructor arguments, and the family's file."""

    cls: type[Backbone]
    arguments: dict[str, Any]
    module: ModuleType

    @property
    def family(self) -> str:
        return self.module.__name__.rpartition(".")[2]

    @property
    def img_size(self) -> tuple[int, int]:
        default = inspect.signature(self.cls).parameters["img_size"].default
        return to_2tuple(self.arguments.get("img_size", default))


_variants: dict[str, Variant] = {}


def register_family(variants: dict[str, dict[str, Any]]) -> Callable[[type[Backbone]], type[Backbone]]:
    """Class decorator of a family's file: its variants become names here and in timm.

    The file, named like the family, also has a function `convert_checkpoint` and, where one is needed, `class_rows`;
    `pretrained/<family>.yaml` holds the facts of its published weights.
    """

    def register(cls: type[Backbone]) -> type[Backbone]:
        module = sys.modules[cls.__module__]
        for name, arguments in variants.items():
            variant = _variants[name] = Variant(cls, arguments, module)
            cfgs = generate_default_cfgs(pretrained_cfgs(variant.family, name, variant.img_size))
            vars(module).setdefault("default_cfgs", {}).update(cfgs)
            register_model(_entrypoint(name, module))
        return cls

    return register


def create_model(
    name: str,
    pretrained: bool = False,
    checkpoint_path: str | Path = "",
    num_classes: int | None = None,
    in_chans: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    features_only: bool = False,
    out_indices: int | tuple[int, ...] = (0, 1, 2, 3),
    dense: str | None = None,
    drop_rate: float = 0.0,
    drop_path_rate: float | None = None,
    **hyper: Any,
) -> nn.Module:
    """Build a model by name, as `timm.create_model` does.

    Args:
        name: a name of `list_models()`; `name.tag` picks published weights for `pretrained`. Or a model that was saved
            (`save_pretrained`): "local-dir:FOLDER" or "hf-hub:OWNER/NAME", built as it was but for what is given here.
        pretrained: load the published weights of the tag, or of the name's first tag, or those of the saved model.
        checkpoint_path: a file of this project, or an official file of the family; loaded strictly, in place of the
            published weights.
        num_classes, in_chans: 1000 and 3 where they are not given, and those of a saved model.
        img_size: nominal image size, in pixels; other sizes still work. None: that of the published weights named.
        features_only: return a list of (B, C, H, W) maps, one per entry of `out_indices`, in place of logits.
        dense: "detection" or "segmentation" for the family's official dense backbone; needs `features_only`.
        drop_rate, drop_path_rate: dropout before the classifier; largest probability of stochastic depth.
        hyper: any other constructor argument of the family, such as `depths` or `window_size`.

    Raises:
        InputError: unknown name, tag or keyword, or a checkpoint that does not fit.
    """
    arguments = dict(num_classes=num_classes, in_chans=in_chans, img_size=img_size, drop_rate=drop_rate, dense=dense)
    arguments |= dict(drop_path_rate=drop_path_rate, **hyper)
    if features_only:
        arguments |= dict(features_only=True, out_indices=out_indices)
    elif out_indices != (0, 1, 2, 3):
        raise InputError("out_indices choose maps and need features_only=True; without it a model returns logits.")
    if name.startswith(SOURCES):
        name, cfg, defaults = read_config(name)
    else:
        name, _, tag = name.partition(".")
        cfg, defaults = _tagged_cfg(name, tag), dict(num_classes=1000, in_chans=3)
    given = {k: v for k, v in arguments.items() if v is not None}
    return _build(name, cfg, pretrained, checkpoint_path, **defaults | given)


def list_models(pattern: str = "*", pretrained: bool = False) -> list[str]:
    """Sorted model names that match a shell pattern; with `pretrained`, `name.tag` for all published weights."""
    if not pretrained:
        return sorted(fnmatch.filter(_variants, pattern))
    tagged = [f"{name}.{tag}" for name, variant in _variants.items() for tag in checkpoints(variant.family, name)]
    return sorted(full for full in tagged if any(fnmatch.fnmatch(n, pattern) for n in (full, full.partition(".")[0])))


def published_weights(name: str) -> dict[str, Any]:
    """The facts of the checkpoint `name.tag`, as `model_info` has them for all tags."""
    name, _, tag = name.partition(".")
    _tagged_cfg(name, tag)
    return checkpoints(_find(name).family, name)[tag]


def family_of(name: str) -> str:
    """The family of a model, such as "dinat" for "nat_t"."""
    return _find(name.partition(".")[0]).family


def list_families() -> list[str]:
    """Sorted names of the families."""
    return sorted({variant.family for variant in _variants.values()})


def model_info(name: str) -> dict[str, Any]:
    """What there is to know about a model before building it.

    Args:
        name: as in `create_model`; with a tag, macs and input_size are those of that checkpoint's image size.

    Returns:
        name, family, parameters, macs (multiply-adds for one image of input_size), input_size (C, H, W), min_size (in
        pixels), strides, channels, paper, code, licence (of code and weights), and tags: for each published checkpoint
        url, input_size, num_classes, crop_pct, interpolation, mean, std, licence, and top1 (in percent; None where no
        ImageNet-1k accuracy is published).
    """
    model = create_model(name, device="meta").eval()
    input_size = tuple(model.pretrained_cfg["input_size"])
    name = name.partition(".")[0]
    variant = _find(name)
    family_facts = facts(variant.family)
    return dict(
        name=name,
        family=variant.family,
        parameters=sum(p.numel() for p in model.parameters()),
        macs=count_macs(model, input_size),
        input_size=input_size,
        min_size=model.min_size,
        strides=[stage["reduction"] for stage in model.feature_info],
        channels=[stage["num_chs"] for stage in model.feature_info],
        **{key: family_facts[key] for key in ("paper", "code", "licence")},
        tags=checkpoints(variant.family, name),
    )


def count_macs(model: nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-adds of a model on the meta device for one image (C, H, W)."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, *input_size, device="meta"))
    return counter.get_total_flops() // 2


def _find(name: str) -> Variant:
    if name not in _variants:
        raise InputError(
            f"There is no model named {name!r}.{suggest(name, list(_variants))} backbones.list_models() has all names."
        )
    return _variants[name]


def _tagged_cfg(name: str, tag: str) -> PretrainedCfg:
    default_cfg = _find(name).module.default_cfgs[name]
    if tag and tag not in default_cfg.cfgs:
        tags = ", ".join(filter(None, default_cfg.tags)) or "none"
        raise InputError(f"{name} has no weights tagged {tag!r}; its tags are: {tags}.")
    return default_cfg.cfgs[tag or default_cfg.tags[0]]


def _entrypoint(name: str, module: ModuleType) -> Callable[..., nn.Module]:
    """The function that timm's registry calls for a name."""

    def build(
        pretrained=False,
        pretrained_cfg=None,
        pretrained_cfg_overlay=None,
        cache_dir=None,
        pretrained_model_args=None,  # what saved weights were built with; loading goes by their shapes
        **arguments,
    ):
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        return _build(name, cfg, pretrained, cache_dir=cache_dir, **arguments)

    build.__name__ = build.__qualname__ = name
    build.__module__ = module.__name__
    return build


def _build(
    name: str,
    cfg: PretrainedCfg,
    pretrained: bool,
    checkpoint_path: str | Path = "",
    cache_dir: str | Path | None = None,
    **arguments: Any,
) -> nn.Module:
    """What both factories share: check the arguments, construct, load, and wrap for features."""
    variant = _find(name)
    if pretrained and not (cfg.has_weights or checkpoint_path):
        page = checkpoints(variant.family, name).get(cfg.tag, {}).get("page")
        raise InputError(
            f"The weights {name}.{cfg.tag} cannot be downloaded by a program. Get the file from {page} with a browser, "
            "and pass its path as checkpoint_path."
            if page
            else f"There are no published weights for {name}. Pass checkpoint_path to load a file of your own."
        )

    known = inspect.signature(variant.cls).parameters.keys() | FACTORY_ARGUMENTS
    for keyword in arguments.keys() - known:
        raise UnknownArgumentError(
            f"{name} has no argument {keyword!r}.{suggest(keyword, list(known))} It takes: {', '.join(sorted(known))}."
        )
    published = checkpoints(variant.family, name).get(cfg.tag, {}).get("arguments", {})
    given = {k: v for k, v in arguments.items() if v is not None}
    if "img_size" in given:
        cfg = replace(cfg, input_size=(cfg.input_size[0], *to_2tuple(given["img_size"])))
    arguments = variant.arguments | dict(img_size=cfg.input_size[1:]) | published | given
    if arguments.get("dense") and not arguments.get("features_only"):
        raise InputError(f"dense={arguments['dense']!r} gives maps and no logits; pass features_only=True with it.")
    if not 0 <= arguments.get("drop_path_rate", 0) < 1:
        raise InputError(f"drop_path_rate is {arguments['drop_path_rate']}, but must be a probability below 1.")
    features_only, out_indices = arguments.get("features_only", False), arguments.get("out_indices")
    device, dtype = arguments.pop("device", None), arguments.pop("dtype", None)

    def construct(**arguments: Any) -> Backbone:
        with torch.device(device) if device is not None else nullcontext():
            model = variant.cls(**arguments).to(dtype=dtype)
        if features_only and out_indices is not None:
            _check_indices(out_indices, len(model.stages))
        if checkpoint_path or pretrained:
            path = checkpoint_path or find_weights(cfg, cache_dir)
            rows = getattr(variant.module, "class_rows", lambda old, new: None)
            wrapper = getattr(variant.module, "WRAPPER", None)
            load_checkpoint(model, path, variant.module.convert_checkpoint, rows, wrapper)
        return model

    model = build_model_with_cfg(
        construct,
        name,
        pretrained=False,  # `construct` has loaded what was asked for, strictly
        pretrained_cfg=cfg.to_dict() | dict(architecture=name),
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls="getter"),
        **arguments,
    )
    if isinstance(model, Backbone):
        stride = model.feature_info[-1]["reduction"]
        model.pretrained_cfg["pool_size"] = tuple(-(-side // stride) for side in cfg.input_size[1:])
        model.note_arguments(**published | {k: v for k, v in given.items() if k not in FACTORY_ARGUMENTS})
    return model


def _check_indices(indices: int | tuple[int, ...], stages: int) -> None:
    """Raise InputError where `out_indices`, a list of stages or the number of last ones, does not fit the model."""
    if isinstance(indices, int):
        fits = 1 <= indices <= stages
    else:
        fits = len(indices) > 0 and all(-stages <= i < stages for i in indices)
    if not fits:
        raise InputError(f"out_indices is {indices}, but the model has the maps 0 to {stages - 1}; name at least one.")
