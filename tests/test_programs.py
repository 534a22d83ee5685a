"""train.py and eval.py as a person uses them."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

import backbones
import eval as evaluation
import train
from backbones.checkpoints import read_checkpoint
from training.data import Digits

from .conftest import COARSE, ROOT, SHORT, rows_of


def test_what_a_run_leaves_behind(run_folder):
    config = OmegaConf.load(run_folder / "config.yaml")
    assert config.backbone.name == "swin_nano" and config.trainer.epochs == 2 and config.name == "digits_swin_nano"
    rows = rows_of(run_folder / "metrics.csv")
    assert [row["epoch"] for row in rows] == ["1", "2"] and rows[0]["steps"] == "11"
    summary = json.loads((run_folder / "summary.json").read_text())
    assert list(summary) == [
        *("task", "backbone", "data", "epochs", "steps", "top1", "top5", "loss", "images_per_second"),
        *("wall_seconds", "peak_memory_bytes", "parameters", "checkpoint"),
    ]
    assert summary["top1"] == max(float(row["top1"]) for row in rows) > 0.3
    assert summary["steps"] == 22 and summary["task"] == "classification" and summary["data"] == "digits"
    for name in ("curves", "confusion", "errors"):
        assert min(Image.open(run_folder / f"{name}.png").size) > 400
    model = backbones.create_model(
        "swin_nano", num_classes=10, in_chans=1, checkpoint_path=run_folder / "checkpoints/best.safetensors"
    )
    assert summary["parameters"] == sum(p.numel() for p in model.parameters())


def test_evaluating_a_run_gives_its_own_figures(call, run_folder, tmp_path):
    said = call(evaluation, f"run={run_folder}", "trainer.batch_size=50", f"run_dir={tmp_path}/elsewhere")
    summary = json.loads((run_folder / "summary.json").read_text())
    result = json.loads((tmp_path / "elsewhere/eval.json").read_text())
    assert result["top1"] == summary["top1"] and result["top5"] == summary["top5"] and result["images"] == 360
    assert result["loss"] == pytest.approx(summary["loss"], rel=1e-5) and result["images_per_second"] > 0
    assert f"top-1 {summary['top1']:.2%}" in said
    assert (tmp_path / "elsewhere/confusion.png").exists() and (tmp_path / "elsewhere/errors.png").exists()


def test_evaluating_any_checkpoint(call, run_folder, tmp_path):
    checkpoint = run_folder / "checkpoints/best.safetensors"
    call(evaluation, "backbone=swin_nano", f"checkpoint={checkpoint}", "data=digits", "run_dir=here")
    summary = json.loads((run_folder / "summary.json").read_text())
    assert json.loads((tmp_path / "here/eval.json").read_text())["top1"] == summary["top1"]
    said = call(evaluation, "backbone=swin_t", f"checkpoint={checkpoint}", "data=digits", code=2)
    assert "does not fit this Swin model" in said
    said = call(evaluation, "backbone=swin_nano", "data=digits", "checkpoint=nowhere.pt", code=2)
    assert "There is no checkpoint at nowhere.pt" in said
    assert "Name what to evaluate" in call(evaluation, code=2)
    assert "no run in nowhere" in call(evaluation, "run=nowhere", code=2)


def test_classifying_one_picture(call, run_folder, tmp_path):
    _, val = Digits().splits()
    val.picture(0).image().save("digit.png")
    lines = call(evaluation, f"run={run_folder}", "image=digit.png").splitlines()
    assert len(lines) == 5
    shares = [float(re.match(r"\s*([\d.]+)%  \d$", line)[1]) for line in lines]
    assert shares == sorted(shares, reverse=True) and 20 < sum(shares) <= 100.1
    assert "cannot be read" in call(evaluation, f"run={run_folder}", "image=nothing.png", code=2)


def test_jpegs_in_folders_from_end_to_end(call, tmp_path):
    """Bright circles against dark squares, as real JPEG files, one of them cut short."""
    random = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 8)):
        for c, name in enumerate(("bright", "dark")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(150 - 100 * c, 250 - 100 * c, (48, 64, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{i}.jpg", quality=90)
    cut = tmp_path / "data/val/dark/3.jpg"
    cut.write_bytes(cut.read_bytes()[:300])
    arguments = ["data=imagefolder", "data.root=data", "data.img_size=32", "data.workers=2", "recipe=imagenet"]
    arguments += ["trainer.epochs=3", "trainer.batch_size=8", "recipe.schedule.warmup_epochs=1", "run_dir=out"]
    arguments += [
        "recipe.ema.decay=0.9",
        "trainer.accumulation_steps=2",
        "trainer.precision=bf16",
        "logger=tensorboard",
    ]
    said = call(train, *arguments)
    assert "Skipped an unreadable picture: data/val/dark/3.jpg" in said
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    rows = rows_of(tmp_path / "out/metrics.csv")
    assert summary["top1"] == max(float(row[c]) for row in rows for c in ("top1", "ema_top1")) == 1.0
    assert summary["steps"] == 9
    assert list((tmp_path / "out/tensorboard").glob("events*"))
    result = call(evaluation, "run=out")
    assert "15 pictures" in result
    assert json.loads((tmp_path / "out/eval.json").read_text())["unreadable"] == ["data/val/dark/3.jpg"]
    assert "bright" in call(evaluation, "run=out", "image=data/val/bright/0.jpg")
    said = call(train, *arguments[:-1], "data.max_bad_images=0", "run_dir=strict", code=2)
    assert "data.max_bad_images allows 0" in said and "val/dark/3.jpg" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["backbone=swin_x"], r"Could not find 'backbone/swin_x'.*swin_nano"),
        (["data=nothing"], "Could not find 'data/nothing'.*digits; huggingface; imagefolder"),
        (["recipe=nothing"], "Could not find 'recipe/nothing'.*imagenet; .*small"),
        (["trainer.epoch=3"], "Could not override 'trainer.epoch'.*'epoch' not in"),
        (["trainer.epochs=many"], "'many' of type 'str' could not be converted to Integer.*trainer.epochs"),
        (["seed=a"], "could not be converted to Integer.*seed"),
        (["seed=-1"], "seed is -1, but must not be negative"),
        (["data.name=flowers"], "data.name must be digits"),
        (["data.channels=3"], "data.mean and std need a positive number per channel"),
        (["data.workers=-1"], "workers and max_bad_images must not be negative"),
        (["recipe.augment.auto_augment=foo"], "cannot augment as recipe.augment says"),
        (["recipe.augment.degrees=-1"], "cannot augment as recipe.augment says"),
        (["recipe.optimizer.betas=[0.9]"], "cannot build the optimizer"),
        (["recipe.augment.random_erasing=2"], "must be between 0 and 1"),
        (["recipe.ema.decay=1"], "recipe.ema.decay is 1.0, but must be below 1"),
        (["backbone.drop_path_rate=2"], "drop_path_rate is 2, but must be a probability"),
        (["backbone.window_size=0"], "sizes of at least 1"),
        (["backbone.depths=[1,2]"], "a depth and a num_heads per stage"),
        (["backbone.window=8"], "swin_nano has no argument 'window'. Did you mean window_size"),
        (["backbone.num_heads=[1,2,5,8]"], "96 channels cannot be split into 5 heads"),
        (["backbone.depths=3"], "swin_nano cannot be built with"),
        (["trainer.device=tpu"], "must be auto, cpu or cuda"),
        (["trainer.batch_size=5000"], "larger than the training set of 1437 pictures"),
        (["trainer.batch_size=0"], "trainer.batch_size is 0"),
        (["data=imagefolder"], "needs data.root=PATH"),
        (["data=imagefolder", "data.root=nowhere"], "The data folder nowhere does not exist"),
        (["data.img_size=16"], "at least 32 pixels"),
        (["backbone.num_classes=5"], "backbone.num_classes follows from the task"),
        (["resume=nowhere"], "There is no run in nowhere"),
        (["trainer.accumulation_steps=99"], "accumulation_steps is 99, but an epoch has 11 batches"),
        (["recipe.optimizer.name=adamx"], "cannot build the optimizer 'adamx'"),
        (["nonsense"], "Error parsing override 'nonsense'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input_is_one_paragraph(call, arguments, said):
    output = call(train, *arguments, code=2)
    message = output.splitlines()[-1]
    assert message.startswith("Error: ") and re.search(said, message), output
    assert "Traceback" not in output


def test_a_traceback_where_it_is_asked_for(call):
    with pytest.raises(ValueError, match="must be auto"):
        call(train, "trainer.device=tpu", "debug=true")


def test_help_and_configuration(run_program):
    said = run_program("train.py", "--help").stdout
    assert f"backbone: {', '.join(backbones.list_models())}" in said
    assert "digits, huggingface, imagefolder" in said and "trainer.epochs=60" in said
    said = run_program("train.py", "--cfg", "job", "experiment=swin/swin_t_in1k").stdout
    assert "name: swin_t_in1k" in said and "auto_augment: rand-m9-mstd0.5-inc1" in said


BACKBONES = sorted((ROOT / "configs/backbone").glob("*.yaml"))


def test_every_backbone_has_a_configuration():
    configs = {path.stem: OmegaConf.load(path) for path in BACKBONES}
    assert configs.keys() == set(backbones.list_models())
    for name, config in configs.items():
        assert config.name == name and set(config) <= {"name", "drop_path_rate", "aux_head"}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.stem, marks=() if "nano" in path.stem else pytest.mark.slow) for path in BACKBONES],
)
def test_a_backbone_configuration_builds(path):
    assert backbones.create_model(device="meta", **OmegaConf.load(path)).num_classes == 1000


def test_a_loss_that_is_no_number_stops_the_run(call, tmp_path):
    hot = ["recipe.optimizer.lr=1e30", "trainer.max_bad_steps=0"]
    arguments = [*SHORT, COARSE, *hot, "recipe.optimizer.clip_grad=null", "run_dir=out"]
    message = call(train, *arguments, code=2).splitlines()[-1]
    assert re.search(
        r"The loss became (nan|inf) at step \d+, with a learning rate of \S+\. No checkpoint was saved", message
    )
    # A first step that only the evaluation finds out.
    said = call(train, *arguments[:-1], "trainer.max_steps=1", "run_dir=one", code=2)
    assert "at step 0, with a learning rate of" in said and not (tmp_path / "one/checkpoints/last.pt").exists()
    # From a good checkpoint on, the message has its path.
    call(train, *SHORT, COARSE, "run_dir=good", "trainer.max_steps=11")
    said = call(train, "resume=good", "trainer.max_steps=22", *hot, code=2)
    assert "The last good checkpoint is good/checkpoints/last.pt" in said
    assert read_checkpoint("good/checkpoints/best.safetensors")["head.fc.bias"].isfinite().all()


def test_wandb_without_a_key_or_network_goes_offline(call, monkeypatch, tmp_path):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    said = call(train, *SHORT, COARSE, "trainer.max_steps=2", "logger=[csv,wandb]", "run_dir=keyless")
    assert said.count("W&B logs offline: there is no API key") == 1
    assert list((tmp_path / "keyless/wandb").glob("offline-run-*/run-*.wandb"))
    assert (tmp_path / "keyless/summary.json").exists()


def test_evaluating_needs_weights_for_the_classes_of_the_data(call, run_folder, tmp_path):
    assert "Name the weights" in call(evaluation, "backbone=swin_nano", "data=digits", code=2)
    other = backbones.create_model("swin_nano", in_chans=1, num_classes=7)
    torch.save(other.state_dict(), "other.pt")
    said = call(evaluation, "backbone=swin_nano", "data=digits", "checkpoint=other.pt", code=2)
    assert "no classifier for the 10 classes" in said
    said = call(evaluation, f"run={run_folder}", "checkpoint=other.pt", code=2)
    assert "no classifier for the 10 classes" in said


def test_a_picture_is_classified_without_the_data_that_were_learned(call, tmp_path):
    for part in ("train", "val"):
        for c, name in enumerate(("a cat", "ein Hund")):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for i in range(4):
                Image.new("RGB", (40, 40), (200 * c, i, 0)).save(tmp_path / f"data/{part}/{name}/{i}.PNG")
    call(train, "data=imagefolder", "data.root=data", "data.img_size=32", "data.workers=0", "trainer.batch_size=4",
         "trainer.epochs=2", "run_dir=out")  # fmt: skip
    shutil.move("data/val/a cat/0.PNG", "picture.png")
    shutil.rmtree("data/train")
    said = call(evaluation, "run=out", "image=picture.png")
    assert sorted(line.split("%  ")[1] for line in said.splitlines()) == ["a cat", "ein Hund"]
    assert "does not exist" in call(evaluation, "run=out", code=2)
    (tmp_path / "data/train/bird").mkdir(parents=True)
    shutil.rmtree("data/val")
    (tmp_path / "data/val/bird").mkdir(parents=True)
    for part in ("train", "val"):
        Image.new("RGB", (40, 40)).save(f"data/{part}/bird/0.png")
    assert "was trained for other classes (a cat, ein Hund" in call(evaluation, "run=out", code=2)


@pytest.mark.slow
def test_training_through_torch_compile(call, tmp_path):
    call(train, *SHORT, "trainer.compile=true", "run_dir=out", "trainer.max_steps=4")
    assert json.loads((tmp_path / "out/summary.json").read_text())["steps"] == 4
