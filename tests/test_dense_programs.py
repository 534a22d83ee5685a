"""train.py and eval.py with the tasks that find where things are, on small scenes."""

import csv
import json
import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

import backbones
import eval as evaluation
import train
from backbones.checkpoints import read_checkpoint
from training.data.dense import CocoFolder, DigitScenes, export_coco, export_maps
from training.tasks.dense.task import DenseTask

from .conftest import rows_of, train_in, untimed

SCENES = ["data.size=[64,80]", "data.img_size=64", "data.scale=[16,32]", "data.train_scenes=16", "data.val_scenes=7"]
QUICK = [*SCENES, "trainer.epochs=2", "trainer.batch_size=4", "recipe.optimizer.lr=1e-3"]
TINY = {
    "detection": ["task.width=32", "task.hidden=32"],
    "instance": ["task.width=32", "task.hidden=32"],
    "semantic": ["task.decoder=segformer", "task.width=16"],
    "panoptic": ["task.width=32", "task.encoder_layers=1", "task.decoder_layers=2", "task.queries=5", "task.points=64"],
}
METRICS = {
    "detection": ["box_ap", "box_ap50"],
    "instance": ["box_ap", "box_ap50", "mask_ap", "mask_ap50"],
    "semantic": ["miou", "mean_accuracy", "boundary_iou"],
    "panoptic": ["pq"],
}
DRAWN = {
    "detection": ["precision_recall", "confusion"],
    "instance": ["precision_recall", "confusion"],
    "semantic": ["classes", "confusion"],
    "panoptic": ["classes"],
}


@pytest.fixture(scope="session")
def dense_runs(tmp_path_factory):
    """A run of each task, by its name, made when it is asked for."""
    folder, made = tmp_path_factory.mktemp("dense"), {}

    def run(task):
        if task not in made:
            train_in(folder, f"task={task}", *QUICK, *TINY[task], f"run_dir={folder / task}")
            made[task] = folder / task
        return made[task]

    return run


@pytest.mark.parametrize("task", TINY)
def test_a_run_and_its_evaluation(task, dense_runs, call, tmp_path):
    run = dense_runs(task)
    summary = json.loads((run / "summary.json").read_text())
    backbone = "litv2_nano" if task == "semantic" else "swin_nano"
    assert (summary["task"], summary["backbone"], summary["data"]) == (task, backbone, "digit_scenes")
    assert summary["epochs"] == 2 and summary["steps"] == 8
    assert all(0 <= summary[name] <= 1 for name in METRICS[task])
    assert len(rows_of(run / "metrics.csv")) == 2
    for name in [*DRAWN[task], "curves", "samples/epoch_0001", "samples/epoch_0002"]:
        assert min(Image.open(run / f"{name}.png").size) > 100
    rows = list(csv.DictReader((run / "classes.csv").open()))
    assert {row["class"] for row in rows} <= {*"0123456789", "stripes", "checks", "grain"}

    said = call(evaluation, f"run={run}", f"run_dir={tmp_path / 'out'}")
    result = json.loads((tmp_path / "out/eval.json").read_text())
    assert "on 7 pictures of digit_scenes" in said and result["images"] == 7
    assert all(result[name] == pytest.approx(summary[name], abs=1e-6) for name in METRICS[task])


@pytest.mark.parametrize("task", TINY)
def test_one_picture(task, dense_runs, call, tmp_path):
    """A JPEG that lies on its side is turned as its EXIF data say, and what is found is drawn and listed."""
    pixels = np.random.default_rng(0).integers(0, 255, (40, 70, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = 6
    image.save(tmp_path / "street.jpg", exif=image.getexif())
    folder = tmp_path / "found"
    said = call(evaluation, f"run={dense_runs(task)}", "image=street.jpg", f"run_dir={folder}")
    found = json.loads((folder / f"street_{task}.json").read_text())
    assert (found["height"], found["width"]) == (70, 40) and f"{len(found['found'])} found" in said
    drawn = Image.open(folder / f"street_{task}.png")
    assert drawn.height > drawn.width
    for entry in found["found"]:
        assert entry["label"] in {*"0123456789", "stripes", "checks", "grain"}
        if "box" in entry:
            left, top, right, bottom = entry["box"]
            assert 0 <= left <= right <= 40 and 0 <= top <= bottom <= 70 and 0 < entry["score"] <= 1
        if "mask" in entry:
            assert entry["mask"]["size"] == [70, 40]
    if task in ("semantic", "panoptic"):
        numbers = np.array(Image.open(folder / f"street_{task}_map.png"))
        assert numbers.shape == (70, 40)
    if task == "semantic":
        assert sum(entry["share"] for entry in found["found"]) == pytest.approx(1, abs=1e-3)
        assert len(np.unique(numbers)) == len(found["found"])
    if task == "panoptic":
        assert [int((numbers == i).sum()) for i in range(1, len(found["found"]) + 1)] == [
            entry["pixels"] for entry in found["found"]
        ]
    assert "no-picture.jpg cannot be read" in call(
        evaluation, f"run={dense_runs(task)}", "image=no-picture.jpg", code=2
    )


@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task in ("instance", "semantic") else pytest.mark.slow) for task in TINY]
)
def test_an_interrupted_run_equals_one_that_was_not(task, dense_runs, call, monkeypatch, tmp_path):
    whole, steps, training_step = dense_runs(task), [], DenseTask.training_step

    def interrupted(self, batch):
        steps.append(batch)
        if len(steps) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return training_step(self, batch)

    monkeypatch.setattr(DenseTask, "training_step", interrupted)
    call(train, f"task={task}", *QUICK, *TINY[task], "run_dir=out", code=75)
    call(train, "resume=out")
    assert len(steps) == 8
    one, other = (read_checkpoint(folder / "checkpoints/best.safetensors") for folder in (whole, tmp_path / "out"))
    assert one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)
    assert untimed(whole / "metrics.csv") == untimed(tmp_path / "out/metrics.csv")


@pytest.mark.parametrize(
    "task",
    [
        "panoptic",
        pytest.param("semantic", marks=pytest.mark.slow),
        pytest.param("detection", marks=pytest.mark.slow),
        pytest.param("instance", marks=pytest.mark.slow),
    ],
)
def test_real_files_give_the_same_metrics_as_what_they_were_made_of(task, dense_runs, call, tmp_path):
    """The scenes are exported as COCO or as label maps, and read back by the readers of these."""
    scenes = DigitScenes(size=[64, 80], img_size=64, scale=[16.0, 32.0], train_scenes=5, val_scenes=7)
    if task == "semantic":
        for source, split in zip(scenes.splits("map"), ("train", "val")):
            export_maps(source, tmp_path / "data", split)
        data = ["data=mask_folder"]
    else:
        segments = scenes.splits("segments") if task == "panoptic" else (None, None)
        for source, more, split in zip(scenes.splits("masks"), segments, ("train", "val")):
            export_coco(source, more, tmp_path / "data", split)
        data = ["data=coco_folder"]
        if task == "panoptic":
            found = sorted(path.name for path in (tmp_path / "data/annotations").glob("panoptic*.json"))
            data += [f"data.{s}_panoptic=annotations/{n}" for s, n in zip(("train", "val"), found)]
    call(evaluation, f"run={dense_runs(task)}", *data, "data.root=data", f"run_dir={tmp_path / 'out'}")
    result = json.loads((tmp_path / "out/eval.json").read_text())
    summary = json.loads((dense_runs(task) / "summary.json").read_text())
    assert result["data"] == data[0][5:] and result["images"] == 7
    assert all(result[name] == pytest.approx(summary[name], abs=1e-6) for name in METRICS[task])
    said = call(train, f"task={task}", *data, "data.root=data", *QUICK[5:], *TINY[task], "run_dir=run")
    assert "in run" in said and (tmp_path / "run/summary.json").exists()


def test_starting_from_a_classifier(run_folder, call, tmp_path):
    """The run of the digits is a folder; its backbone is taken, its head is not."""
    arguments = ["task=semantic", "backbone=swin_nano", *QUICK, *TINY["semantic"]]
    arguments += ["task.frozen_stages=4", "trainer.max_steps=1"]
    call(train, *arguments, f"backbone.checkpoint={run_folder}", "run_dir=out")
    taken = read_checkpoint(tmp_path / "out/checkpoints/best.safetensors")
    start = read_checkpoint(run_folder / "checkpoints/best.safetensors")
    prefix = next(name for name in taken if name.endswith("stages.0.blocks.0.norm1.weight"))
    prefix = prefix.removesuffix("stages.0.blocks.0.norm1.weight")
    # The digits fill no window of the last level, so its position tables are smaller.
    common = [name for name in start if prefix + name in taken and start[name].shape == taken[prefix + name].shape]
    assert len(common) > 70 and all(start[name].equal(taken[prefix + name]) for name in common)
    assert "there are no weights of a run" in call(train, *arguments, f"backbone.checkpoint={tmp_path}", code=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["task=detection", "data=digits"], "task=detection needs boxes, masks or maps, which data=digits does not"),
        (["data=digit_scenes"], "task=classification needs labels, which data=digit_scenes does not have"),
        (["task=detection", "task.head=yolo"], "task.head is 'yolo', but must be one of faster_rcnn"),
        (["task=detection", "task.wdith=64"], "There is no option task.wdith"),
        (["task=semantic", "task.neck=none", "backbone=volo_nano"], "add task.neck=simple_pyramid"),
        (["task=semantic", "recipe.dense.copy_paste=1"], "copy_paste is 1.0, but pasting objects needs masks"),
        (["task=detection", "task.frozen_stages=9"], "9 stages of the backbone cannot be frozen"),
        (["task=detection", "data.scale=[20,500]"], "scale must leave room in data.size"),
    ],
)
def test_wrong_input(arguments, said, call):
    assert said in call(train, *arguments, "run_dir=out", code=2)
    assert not os.path.exists("out")


def test_a_damaged_annotation_is_named(call, tmp_path, dense_runs):
    scenes = DigitScenes(size=[64, 80], img_size=64, scale=[16.0, 32.0], train_scenes=5, val_scenes=7)
    for source, split in zip(scenes.splits("map"), ("train", "val")):
        export_maps(source, tmp_path / "data", split)
    masks = sorted((tmp_path / "data/masks/val").iterdir())
    masks[2].write_bytes(masks[2].read_bytes()[:40])
    said = call(evaluation, f"run={dense_runs('semantic')}", "data=mask_folder", "data.root=data", "run_dir=out")
    assert "on 6 pictures of mask_folder" in said and said.count("Skipped an unreadable picture") == 1
    assert f"masks/val/{masks[2].name}" in said
    shutil.rmtree(tmp_path / "data/masks")
    assert "data" in call(evaluation, f"run={dense_runs('semantic')}", "data=mask_folder", "data.root=data", code=2)


def test_records_of_every_process_count_once(dense_runs, tmp_path):
    """Two processes see the seven pictures of a split in rounds of four, so that one comes twice."""
    import subprocess
    import sys

    from .conftest import ROOT

    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", ROOT / "eval.py"]
    command = [*launcher, f"run={dense_runs('detection')}", "run_dir=out", "trainer.batch_size=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "out/eval.json").read_text())
    summary = json.loads((dense_runs("detection") / "summary.json").read_text())
    assert result["box_ap"] == pytest.approx(summary["box_ap"], abs=1e-9)


def test_coco_folder_is_read_by_pycocotools(tmp_path):
    coco = pytest.importorskip("pycocotools.coco")
    scenes = DigitScenes(size=[64, 80], img_size=64, scale=[16.0, 32.0], train_scenes=3, val_scenes=2)
    for source, split in zip(scenes.splits("masks"), ("train", "val")):
        export_coco(source, None, tmp_path, split)
    read = CocoFolder(root=str(tmp_path)).splits("masks")[0]
    official = coco.COCO(tmp_path / "annotations/train.json")
    for index, image in enumerate(sorted(official.imgs)):
        masks = [official.annToMask(entry) for entry in official.imgToAnns[image]]
        assert np.array_equal(np.stack(masks), read.target(index)["masks"].numpy()) if masks else True
        assert torch.equal(read.target(index)["masks"], scenes.splits("masks")[0].target(index)["masks"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "options", "falls_to"),
    [
        # FCOS: the loss of a detector with proposals rises when it begins to propose where objects are.
        ("detection", ["task.head=fcos", "task.width=32", "recipe.optimizer.lr=1e-3"], 0.5),
        # From log(13): the textures are learned first, and digits count more than these.
        ("semantic", [*TINY["semantic"], "recipe.optimizer.lr=4e-3"], 0.88),
    ],
)
@pytest.mark.parametrize("family", backbones.list_families())
def test_every_family_learns(family, task, options, falls_to, call, tmp_path):
    """Twenty steps on the same few pictures, whose sides no window divides."""
    sizes = ["data.size=[90,118]", "data.img_size=90", "data.scale=[20,44]", "data.train_scenes=4", "data.val_scenes=2"]
    steps = ["trainer.epochs=20", "trainer.batch_size=4", "recipe.schedule.warmup_epochs=2", "data.workers=0"]
    call(train, f"task={task}", f"backbone={family}_nano", *sizes, *steps, *options, "run_dir=out")
    losses = [float(row["train_loss"]) for row in rows_of(tmp_path / "out/metrics.csv")]
    assert len(losses) == 20 and sum(losses[-4:]) < falls_to * sum(losses[:4])


def test_low_rank_corrections(call, tmp_path):
    """All that changes of the backbone are the corrections."""
    pytest.importorskip("peft")
    arguments = ["task=semantic", *QUICK, *TINY["semantic"], "task.lora_rank=2", "recipe.schedule.warmup_epochs=0"]
    call(train, *arguments, "trainer.max_steps=1", "run_dir=one")
    call(train, *arguments, "trainer.max_steps=3", "run_dir=three")
    one, three = (read_checkpoint(tmp_path / name / "checkpoints/best.safetensors") for name in ("one", "three"))
    changed = {name for name in one if ".backbone." in name and not one[name].equal(three[name])}
    assert changed and all("lora_" in name for name in changed)
    call(evaluation, "run=three")
