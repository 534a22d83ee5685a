"""Something small and real for everything that the pages' commands name: runs, pictures, data sets, weights."""

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures
from sklearn.datasets import load_sample_image
from timm.data import ImageNetInfo

import backbones
import train
from training.data import Digits
from training.data.dense import DigitScenes, export_coco

from .doc_runner import call, inside, shortened

WNIDS = ImageNetInfo().label_names()
OF_IMAGENET_A = ("n01498041", "n01531178")


def build(folder: Path, digits_run: Path) -> dict[str, dict[str, str]]:
    """Fill an empty folder; returns what stands for the reader's things, by page, "" for all others."""
    random = np.random.default_rng(0)
    data, weights = folder / "data", folder / "weights.pth"
    Digits().splits()[1].picture(0).image().save(folder / "digit.png")
    Pictures.fromarray(load_sample_image("china.jpg")).save(folder / "street.jpg")
    torch.save(backbones.create_model("swin_nano").state_dict(), weights)
    shutil.copytree(digits_run, folder / "runs/digits_swin_nano/2001")
    _imagenet(folder, random)
    _shards(data / "shards", random)
    _tables(data / "parquet", "image", "label", random)
    _tables(data / "photos", "photo", "animal", random)
    _scenes(data)
    _maps(data / "ade20k", ("images/training", "images/validation"), "annotations", random)
    _maps(data / "maps", ("images/train", "images/val"), "masks", random)
    with inside(folder):
        imagenet_run, detection_run = "runs/imagefolder_swin_nano/2001", "runs/digit_scenes_swin_nano/2001"
        on_imagenet = ["data=imagefolder", "data.root=data/imagenet", f"run_dir={imagenet_run}"]
        for arguments in (on_imagenet, ["task=detection", f"run_dir={detection_run}"]):
            call(train.main, ["train.py"], shortened("train.py", arguments))
    things = {
        "RUN": str(folder / "runs/digits_swin_nano/2001"),
        "/data": str(data),
        "/shared": str(folder / "shared"),
        "PATH": str(data / "imagenet"),
        "image=FILE": f"image={folder}/digit.png",
        "backbone.pretrained=true": f"backbone.checkpoint_path={weights}",
        "FILE": str(weights),
        "{000000..001281}": "{000000..000001}",
        "{00..49}": "{00..01}",
    }
    of_pages = {"docs/dense.md": detection_run, "docs/data.md": imagenet_run, "docs/finetune.md": imagenet_run}
    return {"": things} | {page: things | {"RUN": str(folder / run)} for page, run in of_pages.items()}


def _pixels(random: np.random.Generator, width: int = 40, height: int = 36) -> Pictures.Image:
    return Pictures.fromarray(random.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _save(picture: Pictures.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _imagenet(folder: Path, random: np.random.Generator) -> None:
    """A picture of each class, and the sets that classifiers of ImageNet are tested on."""
    for split in ("train", "val"):
        for wnid in WNIDS:
            _save(_pixels(random), folder / f"data/imagenet/{split}/{wnid}/0.jpg")
        lines = (f"{wnid}/0.jpg {label}" for label, wnid in enumerate(WNIDS))
        (folder / f"{split}.txt").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("\n".join(f"{wnid} class {wnid}" for wnid in WNIDS))
    for wnid in OF_IMAGENET_A:
        _save(_pixels(random), folder / f"data/imagenet-a/{wnid}/0.jpg")
        _save(_pixels(random), folder / f"data/imagenet-c/fog/1/{wnid}/0.jpg")


def _shards(folder: Path, random: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for name in ("train-000000", "train-000001", "val-00", "val-01"):
        with tarfile.open(folder / f"{name}.tar", "w") as tar:
            for number in range(8):
                content = io.BytesIO()
                _pixels(random).save(content, "JPEG")
                for suffix, body in (("jpg", content.getvalue()), ("cls", str(number % 2).encode())):
                    member = tarfile.TarInfo(f"{name}-{number}.{suffix}")
                    member.size = len(body)
                    tar.addfile(member, io.BytesIO(body))


def _tables(folder: Path, image: str, label: str, random: np.random.Generator) -> None:
    """Tables whose columns are pictures and labels, by these names."""
    folder.mkdir(parents=True)
    features = Features({image: Image(), label: ClassLabel(names=["cat", "dog"])})
    for split in ("train", "val", "test"):
        pictures, labels = [_pixels(random) for _ in range(16)], [0, 1] * 8
        Dataset.from_dict({image: pictures, label: labels}, features).to_parquet(
            str(folder / f"{split}-00000-of-00001.parquet")
        )


def _scenes(data: Path) -> None:
    """In the layout of COCO, and in that of a folder of one's own."""
    scenes = DigitScenes(train_scenes=8, val_scenes=4, channels=3, mean=[0.5] * 3, std=[0.25] * 3)
    for split, objects, segments in zip(("train", "val"), scenes.splits("masks"), scenes.splits("segments")):
        export_coco(objects, segments, data / "mine", split)
        shutil.copytree(data / "mine" / split, data / f"coco/{split}2017")
        for kind in ("instances_", "panoptic_"):
            source = data / "mine/annotations" / f"{kind.removeprefix('instances_')}{split}.json"
            (data / "coco/annotations").mkdir(exist_ok=True)
            shutil.copy(source, data / f"coco/annotations/{kind}{split}2017.json")
        shutil.copytree(data / f"mine/annotations/panoptic_{split}", data / f"coco/annotations/panoptic_{split}2017")


def _maps(root: Path, folders: tuple[str, str], maps: str, random: np.random.Generator) -> None:
    for folder in folders:
        for number in range(8):
            _save(_pixels(random, 64, 48), root / folder / f"{number}.jpg")
            labels = Pictures.fromarray(random.integers(0, 5, (48, 64), dtype=np.uint8))
            _save(labels, root / folder.replace("images", maps) / f"{number}.png")
