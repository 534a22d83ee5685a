"""Any recipe in minutes: a nano backbone, few small pictures and few epochs, and every phase of the recipe."""

from copy import deepcopy
from typing import Any

from .annotation import Target
from .data import Picture, Source
from .data.dense import DenseSource

SIZE, LARGER = 32, 48  # pixels, for recipes at 224 pixels and above
PICTURES = 256  # for training, or a few more, so that there are 4 of each class; half as many for validation
DENSE, DENSE_SIZE = (
    32,
    96,
)  # training pictures with boxes, masks or maps, and their short side in pixels
KEPT = ("drop_path_rate", "token_labelling", "aux_head")  # of the backbone's keywords: they belong to the recipe


def rehearsals(config: dict[str, Any], nano: str, on_cpu: bool) -> list[dict[str, Any]]:
    """The configurations to run, one after the other, in place of a whole one.

    There are two for a recipe that fine-tunes, which `backbone.checkpoint_path` is the sign of. The weights of the
    first are for the second, whose `backbone.checkpoint_path` is for the caller to set.

    Args:
        nano: name of the backbone that takes the place of the configured one.
        on_cpu: take full precision, as a CPU only emulates the others, at a hundredth of the speed.
    """
    short = deepcopy(config)
    backbone, data, trainer, recipe = (short[name] for name in ("backbone", "data", "trainer", "recipe"))
    dense = "max_size" in data
    fine_tunes, larger = bool(backbone.get("checkpoint_path")) and not dense, data["img_size"] > 224
    short["name"] += "_rehearsal"
    short["backbone"] = {"name": nano} | {key: backbone[key] for key in KEPT if key in backbone}
    if dense:
        _make_dense_small(short)
    else:
        if data.get("root", "given") is None:
            short["data"] = {"name": "digits"}
        short["data"]["img_size"] = LARGER if larger else SIZE

    schedule, regularize = recipe["schedule"], recipe["regularize"]
    for section, name in (
        (schedule, "warmup_epochs"),
        (schedule, "cooldown_epochs"),
        (schedule, "decay_epochs"),
        (regularize, "mix_off_epochs"),
    ):
        section[name] = min(1, section[name])
    if schedule["warmup_steps"] is not None:
        schedule["warmup_steps"] = min(2, schedule["warmup_steps"])
    schedule["milestones"] = [1.0 + i / 2 for i in range(len(schedule["milestones"]))]
    phases = schedule["warmup_epochs"] + schedule["cooldown_epochs"] + regularize["mix_off_epochs"]
    trainer["epochs"] = 2 + round(phases)
    trainer["batch_size"] = min(32, trainer["batch_size"])
    trainer["accumulation_steps"] = min(2, trainer["accumulation_steps"])
    trainer["max_steps"] = None
    trainer["precision"] = "fp32" if on_cpu else trainer["precision"]
    # A scaled rate would be too low to learn anything in so few steps.
    recipe["reference_batch_size"] = None
    if recipe["ema"]["decay"] is not None:
        recipe["ema"]["decay"] = 0.9
    if recipe["progressive"]["start_size"] is not None:
        short["data"]["img_size"] = LARGER
        recipe["progressive"] = {"start_size": SIZE, "full_epochs": 1, "multiple": LARGER - SIZE}
    if not fine_tunes:
        return [short]

    start = deepcopy(short)
    start["name"] += "_start"
    start["run_dir"] = f"{config['run_dir']}_start" if config.get("run_dir") else None
    start["data"]["img_size"] = SIZE
    start["recipe"]["optimizer"]["lr"] = 1e-3
    return [start, short]


def _make_dense_small(config: dict[str, Any]) -> None:
    """Small scenes in place of data that are not there, and small pictures in any case."""
    data, dense = config["data"], config["recipe"]["dense"]
    if data.get("root", "given") is None:
        kept = {key: data[key] for key in ("channels", "mean", "std")}
        config["data"] = data = {"name": "digit_scenes", "train_scenes": DENSE, "val_scenes": DENSE // 4} | kept
    data["img_size"], data["max_size"], dense["max_size"] = DENSE_SIZE, None, None
    small = {
        "short_sides": [DENSE_SIZE - 16, DENSE_SIZE],
        "first_sides": [64, 80],
        "first_crop": [48, 64],
        "crop": [DENSE_SIZE, DENSE_SIZE],
    }
    for name, value in small.items():
        dense[name] = dense[name] and value
    config["trainer"]["batch_size"] = min(4, config["trainer"]["batch_size"])


class FirstPictures:
    """The first pictures of a source with boxes, masks or maps."""

    def __init__(self, source: DenseSource, count: int):
        self.classes, self.things, self._source = source.classes, getattr(source, "things", None), source
        self._count = min(count, len(source))
        self.wide = None if source.wide is None else source.wide[: self._count]

    def __len__(self) -> int:
        return self._count

    def picture(self, index: int) -> Picture:
        return self._source.picture(index)

    def target(self, index: int) -> Target:
        return self._source.target(index)

    def name(self, index: int) -> str:
        return self._source.name(index)


class FewPerClass:
    """The first pictures of each class of a source."""

    def __init__(self, source: Source, per_class: int):
        self.classes, self._source = source.classes, source
        seen = [0] * len(source.classes)
        self._indices = []
        for index in range(len(source)):
            label = source.target(index)
            seen[label] += 1
            if seen[label] <= per_class:
                self._indices.append(index)

    def __len__(self) -> int:
        return len(self._indices)

    def picture(self, index: int) -> Picture:
        return self._source.picture(self._indices[index])

    def target(self, index: int) -> int:
        return self._source.target(self._indices[index])

    def name(self, index: int) -> str:
        return self._source.name(self._indices[index])


def few(train: Source | DenseSource, val: Source | DenseSource) -> tuple:
    """Splits of a size to rehearse with."""
    if hasattr(train, "wide"):
        return FirstPictures(train, DENSE), FirstPictures(val, DENSE // 4)
    per_class = max(4, PICTURES // len(train.classes))
    return FewPerClass(train, per_class), FewPerClass(val, per_class // 2)
