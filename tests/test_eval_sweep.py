"""Many evaluations in one table: `python eval.py -m` with patterns, errors, and interruptions."""

import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo

import backbones
import eval as evaluation
import train
from backbones import InputError
from training.data import DATASETS, ImageNet
from training.sweep import Job, Sweep, jobs_of

from .conftest import ROOT, rows_of
from .test_distributed import run as run_together

OWN = ["-m", "checkpoint='w/${backbone.name}.pt'", "data=digits", "data.workers=0", "trainer.device=cpu"]


def write_weights(*names: str) -> None:
    os.makedirs("w", exist_ok=True)
    for name in names:
        torch.save(backbones.create_model(name, in_chans=1, num_classes=10).state_dict(), f"w/{name}.pt")


def one(jobs: list[Job], name: str) -> Job:
    [job] = [job for job in jobs if job.name == name]
    return job


def test_a_pattern_means_all_published_weights_prepared_as_they_want():
    jobs = jobs_of({"data": ["imagenet"], "data.root": ["/data"], "backbone": ["swin_*", "nat_t"]})
    names = [job.name for job in jobs]
    assert names[-1] == "nat_t.shi_in1k" and len(set(names)) == len(names)
    assert set(names[:-1]) == {
        full
        for full in backbones.list_models("swin_*", pretrained=True)
        if backbones.registry.published_weights(full)["num_classes"] == 1000
    }
    large = one(jobs, "swin_b_384.ms_in22k_ft_in1k")
    expected = ["backbone=swin_b_384", "backbone.name=swin_b_384.ms_in22k_ft_in1k", "backbone.pretrained=true"]
    assert [text for text in large.overrides if text.startswith("backbone")] == expected
    assert {"data=imagenet", "data.root=/data", "data.img_size=384"} <= set(large.overrides)
    assert "data.mean=[0.485,0.456,0.406]" in large.overrides and large.published == pytest.approx(0.864)


def test_what_is_given_beats_what_was_published():
    given = {"data.crop_pct": ["1"], "backbone": ["volo_d4.sail_in1k"], "data": ["imagenet", "imagenet_c"]}
    jobs = jobs_of(given)
    assert [job.name for job in jobs] == ["volo_d4.sail_in1k, imagenet", "volo_d4.sail_in1k, imagenet_c"]
    assert all("data.crop_pct=1" in job.overrides for job in jobs)
    del given["data.crop_pct"]
    whole, cropped = jobs_of(given)
    assert "data.crop_pct=1.15" in whole.overrides
    assert not [text for text in cropped.overrides if "crop_pct" in text]  # its pictures come cropped


def test_patterns_of_files_and_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        (tmp_path / f"runs/{name}/checkpoints").mkdir(parents=True)
    (tmp_path / "runs/b/checkpoints/best.safetensors").touch()
    assert [job.overrides for job in jobs_of({"run": ["runs/*"]})] == [["run=runs/b"]]
    for name in ("x.pt", "y.pt"):
        (tmp_path / name).touch()
    (tmp_path / "top1=0.9, last").touch()
    assert jobs_of({"checkpoint": ["top*"]})[0].overrides == ["checkpoint='top1=0.9, last'"]
    jobs = jobs_of({"backbone": ["swin_n*"], "checkpoint": ["*.pt"]})
    assert [job.values for job in jobs] == [{"backbone": "swin_nano", "checkpoint": f} for f in ("x.pt", "y.pt")]
    for given, said in (
        ({"backbone": ["resnet*"]}, "No published ImageNet-1k weights are named like 'resnet"),
        ({"backbone": ["*_nano"]}, "No published ImageNet-1k weights are named like '.*checkpoint=PATH"),
        ({"backbone": ["resnet*"], "checkpoint": ["x.pt"]}, "No model is named like 'resnet"),
        ({"run": ["nowhere/*"]}, "no run with weights at nowhere"),
        ({"backbone": ["swin_t"], "checkpoint": ["*.pth"]}, r"no checkpoint at \*.pth"),
    ):
        with pytest.raises(InputError, match=said):
            jobs_of(given)


def test_what_fails_is_a_row_with_the_reason_and_is_tried_again(call, tmp_path):
    write_weights("davit_nano")
    said = call(evaluation, *OWN, "backbone=d*_nano", code=2)
    assert "2 evaluations, 0 of them done before" in said and "Error: 1 of 2 could not be evaluated" in said
    assert "no checkpoint at w/dinat_nano.pt" in said and "Traceback" not in said
    [folder] = (tmp_path / "runs/eval").iterdir()
    davit, dinat = rows_of(folder / "results.csv")
    assert davit["backbone"] == "davit_nano" and not davit["error"] and davit["images"] == "360"
    assert dinat["backbone"] == "dinat_nano" and "no checkpoint at" in dinat["error"] and not dinat["top1"]
    before = (folder / "davit_nano/eval.json").stat().st_mtime_ns

    write_weights("dinat_nano")
    said = call(evaluation, *OWN, "backbone=d*_nano")
    assert "1 of them done before" in said and (folder / "davit_nano/eval.json").stat().st_mtime_ns == before
    davit, dinat = rows_of(folder / "results.csv")
    assert "error" not in dinat and float(dinat["top1"]) <= 1
    table = (folder / "results.md").read_text()
    assert table in said and table.startswith("| backbone ") and f"{100 * float(davit['top1']):.2f}" in table
    assert [row["backbone"] for row in json.loads((folder / "summary.json").read_text())["rows"]] == [
        "davit_nano",
        "dinat_nano",
    ]
    # The row says how to evaluate one alone, and that gives the same.
    call(evaluation, *next(csv.reader([dinat["overrides"]], delimiter=" ", quotechar="'")), "run_dir=alone")
    alone = json.loads((tmp_path / "alone/eval.json").read_text())
    assert (str(alone["top1"]), str(alone["loss"])) == (dinat["top1"], dinat["loss"])


def test_a_signal_loses_nothing(call, tmp_path):
    names = ["davit_nano", "litv2_nano", "swin_nano"]
    write_weights(*names)
    arguments = [*OWN, f"backbone={','.join(names)}", "run_dir=table"]
    process = subprocess.Popen([sys.executable, ROOT / "eval.py", *arguments], stdout=subprocess.PIPE, text=True)
    first = tmp_path / "table/davit_nano/eval.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate()
    assert process.returncode == 75 and "Nothing is lost; go on with: the same command" in said
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "table").glob("*/eval.json")}
    assert first in done and len(done) < 3

    said = call(evaluation, *arguments)
    assert f"3 evaluations, {len(done)} of them done before" in said
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert [row["backbone"] for row in rows_of(tmp_path / "table/results.csv")] == names
    # Weights that have changed since are evaluated again, and only these.
    os.utime("w/swin_nano.pt")
    assert "2 of them done before" in call(evaluation, *arguments)
    said = call(evaluation, *arguments, "data.crop_pct=1", code=2)
    assert "says that table is the table of something else" in said


def test_runs_and_lists_of_values(call, tmp_path):
    quick = ["backbone=davit_nano", "trainer.max_steps=1", "trainer.device=cpu", "data.workers=0"]
    call(train, *quick, "run_dir=trained/one")
    said = call(evaluation, "-m", "run='trained/*'", "trainer.precision=fp32,bf16", "run_dir=table")
    assert "2 evaluations" in said and "| run         | trainer.precision |" in said
    single, half = rows_of(tmp_path / "table/results.csv")
    summary = json.loads((tmp_path / "trained/one/summary.json").read_text())
    assert float(single["top1"]) == summary["top1"] and single["run"] == half["run"] == "trained/one"
    assert [row["trainer.precision"] for row in (single, half)] == ["fp32", "bf16"] and single["loss"] != half["loss"]


@pytest.mark.slow
def test_a_table_by_several_processes(call, tmp_path):
    write_weights("davit_nano")
    arguments = [*OWN, "backbone=d*_nano", "run_dir=table"]
    said = run_together(tmp_path, 2, *arguments, code=1, program=["eval.py"])  # torchrun's, of any failed process
    assert said.count("2 evaluations, 0 of them done before") == said.count("could not be evaluated") == 1
    davit, dinat = rows_of(tmp_path / "table/results.csv")
    assert davit["images"] == "360" and not davit["error"] and "no checkpoint at" in dinat["error"]
    alone = call(evaluation, *arguments[:-1], "run_dir=alone", code=2)
    assert "1 of 2" in alone and rows_of(tmp_path / "alone/results.csv")[0]["top1"] == davit["top1"]


def test_arguments_that_a_table_has_no_use_for(call):
    for argument in ("image=x.png", "hydra/launcher=submitit_slurm", "--cfg"):
        assert f"{argument} has no place" in call(evaluation, "-m", "backbone=swin_*", argument, code=2)
    assert "Name what to evaluate" in call(evaluation, "-m", "backbone=swin_nano", "checkpoint=x.pt", code=2)
    assert "Could not override 'trainer.epoch'" in call(
        evaluation, *OWN, "backbone=swin_nano", "trainer.epoch=3", code=2
    )


def test_measured_beside_published_on_all_of_imagenet(tmp_path):
    jobs = [Job({"backbone": name}, [f"backbone={name}"], 0.813) for name in ("swin_t.a", "swin_t.b")]
    sweep = Sweep(["backbone=swin_t"], tmp_path, jobs)
    common = dict(task="classification", backbone="swin_t", data="imagenet", loss=1.0, images_per_second=9.5)
    for job, result in zip(jobs, (dict(top1=0.8117, images=50_000), dict(top1=1.0, images=10))):
        sweep.folder(job).mkdir()
        (sweep.folder(job) / "eval.json").write_text(json.dumps(common | result))
        sweep.add(job)
    assert float(rows_of(tmp_path / "results.csv")[0]["difference"]) == pytest.approx(-0.0013)
    # Of ten pictures, it cannot be compared.
    heading, _, *cells = sweep.table().splitlines()
    titles = [title.strip() for title in heading.split("|")[1:-1]]
    assert titles[:2] == ["backbone", "loss"] and "published top-1, %" in titles and "difference, %" in titles
    shown = [dict(zip(titles, map(str.strip, line.split("|")[1:-1]))) for line in cells]
    assert [row["difference, %"] for row in shown] == ["-0.13", "–"] and shown[1]["top-1, %"] == "100.00"


def test_imagenet_needs_its_validation_pictures_alone(tmp_path):
    names = ImageNetInfo().label_names()
    for label in (7, 999):
        (tmp_path / f"val/{names[label]}").mkdir(parents=True)
        Image.new("RGB", (40, 40)).save(tmp_path / f"val/{names[label]}/a.JPEG")
    assert DATASETS["imagenet"] is ImageNet
    source = ImageNet(root=str(tmp_path)).evaluation()
    assert [source.target(i) for i in range(len(source))] == [7, 999] and source.classes == names
    with pytest.raises(InputError, match="train does not exist"):
        ImageNet(root=str(tmp_path)).splits()
    (tmp_path / "val/cats").mkdir()
    with pytest.raises(InputError, match=r"cats, which are no classes of ImageNet-1k.*use data=imagefolder"):
        ImageNet(root=str(tmp_path)).evaluation()
