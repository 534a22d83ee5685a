"""Write docs/api.md from docstrings.

python docs/make_api.py
"""

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path

import backbones
from backbones import attention, explain
from backbones.backbone import Backbone
from backbones.kernels import dispatch, neighborhood, outlook, routed, window
from training import activations, estimate
from training.building import Recipe
from training.data import DATASETS, AugmentSettings, DataSettings
from training.data.dense import DenseAugmentSettings, DenseSettings
from training.data.settings import PictureSettings
from training.engine import EmaSettings, OptimizerSettings, ScheduleSettings, TrainerSettings
from training.tasks import (
    DistillSettings,
    LossSettings,
    ProgressiveSettings,
    RegularizeSettings,
    TeachingSettings,
)

HEAD = """# Python API

Written from the docstrings by `python docs/make_api.py`. Shapes: B pictures, H × W positions, C channels; maps that a
network returns are (B, C, H, W), maps inside it (B, H, W, C).
"""
# The timm methods of `Backbone` that programs call.
METHODS = (
    *("forward_features", "forward_head", "forward_intermediates", "prune_intermediate_layers", "reset_classifier"),
    *("set_grad_checkpointing", "group_matcher", "no_weight_decay"),
)
OPERATORS = (
    window.window_attention,
    neighborhood.neighborhood_attention,
    neighborhood.neighborhood_scores,
    neighborhood.neighborhood_aggregate,
    outlook.outlook_attention,
    routed.routed_attention,
)
SECTIONS = {  # heading: what it is about, and the objects
    "Models": (
        "`import backbones`",
        (backbones.create_model, backbones.list_models, backbones.list_families, backbones.model_info)
        + (backbones.save_pretrained, backbones.push_to_hub),
    ),
    "What every model can do": (
        "`backbones.backbone.Backbone` has timm's methods, with timm's names and defaults.",
        (Backbone, *(getattr(Backbone, name) for name in METHODS)),
    ),
    "What a model looks at": ("`backbones.explain`", tuple(getattr(explain, name) for name in explain.__all__)),
    "Attention": (
        "`backbones.attention`: blocks from a (B, H, W, C) map to the same, to build networks of one's own from.",
        tuple(getattr(attention, name) for name in attention.__all__),
    ),
    "Kernels": (
        "`backbones.kernels.window`, `neighborhood`, `outlook`, `routed` and `dispatch`; [how they work](kernels.md).",
        (*OPERATORS, dispatch.use),
    ),
    "Costs": (
        "`training.activations` and `training.estimate`; [what they predict](scaling.md).",
        (
            activations.footprint,
            estimate.Footprint,
            estimate.Cluster,
            estimate.Link,
            estimate.estimate,
            estimate.Estimate,
        ),
    ),
    "Settings of a run": (
        "What `train.py` takes: `trainer.KEY` of TrainerSettings, `recipe.KEY` of Recipe and TeachingSettings, and\n"
        "`recipe.SECTION.KEY` of the others, by the names of the sections in these two.",
        (TrainerSettings, Recipe, OptimizerSettings, ScheduleSettings, EmaSettings, AugmentSettings)
        + (DenseAugmentSettings, TeachingSettings, RegularizeSettings, LossSettings, DistillSettings)
        + (ProgressiveSettings,),
    ),
    "Settings of data": (
        "What `data=NAME` takes as `data.KEY`: the settings of all pictures, those of pictures with a label or of\n"
        "pictures with boxes, masks or maps, and its own.",
        (PictureSettings, DataSettings, DenseSettings, *DATASETS.values()),
    ),
}


def setting(field: Field) -> str:
    """A field and its default."""
    if field.default_factory is not MISSING:
        default = field.default_factory()
        return f"{field.name}={type(default).__name__}()" if is_dataclass(default) else f"{field.name}={default!r}"
    return field.name if field.default is MISSING else f"{field.name}={field.default!r}"


def signature(thing: Callable) -> str:
    """A call as Python writes it, on one line where it fits; of settings, those that are not inherited."""
    if is_dataclass(thing):
        parts = [setting(field) for field in fields(thing) if field.name in inspect.get_annotations(thing)]
    else:
        parameters = [p for p in inspect.signature(thing).parameters.values() if p.name != "self"]
        parts = [str(p.replace(annotation=p.empty)) for p in parameters]
    parts = [part.replace("'", '"') for part in parts]
    one = f"{thing.__name__}({', '.join(parts)})"
    return one if len(one) <= 100 else f"{thing.__name__}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def escaped(text: str) -> str:
    """Text in which * and < outside `code` are no Markdown."""
    parts = re.split(r"(`[^`]*`)", text)
    return "".join(part if part.startswith("`") else re.sub(r"([*<])", r"\\\1", part) for part in parts)


def described(docstring: str) -> Iterator[str]:
    """Lines of Markdown of a docstring: paragraphs as they are, entries of Args and the like as lists."""
    section = None
    for line in inspect.cleandoc(docstring).splitlines():
        if found := re.fullmatch(r"(Args|Attributes|Returns|Raises):", line):
            section = found[1]
            yield from (f"**{section}**", "")
        elif section is None:
            yield line if line.startswith("    ") else escaped(line)
        elif line and not line.startswith(" "):
            section = None
            yield escaped(line)
        elif section == "Returns":
            yield escaped(line.strip())
        elif entry := re.fullmatch(r"    (\S[^:]*): (.*)", line):
            yield f"- `{entry[1]}`: {escaped(entry[2])}"
        else:
            yield f"  {escaped(line.strip())}" if line else ""


def entry(thing: Callable) -> str:
    lines = [f"### {thing.__name__}", "", "```text", signature(thing), "```", "", *described(thing.__doc__)]
    return "\n".join(line.rstrip() for line in lines)


def page() -> str:
    parts = [HEAD.strip()]
    for heading, (about, things) in SECTIONS.items():
        parts += [f"## {heading}", about, *map(entry, things)]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    (Path(__file__).parent / "api.md").write_text(page())
