"""The published recipes: every experiment composes, says what was published, and can be rehearsed."""

import json
import re
from functools import cache

import hydra
import pytest
import timm
from omegaconf import OmegaConf

import backbones
import train
from training.engine import scale_rates
from training.rehearsal import FewPerClass, rehearsals

from .conftest import ROOT, rows_of
from .published_recipes import COMMON, PUBLISHED, TOP1

FOLDER = ROOT / "configs/experiment"
# Those of classifiers; `test_dense_recipes.py` has the others.
EXPERIMENTS = sorted(str(p.relative_to(FOLDER).with_suffix("")) for p in FOLDER.glob("*/[!_]*_in*k.yaml"))


@cache
def composed(name):
    train.register_schemas()
    with hydra.initialize_config_dir(str(ROOT / "configs"), version_base="1.3"):
        return hydra.compose("train", [f"experiment={name}"])


def value_of(config, key):
    value = OmegaConf.select(config, key, throw_on_missing=False)
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def test_every_published_recipe_is_here():
    assert set(EXPERIMENTS) == {name for names in PUBLISHED for name in names.split()} == set(TOP1)


@pytest.mark.parametrize(("names", "numbers"), PUBLISHED.items(), ids=[names.split()[0] for names in PUBLISHED])
def test_experiments_have_the_published_numbers_and_say_what_they_are(names, numbers):
    for name in names.split():
        config = composed(name)
        family = name.split("/")[0]
        for key, expected in (COMMON | numbers).items():
            if isinstance(expected, dict) and name.split("/")[1] in expected:  # one value for each
                expected = expected[name.split("/")[1]]
            value = value_of(config, key)
            assert value == expected, f"{name}: {key} is {value}, but {expected} is published"
        recipe, trainer = OmegaConf.to_object(config.recipe), config.trainer
        published_batch = recipe.reference_batch_size
        optimizer, schedule = scale_rates(recipe.optimizer, recipe.schedule, published_batch, published_batch)
        assert (optimizer, schedule) == (recipe.optimizer, recipe.schedule)
        assert trainer.batch_size * trainer.accumulation_steps == published_batch
        assert config.name == name.split("/")[1] and config.backbone.name in backbones.list_models()
        assert OmegaConf.is_missing(config.backbone, "checkpoint_path") == ("_ft_" in name or not is_224(config))
        assert config.data.name == "imagefolder" and family == backbones_family(config.backbone.name)
        check_comments(name, config)


def is_224(config):
    return config.data.img_size == 224


def backbones_family(name):
    return timm.models.model_entrypoint(name).__module__.rpartition(".")[2]


def check_comments(name, config):
    """An experiment opens with command, result and hardware."""
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    needs_weights = OmegaConf.is_missing(config.backbone, "checkpoint_path")
    fine_tunes = " backbone.checkpoint_path=FILE" if needs_weights else ""
    data = "imagenet22k" if name.endswith("in22k") else "imagenet"
    assert lines[0] == "# @package _global_"
    assert lines[1] == f"# python train.py experiment={name} data.root=/data/{data}{fine_tunes}"
    assert TOP1[name] == float(re.search(r"([\d.]+) % top-1", lines[2])[1])
    assert re.search(r"pictures.*Not run here\.$", lines[3])
    assert not fine_tunes or lines[4].startswith("# FILE: weights of ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["experiment=swin/swin_t_in1k", "recipe.optimizer.learning_rate=1"], "'learning_rate' not in"),
        (["experiment=swin/swin_t_in1k"], "needs data.root=PATH"),
        (["experiment=swin/swin_b_384_in1k", "data.root=."], "checkpoint_path"),
        (["recipe.reference_batch_size=0"], "reference_batch_size is 0, but must be at least 1"),
    ],
)
def test_wrong_use_of_experiments(call, arguments, said):
    assert said in call(train, *arguments, code=2)


def test_rates_follow_the_batch(call, tmp_path):
    short = ["trainer.max_steps=1", "recipe.reference_batch_size=1024", "recipe.schedule.warmup_epochs=0"]
    call(train, *short, "trainer.batch_size=64", "trainer.accumulation_steps=2", "run_dir=out")
    assert float(rows_of(tmp_path / "out/metrics.csv")[0]["lr"]) == pytest.approx(2e-3 * 128 / 1024)


def rehearsed(name, root=None):
    config = OmegaConf.to_container(composed(name), resolve=True)
    config["data"]["root"] = root
    return rehearsals(config, f"{name.split('/')[0]}_nano", on_cpu=True)


def test_what_a_rehearsal_keeps_and_what_it_shortens():
    [config] = rehearsed("gcvit/gcvit_t_in1k")
    schedule, trainer = config["recipe"]["schedule"], config["trainer"]
    assert (schedule["warmup_epochs"], schedule["cooldown_epochs"], trainer["epochs"]) == (1, 1, 4)
    assert config["backbone"] == {"name": "gcvit_nano", "drop_path_rate": 0.2}
    assert config["data"] == {"name": "digits", "img_size": 32} and trainer["precision"] == "fp32"
    assert config["recipe"]["ema"]["decay"] == 0.9 and config["recipe"]["regularize"]["mixup"] == 0.8
    start, end = rehearsed("volo/volo_d1_384_in1k", root="/pictures")
    assert (start["data"]["img_size"], end["data"]["img_size"]) == (32, 48)
    assert end["data"]["root"] == "/pictures" and "checkpoint_path" not in start["backbone"]
    assert (
        start["backbone"]["token_labelling"] and start["recipe"]["optimizer"]["lr"] > end["recipe"]["optimizer"]["lr"]
    )
    assert start["name"] != end["name"]


def test_few_pictures_of_each_class():
    from training.data import Digits

    source, _ = Digits().splits()
    some = FewPerClass(source, 3)
    assert len(some) == 30 and sorted(some.target(i) for i in range(30)) == sorted(list(range(10)) * 3)
    first = next(i for i in range(len(source)) if source.target(i) == some.target(0))
    assert some.name(0) == source.name(first) and some.picture(0).image() == source.picture(first).image()


def check_rehearsal(call, folder, name, *more):
    call(train, f"experiment={name}", "trainer.rehearse=true", "trainer.device=cpu", "run_dir=out", *more)
    config, rows = OmegaConf.load(folder / "out/config.yaml"), rows_of(folder / "out/metrics.csv")
    summary = json.loads((folder / "out/summary.json").read_text())
    rates = [float(row["lr"]) for row in rows]
    schedule = config.recipe.schedule
    assert len(rows) == config.trainer.epochs == summary["epochs"]
    assert config.backbone.name == summary["backbone"] == f"{name.split('/')[0]}_nano"
    if schedule.cooldown_epochs:
        assert rates[-1] == pytest.approx(schedule.min_lr) and rates[-2] > schedule.min_lr
    assert ("ema_top1" in rows[0]) == (config.recipe.ema.decay is not None)
    assert summary["top1"] == max(float(row[key]) for row in rows for key in ("top1", "ema_top1") if key in row)
    if "checkpoint_path" in config.backbone:
        assert config.backbone.checkpoint_path == "out_start/checkpoints/best.safetensors"
        assert (folder / "out_start/summary.json").exists()


def test_a_recipe_is_rehearsed(call, tmp_path):
    more = ["recipe.regularize.mix_off_epochs=9", "recipe.ema.decay=0.999"]
    check_rehearsal(call, tmp_path, "swin/swin_b_384_in1k", *more, "recipe.schedule.cooldown_epochs=5")


def essence(name):
    """The rehearsal of an experiment but for its name and drop path rate."""
    configs = rehearsed(name)
    for config in configs:
        config["name"] = config["backbone"]["drop_path_rate"] = None
    return configs


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_all_recipes_are_rehearsed(call, tmp_path, name):
    family = name.split("/")[0]
    same = next(one for one in EXPERIMENTS if one.startswith(family) and essence(one) == essence(name))
    if same != name:
        pytest.skip(f"the rehearsal is that of {same}")
    check_rehearsal(call, tmp_path, name)
