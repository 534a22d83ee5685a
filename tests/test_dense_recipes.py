"""The published recipes of detectors and segmenters: every experiment composes, is what was published, and builds."""

import re
from functools import cache

import hydra
import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

import backbones
import train
from backbones import InputError
from training.building import build_task
from training.engine.optimization import build_optimizer, build_schedule
from training.tasks import TASKS

from .conftest import ROOT
from .published_dense_recipes import GENERAL, PUBLISHED
from .test_experiments import value_of

FOLDER = ROOT / "configs/experiment"
THINGS = [True] * 80 + [False] * 53  # of COCO


@cache
def composed(*arguments):
    train.register_schemas()
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return hydra.compose("train", [train.with_free_keywords(argument) for argument in arguments])


@cache
def variants(name):
    """What an experiment's comments say: for each backbone the arguments to add, and the results."""
    text = (FOLDER / f"{name}.yaml").read_text()
    found = {}
    for first, more, results in re.findall(r"^#   (\w+(?:\.\w+)?)([^:\n]*)(?::(.*))?$", text, re.MULTILINE):
        arguments = f"{first}{more}".split() if "=" in more else []
        config = composed(f"experiment={name}", *arguments)
        key = config.backbone.name + (" w4" if config.backbone.get("window_size") else "")
        assert arguments or first == key  # the first line names the backbone that needs nothing added
        assert key not in found
        found[key] = arguments, tuple(map(float, results.split(","))) if results else ()
    return found


def check_numbers(config, numbers):
    for key, expected in numbers.items():
        value = value_of(config, key)
        equal = value == pytest.approx(expected) if isinstance(expected, float) else value == expected
        assert equal, f"{key} is {value}, but {expected} is published"
    assert config.trainer.batch_size * config.trainer.accumulation_steps == config.recipe.reference_batch_size


def test_every_dense_recipe_is_here():
    paths = {str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.glob("**/[!_]*.yaml")}
    dense = {name for name in paths if not re.search("_in(1|22)k$", name)}
    assert dense == set(PUBLISHED) | set(GENERAL)


@cache
def strides(name, **keywords):
    return backbones.create_model(name, features_only=True, device="meta", **keywords).feature_info.reduction()


@pytest.mark.parametrize("name", PUBLISHED)
def test_dense_experiments_have_the_published_numbers_and_backbones(name):
    numbers, rows = PUBLISHED[name]
    assert set(variants(name)) == set(rows)
    for key, (arguments, results) in variants(name).items():
        rate, *published = rows[key]
        own = published.pop() if published and isinstance(published[-1], dict) else {}
        config = composed(f"experiment={name}", *arguments)
        changed = numbers | own | {"backbone.drop_path_rate": rate}
        if own:
            del changed["recipe.schedule.warmup_lr"]
        check_numbers(config, changed)
        assert results == tuple(published), f"{key}: {published} is published"
        assert config.name.startswith(f"{config.backbone.name}_") and config.backbone.name in backbones.list_models()
        keywords = {key: tuple(value) if OmegaConf.is_list(value) else value for key, value in config.backbone.items()}
        assert strides(dense=TASKS[config.task.name].dense, **keywords) == [4, 8, 16, 32]


@pytest.mark.parametrize("name", GENERAL)
def test_general_recipes_take_any_backbone(name):
    config = composed(f"experiment={name}", "backbone=overlock_t", "backbone.drop_path_rate=0.15")
    check_numbers(config, GENERAL[name])
    assert config.name == f"overlock_t_{name}"
    assert (config.backbone.name, config.backbone.drop_path_rate) == ("overlock_t", 0.15)


@pytest.mark.parametrize("name", [*PUBLISHED, *GENERAL])
def test_a_dense_experiment_opens_with_command_result_and_hardware(name):
    text = (FOLDER / f"{name}.yaml").read_text()
    lines = text.splitlines()
    data = "ade20k" if composed(f"experiment={name}").data.name == "ade20k" else "coco"
    weights = "backbone.checkpoint_path=FILE" if name.startswith(("biformer", "davit")) else "backbone.pretrained=true"
    backbone = r" backbone=\w+" if name in GENERAL else ""
    assert lines[0] == "# @package _global_"
    assert re.fullmatch(rf"# python train.py experiment={name}{backbone} data.root=/data/{data} {weights}", lines[1])
    assert re.match(r"# .*(AP|mIoU|No result)", lines[2])
    assert re.search(r"^# .*(pictures|chosen).* Not run here\.$", text, re.MULTILINE)
    assert ("FILE: weights" in text) == ("=FILE" in weights)


def built(name, *arguments, **backbone):
    config = OmegaConf.to_object(composed(f"experiment={name}", *arguments))
    kind = TASKS[config.task["name"]]
    family = name.partition("/")[0] if "/" in name else "swin"
    config.backbone["name"] = f"{family}_nano"
    classes = [str(i) for i in range(133 if kind.target == "segments" else 150 if kind.target == "map" else 80)]
    return config, build_task(config, classes, THINGS if kind.target == "segments" else None, **backbone)


def different(names):
    """Experiments of which no other has the same backbone and task."""
    seen = {}
    for name in names:
        seen.setdefault((name.partition("/")[0], str(composed(f"experiment={name}").task)), name)
    return list(seen.values())


@pytest.mark.parametrize("family", sorted({name.rpartition("/")[0] for name in [*PUBLISHED, *GENERAL]}))
def test_the_tasks_build_with_a_small_backbone(family):
    for name in different(name for name in [*PUBLISHED, *GENERAL] if name.rpartition("/")[0] == family):
        check_task(*built(name))


def check_task(config, task):
    """The optimizer has all that learns, and the schedule ends low."""
    optimizer = build_optimizer(task.model, config.recipe.optimizer)
    learned = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert learned == {id(p) for p in task.model.parameters() if p.requires_grad}
    per_epoch = 10
    total = config.trainer.max_steps or config.trainer.epochs * per_epoch
    schedule = build_schedule(optimizer, config.recipe.schedule, total, per_epoch)
    schedule.step_update(total - 1)
    assert max(group["lr"] for group in optimizer.param_groups) < 0.02 * config.recipe.optimizer.lr


def test_the_backbone_of_mask2former_learns_at_a_tenth_of_the_rate():
    config, task = built("mask2former_50e", "+task.queries=5", "+task.encoder_layers=1", "+task.decoder_layers=2")
    names = {id(p): name for name, p in task.model.named_parameters()}
    for group in build_optimizer(task.model, config.recipe.optimizer).param_groups:
        for parameter in group["params"]:
            inside = names[id(parameter)].startswith("network.model.pixel_level_module.encoder.backbone.")
            assert group["lr"] == pytest.approx(1e-5 if inside else 1e-4), names[id(parameter)]


def test_mask2former_is_for_panoptic_maps_too():
    options = "+task.queries=5", "+task.encoder_layers=1", "+task.decoder_layers=2"
    config, task = built("mask2former_50e", "task=panoptic", *options)
    assert type(task) is TASKS["panoptic"] and config.data.name == "coco"
    check_numbers(
        composed("experiment=mask2former_50e", "task=panoptic"), GENERAL["mask2former_50e"] | {"task.name": "panoptic"}
    )


def test_a_linear_probe_of_maps_learns_a_norm_and_a_layer_alone():
    _, task = built("linear_probe_seg")
    learned = [name for name, p in task.model.named_parameters() if p.requires_grad]
    assert len(learned) == 4 and not any("backbone" in name for name in learned)


def test_unknown_options_of_dense_recipes():
    with pytest.raises(InputError, match=r"There is no option task\.anchors"):
        built("mask_rcnn_1x", "+task.anchors=3")
    with pytest.raises(InputError, match="window"):
        built("swin/swin_upernet_160k", windows=3)
    for wrong in ("recipe.schedule.milestone=[8]", "recipe.dense.flip=0.5", "trainer.iterations=3"):
        with pytest.raises(ConfigCompositionException):
            composed("experiment=mask_rcnn_1x", wrong)
