"""The sets that ImageNet classifiers are evaluated on, and how predictions for them are counted."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import ImageNetInfo, RealLabelsImagenet
from torch import nn

import backbones
import eval as evaluation
import train
from backbones import InputError
from training.data import (
    DATASETS,
    BadImages,
    ImageFolder,
    ImageNetA,
    ImageNetC,
    ImageNetReal,
    ImageNetV2,
    LabelledPictures,
    Loader,
    evaluation_transform,
)
from training.data.imagenet import ALEXNET_ERRORS
from training.tasks import Classification, Scoring, TeachingSettings

WNIDS = ImageNetInfo().label_names()


def write_picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36)).save(path)


def targets(source) -> list[int]:
    return [source.target(i) for i in range(len(source))]


class Fixed(nn.Module):
    """The same logits for every picture."""

    def __init__(self, logits: torch.Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(len(images), -1)


def measure(data, favourites: list[int], folder: Path | None = None) -> dict:
    """Metrics of a classifier that always prefers these labels, in this order."""
    source = data.evaluation()
    logits = torch.zeros(len(source.classes))
    logits[favourites] = torch.arange(len(favourites), 0, -1).float()
    task = Classification(Fixed(logits), source.classes, data.mean, data.std, TeachingSettings())
    task.scoring = Scoring(source)
    for batch in Loader(LabelledPictures(source, evaluation_transform(data)), 4, BadImages(0)).epoch():
        task.evaluation_step(batch)
    metrics = task.compute_metrics()
    if folder is not None:
        task.write_pictures(folder, source)
    return metrics | {"said": task.describe(metrics)}


@pytest.mark.parametrize("name", ["imagenet_a", "imagenet_r"])
def test_only_the_200_classes_are_asked_for(tmp_path, name):
    chosen = {"imagenet_a": ("n01498041", "n01531178"), "imagenet_r": ("n01443537", "n01484850")}[name]
    labels = [WNIDS.index(wnid) for wnid in chosen]
    for i, wnid in enumerate(chosen * 2):
        write_picture(tmp_path / f"set/{wnid}/{i}.jpg")
    (tmp_path / "set/README.txt").write_text("about")
    data = DATASETS[name](root=str(tmp_path / "set"), img_size=32)
    source = data.evaluation()
    assert targets(source) == sorted(labels * 2) and len(source.label_subset) == 200 and len(source.classes) == 1000
    # Label 0, a tench, is in neither set: the network's next choice counts, among 200.
    metrics = measure(data, [0, labels[0]])
    assert metrics["top1"] == 0.5
    other = 199 + np.exp(1)
    assert metrics["loss"] == pytest.approx(np.mean([np.log(other) - 1, np.log(other)]))
    write_picture(tmp_path / f"set/{WNIDS[0]}/x.jpg")
    with pytest.raises(InputError, match=rf"folder\(s\) n01440764, which are no classes of {name}: it expects"):
        data.evaluation()


def test_folders_of_v2_are_numbers(tmp_path):
    for label in (10, 2, 999):
        write_picture(tmp_path / f"{label}/x.jpeg")
    source = ImageNetV2(root=str(tmp_path)).evaluation()
    assert [(source.target(i), Path(source.name(i)).parent.name) for i in range(3)] == [
        (2, "2"),
        (10, "10"),
        (999, "999"),
    ]
    write_picture(tmp_path / "1000/x.jpeg")
    with pytest.raises(InputError, match=r"folder\(s\) 1000, which are no classes of imagenet_v2: it expects"):
        ImageNetV2(root=str(tmp_path)).evaluation()


def test_real_takes_any_valid_label_and_leaves_out_pictures_without(tmp_path):
    for i in (1, 2, 4):
        write_picture(tmp_path / f"val/n/ILSVRC2012_val_{i:08}.JPEG")
    data = ImageNetReal(root=str(tmp_path), img_size=32)
    source = data.evaluation()
    assert [source.valid_labels(i) for i in range(len(source))] == [[970, 795], [809]]  # as published; 1 has none
    metrics = measure(data, [795, 3], tmp_path)
    everything = 998 + np.exp(2) + np.exp(1)
    assert metrics["top1"] == 0.5 and metrics["top5"] == 0.5
    assert metrics["loss"] == pytest.approx(np.mean(np.log([everything / (np.exp(2) + 1), everything])))
    assert measure(data, [3, 4, 809, 970])["top5"] == 1 and measure(data, [3, 4, 809, 970])["top1"] == 0
    # The published file itself, and the pictures without folders.
    published = list(RealLabelsImagenet(range(50000)).real_labels.values())
    (tmp_path / "real.json").write_text(json.dumps([[7], *published[1:]]))
    flat = ImageNetReal(root=str(tmp_path / "val/n"), labels=str(tmp_path / "real.json"), img_size=32)
    assert targets(flat.evaluation()) == [7, 970, 809]
    (tmp_path / "real.json").write_text("[[7]]")
    with pytest.raises(InputError, match=r"real.json is not the published real.json"):
        flat.evaluation()
    write_picture(tmp_path / "val/n/cat.JPEG")
    with pytest.raises(InputError, match=r"cat.JPEG is none of ImageNet's validation pictures by its name"):
        data.evaluation()


def test_imagenet_c_gives_the_error_of_each_corruption_and_severity(tmp_path):
    for corruption in ALEXNET_ERRORS:  # some in a folder of their category, as the download has them
        below = f"noise/{corruption}" if "noise" in corruption else corruption
        for severity in range(1, 6):
            write_picture(tmp_path / below / f"{severity}/{WNIDS[severity if corruption == 'fog' else 3]}/x.JPEG")
    write_picture(tmp_path / f"speckle_noise/1/{WNIDS[5]}/x.JPEG")  # one of the four that mCE leaves out
    data = ImageNetC(root=str(tmp_path), img_size=32)
    assert data.crop_pct == 1
    metrics = measure(data, [3])
    assert metrics["errors"]["fog"] == {"1": 1, "2": 1, "3": 0, "4": 1, "5": 1} and len(metrics["errors"]) == 16
    assert metrics["errors"]["snow"] == dict.fromkeys("12345", 0) and metrics["errors"]["speckle_noise"] == {"1": 1}
    assert metrics["mean_error"] == pytest.approx(0.8 / 15) and metrics["mce"] == pytest.approx(0.8 / 0.819324 / 15)
    assert metrics["said"].endswith("mean error 5.33%, mCE 6.51%")
    # Without one severity of one corruption there is no mCE.
    (tmp_path / f"snow/5/{WNIDS[3]}/x.JPEG").unlink()
    metrics = measure(data, [3])
    assert "mce" not in metrics and metrics["mean_error"] == pytest.approx(0.8 / 15) and "mCE" not in metrics["said"]
    write_picture(tmp_path / "snow/5/tench/x.JPEG")
    with pytest.raises(InputError, match=r"snow/5/tench/x.JPEG is in no folder of a class: expected CORR"):
        data.evaluation()


def test_sets_that_are_not_there(tmp_path):
    with pytest.raises(InputError, match=r"data.root is not given. data=imagenet_a expects 200 folders"):
        ImageNetA().evaluation()
    with pytest.raises(InputError, match=r"/nowhere does not exist. data=imagenet_c expects CORRUPTION/SEVERITY"):
        ImageNetC(root=str(tmp_path / "nowhere")).evaluation()
    with pytest.raises(InputError, match=r"There are no pictures in .*imagenet_v2 expects folders 0 to 999"):
        ImageNetV2(root=str(tmp_path)).evaluation()


def test_evaluating_a_checkpoint_and_a_run_on_other_data(call, tmp_path):
    """Weights that do not name their classes, and a run that numbers them the other way round."""
    Path("map.txt").write_text("".join(f"{wnid} the {wnid}\n" for wnid in reversed(WNIDS)))
    write_picture(tmp_path / "data/a.png")
    Path("list.txt").write_text("a.png 7\na.png 8\n")
    call(train, "data=imagefolder", "data.root=data", "data.class_map=map.txt", "data.train_list=list.txt",
         "data.val_list=list.txt", "data.img_size=32", "data.workers=0", "trainer.batch_size=2", "trainer.max_steps=1",
         "recipe.schedule.warmup_epochs=0", "run_dir=out")  # fmt: skip

    wnids = ["n01498041", "n01531178"]
    for wnid in wnids:
        write_picture(tmp_path / f"a/{wnid}/x.jpg")

    def preferring(*labels: int) -> str:
        model = backbones.create_model("swin_nano", num_classes=1000)
        model.get_classifier().weight.data.mul_(1e-6)
        model.get_classifier().bias.data.zero_()[list(labels)] = torch.arange(len(labels), 0, -1.0)
        torch.save(model.state_dict(), "weights.pt")
        return "checkpoint=weights.pt"

    chosen = ["data=imagenet_a", "data.root=a"]
    first = WNIDS.index(wnids[0])
    call(evaluation, "backbone=swin_nano", preferring(0, first), *chosen, "data.img_size=32",
         "data.workers=0", "run_dir=unnamed")  # fmt: skip
    result = json.loads(Path("unnamed/eval.json").read_text())
    assert result["top1"] == 0.5 and result["images"] == 2 and result["data"] == "imagenet_a"
    call(evaluation, "run=out", preferring(999, 999 - first), *chosen, "data.class_map=map.txt", "run_dir=named")
    result = json.loads(Path("named/eval.json").read_text())
    assert result["top1"] == 0.5 and result["images"] == 2 and result["data"] == "imagenet_a"

    assert "was trained for other classes" in call(evaluation, "run=out", *chosen, code=2)
    assert "Could not find 'data/imagenet_x'" in call(evaluation, "run=out", "data=imagenet_x", code=2)
    assert "is there for evaluation alone: python eval.py run=PATH data=imagenet_a" in call(train, *chosen, code=2)
    Path("map.txt").write_text("n01440764 tench\n")
    said = call(evaluation, "run=out", *chosen, "data.class_map=map.txt", code=2)
    assert "map.txt lacks 999 of ImageNet's 1000 classes, n01443537 for one" in said

    # Other pictures are prepared as those that were learned, but for a crop of their own, or a given one.
    learned = ImageFolder(img_size=48, crop_pct=0.9, mean=[0.4] * 3, crop_mode="squash")
    cases = [("imagenet_a", [], 0.9), ("imagenet_c", [], 1.0), ("imagenet_c", ["data.crop_pct=0.5"], 0.5)]
    for name, given, crop in cases:
        data = evaluation.other_data(learned, name, [f"data={name}", *given])
        assert (data.img_size, data.mean, data.crop_mode, data.crop_pct) == (48, [0.4] * 3, "squash", crop)
