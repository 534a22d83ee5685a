"""Data sets that are written as files, and read again."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import training.__main__
from backbones import InputError
from training.annotation import IGNORED
from training.data import BadImageError, Picture
from training.data.dense.coco import CocoFolder
from training.data.dense.export import export_coco, export_maps
from training.data.dense.maps import MaskFolder

CLASSES = ["box", "disc", "sky", "sea"]


class Shapes:
    """Random rectangles and discs, some before others, on two kinds of stuff and nothing; some pictures are empty."""

    wide = None

    def __init__(self, kind: str, pictures: int = 6, channels: int = 3, classes: int = 4):
        self.kind, self.pictures, self.channels = kind, pictures, channels
        self.classes = CLASSES[:2] if kind in ("boxes", "masks") else [*CLASSES, *map(str, range(4, classes))]
        self.things = [name in CLASSES[:2] for name in self.classes] if kind == "segments" else None

    def __len__(self) -> int:
        return self.pictures

    def name(self, index: int) -> str:
        return f"shapes {index}"

    def _drawn(self, index: int):
        rng = np.random.default_rng(index)
        height, width = rng.integers(20, 50, 2)
        ids, labels = np.zeros((height, width), dtype=np.int64), []
        for count in range(0 if index == 2 else rng.integers(1, 7)):
            y, x, radius, label = *(rng.random(2) * (height, width)), rng.integers(3, 15), rng.integers(2)
            far = np.abs(np.mgrid[:height, :width] - np.array([y, x])[:, None, None])
            ids[(far.max(0) if label == 0 else np.hypot(*far)) < radius] = count + 1
            labels.append(label)
        return rng, ids, np.array(labels, dtype=np.int64)

    def picture(self, index: int) -> Picture:
        rng, ids, _ = self._drawn(index)
        pixels = rng.integers(0, 256, (*ids.shape, self.channels), dtype=np.uint8)
        return Picture(Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels), self.channels)

    def target(self, index: int) -> dict[str, torch.Tensor]:
        rng, ids, labels = self._drawn(index)
        height, width = ids.shape
        masks = ids == np.arange(1, len(labels) + 1)[:, None, None]
        seen = masks.any((1, 2))
        masks, labels = masks[seen], labels[seen]
        crowd = rng.random(len(labels)) < 0.3
        if self.kind in ("segments", "map"):
            sky = (ids == 0) & (np.arange(width) < width // 3)
            sea = (ids == 0) & (np.arange(width) > width // 2)
            stuff = [(mask, label) for mask, label in ((sky, 2), (sea, 3)) if mask.any()]
            masks = np.concatenate([masks, *(mask[None] for mask, _ in stuff)])
            labels = np.concatenate([labels, np.array([label for _, label in stuff], dtype=np.int64)])
            crowd = np.concatenate([crowd, np.zeros(len(stuff), dtype=bool)])
        if self.kind == "map":
            labels_here = np.full((height, width), IGNORED, dtype=np.int16)
            for mask, label in zip(masks, labels):
                labels_here[mask] = label + len(self.classes) - 4
            return {"map": torch.from_numpy(labels_here)}
        target = {"labels": torch.from_numpy(labels), "crowd": torch.from_numpy(crowd)}
        if self.kind in ("boxes", "masks"):
            edges = [(m.any(0).nonzero()[0], m.any(1).nonzero()[0]) for m in masks]
            boxes = [(x[0] + 0.25, y[0] + 0.1, x[-1] + 0.7, y[-1] + 1) for x, y in edges]
            target["boxes"] = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
            target["area"] = torch.from_numpy(masks.sum((1, 2)).astype(np.float32)) + 0.5
        return target if self.kind == "boxes" else target | {"masks": torch.from_numpy(masks.astype(np.uint8))}


def assert_same(read, written) -> None:
    assert len(read) == len(written) and read.classes == written.classes
    for index in range(len(written)):
        pixels = written.picture(index).pixels()
        assert np.array_equal(read.picture(index).pixels(), pixels)
        if read.wide is not None:
            assert read.wide[index] == (pixels.shape[1] > pixels.shape[0])
        found, expected = read.target(index), written.target(index)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
            tolerance = 1e-3 if name in ("boxes", "area") else 0
            assert torch.allclose(found[name].double(), value.double(), rtol=0, atol=tolerance), name


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools
@pytest.mark.parametrize("channels", [1, 3])
def test_a_coco_folder_holds_what_was_exported(tmp_path, channels):
    for split in ("train", "val"):
        export_coco(Shapes("masks", channels=channels), Shapes("segments", channels=channels), tmp_path, split)
    data = CocoFolder(root=str(tmp_path), channels=channels, mean=[0.5] * channels, std=[0.5] * channels)
    for kind in ("boxes", "masks", "segments"):
        for source in (*data.splits(kind), data.evaluation(kind)):
            assert_same(source, Shapes(kind, channels=channels))
    assert data.evaluation("segments").things == [True, True, False, False]
    assert_same(data.evaluation("map"), Shapes("map", channels=channels))
    # Other tools find the same masks.
    coco = COCO(tmp_path / "annotations/train.json")
    masks = [coco.annToMask(annotation) for annotation in coco.imgToAnns[1]]
    assert np.array_equal(masks, Shapes("masks").target(0)["masks"].numpy())


def test_boxes_alone_are_exported_without_masks(tmp_path):
    export_coco(Shapes("boxes"), None, tmp_path, "val")
    data = CocoFolder(root=str(tmp_path))
    assert_same(data.evaluation("boxes"), Shapes("boxes"))
    with pytest.raises(InputError, match=r"objects of .*val.json have no segmentations, but the task needs masks"):
        data.evaluation("masks")
    with pytest.raises(InputError, match=r"panoptic_val.json does not exist. Set data.root .*or data.val_panoptic"):
        data.evaluation("segments")
    with pytest.raises(InputError, match="There are 6 pictures with objects, but 5 with segments"):
        export_coco(Shapes("masks"), Shapes("segments", 5), tmp_path, "val")


@pytest.mark.parametrize(("classes", "ignored"), [(4, 255), (255, 255), (256, 65535), (3000, 65535)])
def test_a_mask_folder_holds_what_was_exported(tmp_path, classes, ignored):
    for split in ("train", "val"):
        export_maps(Shapes("map", classes=classes), tmp_path, split)
    for source in MaskFolder(root=str(tmp_path), ignore_label=ignored).splits("map"):
        assert_same(source, Shapes("map", classes=classes))
    if ignored != 255:
        with pytest.raises(InputError, match=r"data.ignore_label=255 is the number of a class too"):
            MaskFolder(root=str(tmp_path)).splits("map")


def test_what_cannot_be_read_cannot_be_exported(tmp_path, monkeypatch):
    def broken(self, index):
        raise BadImageError("it is torn")

    monkeypatch.setattr(Shapes, "picture", broken)
    with pytest.raises(InputError, match=r"shapes 0 cannot be exported \(it is torn\)"):
        export_maps(Shapes("map"), tmp_path, "train")


def test_more_segments_than_a_byte_counts(tmp_path):
    """Numbers of segments go over all three colours."""

    class Rows(Shapes):
        def _ids(self):
            return torch.arange(20 * 30).reshape(20, 30)

        def picture(self, index):
            return Picture(Image.new("RGB", (30, 20)), 3)

        def target(self, index):
            masks = (self._ids() == torch.arange(600)[:, None, None]).to(torch.uint8)
            return {"masks": masks, "labels": torch.arange(600) % 4, "crowd": torch.zeros(600, dtype=torch.bool)}

    class NoBoxes(Rows):
        def target(self, index):
            empty = torch.zeros(0)
            return {"boxes": empty.reshape(0, 4), "labels": empty.long(), "crowd": empty.bool(), "area": empty}

    export_coco(NoBoxes("boxes", 1), Rows("segments", 1), tmp_path, "val")
    assert_same(CocoFolder(root=str(tmp_path)).evaluation("segments"), Rows("segments", 1))
    # A number that takes the third byte.
    file = tmp_path / "annotations/panoptic_val.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["segments_info"][0]["id"] = 7 + 256 * 8 + 256**2 * 9
    file.write_text(json.dumps(content))
    png = tmp_path / "annotations/panoptic_val/000000.png"
    pixels = np.array(Image.open(png))
    pixels[0, 0] = (7, 8, 9)
    Image.fromarray(pixels).save(png)
    assert_same(CocoFolder(root=str(tmp_path)).evaluation("segments"), Rows("segments", 1))


@pytest.mark.parametrize(("form", "folder"), [("coco", "train"), ("maps", "images/train")])
def test_the_tool_writes_scenes(tmp_path, monkeypatch, form, folder):
    arguments = ["scenes", str(tmp_path), "--form", form, "--train", "2", "--val", "1"]
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    training.__main__.main()
    assert [Image.open(path).mode for path in (tmp_path / folder).glob("*.png")] == ["RGB", "RGB"]
