"""Readers of maps of labels and segments, on files as they are published and on spoilt ones."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from backbones import InputError
from training.annotation import IGNORED
from training.data import BadImageError
from training.data.dense.ade20k import ADE20K
from training.data.dense.cityscapes import Cityscapes
from training.data.dense.maps import MaskFolder
from training.data.dense.orientation import picture_of_size, upright
from training.data.dense.segments import read_numbers
from training.data.dense.voc import CLASSES, VOC

from .dense_files import picture, save


def test_the_size_of_the_annotation_says_how_to_turn(tmp_path):
    pixels = np.zeros((30, 40, 3), dtype=np.uint8)
    pixels[:15, :20] = (250, 0, 0)  # the top left corner as it is stored
    corners = {5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}  # where a viewer shows it
    for orientation, corner in corners.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        for name in ("a.jpg", "a.png"):
            file = save(tmp_path / name, pixels, exif=exif)
            stored = picture_of_size(file, 3, (40, 30), "b.json").pixels()
            assert stored.shape == (30, 40, 3) and stored[0, 0, 0] > 200
            turned = picture_of_size(file, 3, (30, 40), "b.json")
            assert turned.size == (30, 40) and turned.pixels().shape == (40, 30, 3)
            assert turned.pixels()[corner][0] > 200 and (turned.pixels()[..., 0] > 125).mean() == pytest.approx(1 / 4)
            assert picture_of_size(file, 1, (30, 40), "b.json").pixels().shape == (40, 30, 1)
            with pytest.raises(BadImageError, match=r"40 x 30 pixels, but b.json describes 31 x 40, also when turned"):
                picture_of_size(file, 3, (31, 40), "b.json")
    file = save(tmp_path / "plain.jpg", pixels)
    with pytest.raises(BadImageError, match=r"plain.jpg has 40 x 30 pixels, but b.json describes 30 x 40$"):
        picture_of_size(file, 3, (30, 40), "b.json")
    with pytest.raises(BadImageError, match=r"nothing.jpg"):
        picture_of_size(tmp_path / "nothing.jpg", 3, (30, 40), "b.json")
    file.write_bytes(b"no picture")
    with pytest.raises(BadImageError, match="neither a JPEG nor"):
        picture_of_size(file, 3, (30, 40), "b.json")
    with pytest.raises(BadImageError, match="neither a JPEG nor"):
        upright(file, 3)


def test_numbers_of_every_kind_of_png(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 256, (7, 9))
    file = tmp_path / "a.png"
    for palette in (False, True):
        assert np.array_equal(read_numbers(save(file, numbers.astype(np.uint8), palette)), numbers)
    assert Image.open(file).convert("L").getpixel((0, 0)) != numbers[0, 0]  # the palette's colour
    assert np.array_equal(read_numbers(save(file, (numbers * 250).astype(np.uint16))), numbers * 250)
    assert np.array_equal(read_numbers(save(file, numbers > 99)), numbers > 99)
    save(file, np.stack([numbers] * 3, axis=-1).astype(np.uint8))
    with pytest.raises(BadImageError, match=r"a.png has colours \(mode RGB\), but a map has one number per pixel"):
        read_numbers(file)
    save(file, numbers.astype(np.uint8)).write_bytes(file.read_bytes()[:60])
    with pytest.raises(BadImageError, match=r"a.png: "):
        read_numbers(file)
    with pytest.raises(BadImageError, match=r"No such file.*b.png"):
        read_numbers(tmp_path / "b.png")


def mask_folder(tmp_path: Path, numbers, **settings) -> MaskFolder:
    for split in ("train", "val"):
        picture(tmp_path / f"images/{split}/deep/a.jpg", numbers.shape[1], numbers.shape[0])
        save(tmp_path / f"masks/{split}/deep/a.png", numbers)
    return MaskFolder(root=str(tmp_path), **settings)


def test_a_mask_folder(tmp_path):
    numbers = np.array([[0, 1, 2], [255, 2, 1]], dtype=np.uint8)
    data = mask_folder(tmp_path, numbers, num_classes=3)
    source, _ = data.splits("map")
    assert source.classes == ["class 0", "class 1", "class 2"] and source.picture(0).size == (3, 2)
    assert source.target(0)["map"].tolist() == [[0, 1, 2], [-1, 2, 1]] and source.wide is None
    (tmp_path / "classes.txt").write_text("sky\nblue sea\n")
    with pytest.raises(InputError, match=r"classes.txt names 2 classes, but data.num_classes is 3"):
        data.splits("map")
    source = MaskFolder(root=str(tmp_path), first_label=1, ignore_label=0).evaluation("map")
    assert source.classes == ["sky", "blue sea"]
    said = r"masks/val/deep/a.png has pixels of the number 255, but they must be 1 to 2, and 0 where there is no label"
    with pytest.raises(BadImageError, match=said):
        source.target(0)
    large = mask_folder(tmp_path, numbers.astype(np.uint16) * 100 + 900, first_label=900, ignore_label=26400)
    (tmp_path / "classes.txt").write_text("a\n" * 201)
    assert large.evaluation("map").target(0)["map"].tolist() == [[0, 100, 200], [-1, 200, 100]]
    assert pickle.loads(pickle.dumps(source)).target  # worker processes get it


def test_mask_folders_that_cannot_be_used(tmp_path):
    data = mask_folder(tmp_path, np.zeros((4, 6), dtype=np.uint8))
    with pytest.raises(InputError, match=r"There is no .*classes.txt.*or set data.num_classes"):
        data.splits("map")
    (tmp_path / "classes.txt").write_text("\n")
    with pytest.raises(InputError, match=r"classes.txt is empty"):
        data.splits("map")
    (tmp_path / "classes.txt").write_text("a\n")
    with pytest.raises(InputError, match="The task needs masks, but data=mask_folder has only map"):
        data.splits("masks")
    with pytest.raises(InputError, match=r"data=mask_folder needs data.root=PATH"):
        MaskFolder().splits("map")
    picture(tmp_path / "images/val/b.jpg")
    source = data.evaluation("map")
    for read in (source.picture, source.target):
        with pytest.raises(BadImageError, match=r"masks/val/b.png"):
            read(0)
    save(tmp_path / "masks/val/b.png", np.zeros((30, 41), dtype=np.uint8))
    with pytest.raises(BadImageError, match=r"images/val/b.jpg has 40 x 30 pixels, but .*b.png describes 41 x 30"):
        source.picture(0)
    for file in (tmp_path / "images/train").rglob("*.jpg"):
        file.unlink()
    with pytest.raises(InputError, match=r"There are no pictures in .*images/train"):
        data.splits("map")
    (tmp_path / "masks/train").rename(tmp_path / "masks/other")
    with pytest.raises(InputError, match=r"masks/train does not exist. data.root must hold images/train"):
        data.splits("map")


def test_ade20k(tmp_path):
    for split in ("training", "validation"):
        picture(tmp_path / f"images/{split}/ADE_1.jpg", 3, 2)
        save(tmp_path / f"annotations/{split}/ADE_1.png", np.array([[0, 1, 2], [150, 255, 3]], dtype=np.uint8))
    source, _ = ADE20K(root=str(tmp_path)).splits("map")
    assert source.classes[149] == "class 150"
    assert source.target(0)["map"].tolist() == [[-1, 0, 1], [149, -1, 2]]
    lines = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{n}\t0.1\t9\t9\t1\t thing, no {n}" for n in range(1, 151))]
    (tmp_path / "objectInfo150.txt").write_text("\n".join(lines))
    assert ADE20K(root=str(tmp_path)).evaluation("map").classes[6] == "thing, no 7"
    (tmp_path / "names.txt").write_text("a\n" * 149)
    with pytest.raises(InputError, match=r"names.txt names 149 classes, but the benchmark has 150"):
        ADE20K(root=str(tmp_path), class_list=str(tmp_path / "names.txt")).splits("map")
    save(tmp_path / "annotations/validation/ADE_1.png", np.full((2, 3), 151, dtype=np.uint8))
    with pytest.raises(BadImageError, match=r"ADE_1.png has pixels of the number 151, but they must be 1 to 150"):
        ADE20K(root=str(tmp_path)).evaluation("map").target(0)
    with pytest.raises(InputError, match="data=ade20k has only map"):
        ADE20K(root=str(tmp_path)).splits("boxes")


def test_the_full_release_of_ade20k(tmp_path):
    numbers = np.array([[0, 1, 256], [3000, 2999, 17]])
    colours = np.stack([numbers // 256 * 10 + 3, numbers % 256, np.full((2, 3), 9)], axis=-1).astype(np.uint8)
    for split in ("training", "validation"):
        folder = tmp_path / f"images/ADE/{split}/street/road"
        picture(folder / "ADE_1.jpg", 3, 2)
        save(folder / "ADE_1_seg.png", colours)
        picture(folder / "ADE_1/instance_000.png", 3, 2)  # masks of parts, which are no pictures
    (tmp_path / "names.txt").write_text("".join(f"name {n}\n" for n in range(1, 3001)))
    with pytest.raises(InputError, match=r"data.full=true needs data.class_list=FILE"):
        ADE20K(root=str(tmp_path), full=True).splits("map")
    source, _ = ADE20K(root=str(tmp_path), full=True, class_list=str(tmp_path / "names.txt")).splits("map")
    assert len(source) == 1 and source.classes[2999] == "name 3000"
    assert source.target(0)["map"].tolist() == [[-1, 0, 255], [2999, 2998, 16]]
    (tmp_path / "names.txt").write_text("one\n")
    with pytest.raises(BadImageError, match=r"ADE_1_seg.png has pixels of the number 256, but they must be 1 to 1"):
        ADE20K(root=str(tmp_path), full=True, class_list=str(tmp_path / "names.txt")).evaluation("map").target(0)


def test_cityscapes(tmp_path):
    ids = np.array([[7, 7, 7, 24, 24, 26], [4, 26, 26, 26, 33, 29]], dtype=np.uint8)
    objects = np.array([[7, 7, 7, 24000, 24001, 26], [4, 26, 26000, 26000, 33012, 29000]], dtype=np.uint16)
    for split in ("train", "val"):
        stem = f"{split}/ulm/ulm_000000_000019"
        picture(tmp_path / f"leftImg8bit/{stem}_leftImg8bit.png", 6, 2)
        save(tmp_path / f"gtFine/{stem}_gtFine_labelIds.png", ids)
        save(tmp_path / f"gtFine/{stem}_gtFine_instanceIds.png", objects)
    data = Cityscapes(root=str(tmp_path))
    source, _ = data.splits("map")
    assert len(source.classes) == 19 and source.classes[11] == "person" and source.picture(0).size == (6, 2)
    assert source.target(0)["map"].tolist() == [[0, 0, 0, 11, 11, 13], [-1, 13, 13, 13, 18, -1]]
    target = data.evaluation("masks").target(0)
    assert data.evaluation("masks").classes == [
        "person",
        "rider",
        "car",
        "truck",
        "bus",
        "train",
        "motorcycle",
        "bicycle",
    ]
    found = {
        (label, crowd): box for label, crowd, box in zip(*(target[k].tolist() for k in ("labels", "crowd", "boxes")))
    }
    assert found[2, True] == [1, 0, 6, 2] and found[2, False] == [2, 1, 4, 2] and found[7, False] == [4, 1, 5, 2]
    assert sorted(target["area"].tolist()) == [1, 1, 1, 2, 2] and len(target["masks"]) == 5
    assert data.evaluation("boxes").target(0).keys() == {"boxes", "labels", "crowd", "area"}
    source = data.evaluation("segments")
    target = source.target(0)
    assert sorted(target["labels"].tolist()) == [0, 11, 11, 13, 13, 18] and target["masks"].sum() == 10
    assert target["crowd"][target["labels"] == 13].sum() == 1 and not target["crowd"][target["labels"] == 0]
    assert source.things == [False] * 11 + [True] * 8
    save(tmp_path / "gtFine/val/ulm/ulm_000000_000019_gtFine_labelIds.png", ids + 10)
    with pytest.raises(
        BadImageError, match=r"labelIds.png has pixels of the number 34, but the ids of classes are 0 to 33"
    ):
        data.evaluation("map").target(0)
    with pytest.raises(
        InputError, match=r"leftImg8bit/train does not exist. data.root must hold leftImg8bit/train/CITY"
    ):
        Cityscapes(root=str(tmp_path / "gtFine")).splits("map")


XML = """<annotation><size><width>40</width><height>30</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>40</xmax><ymax>30</ymax></bndbox>
<part><name>head</name><bndbox><xmin>5</xmin><ymin>5</ymin><xmax>6</xmax><ymax>6</ymax></bndbox></part></object>
<object><name>cat</name><difficult>1</difficult>
<bndbox><ymin>5</ymin><xmin>5.5</xmin><xmax>6</xmax><ymax>6</ymax></bndbox></object>
</annotation>"""


@pytest.fixture
def voc(tmp_path):
    for split in ("train", "val"):
        for lists in ("Main", "Segmentation"):
            (tmp_path / f"ImageSets/{lists}").mkdir(parents=True, exist_ok=True)
            (tmp_path / f"ImageSets/{lists}/{split}.txt").write_text("2008_1\n")
    picture(tmp_path / "JPEGImages/2008_1.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/2008_1.xml").write_text(XML)
    numbers = np.zeros((30, 40), dtype=np.uint8)
    numbers[5:10, 5:10], numbers[20:, 5:15], numbers[15] = 1, 2, 255
    save(tmp_path / "SegmentationObject/2008_1.png", numbers, palette=True)
    save(tmp_path / "SegmentationClass/2008_1.png", np.array([0, 12, 8, *[255] * 253])[numbers], palette=True)
    return tmp_path


def test_voc(voc):
    data = VOC(root=str(voc))
    source, _ = data.splits("boxes")
    target = source.target(0)
    assert target["boxes"].tolist() == [[0, 1, 40, 30], [4.5, 4, 6, 6]] and target["crowd"].tolist() == [False, True]
    assert [source.classes[label] for label in target["labels"]] == ["dog", "cat"] and source.wide.tolist() == [True]
    assert target["area"].tolist() == [40 * 29, 3] and source.picture(0).size == (40, 30)
    target = data.evaluation("masks").target(0)
    assert [CLASSES[label] for label in target["labels"]] == ["dog", "cat"]
    assert target["boxes"].tolist() == [[5, 5, 10, 10], [5, 20, 15, 30]] and target["area"].tolist() == [25, 100]
    source = data.evaluation("map")
    label_map = source.target(0)["map"]
    assert source.classes[12] == "dog" and (label_map[5:10, 5:10] == 12).all() and (label_map[15] == IGNORED).all()
    assert (label_map[20:, 5:15] == 8).all() and (label_map[0] == 0).all() and label_map.dtype == torch.int16
    (voc / "ImageSets/Segmentation/trainaug.txt").write_text("2008_1\n2008_1\n")
    save(voc / "SegmentationClassAug/2008_1.png", np.full((30, 40), 3, dtype=np.uint8))
    augmented = VOC(root=str(voc), train_split="trainaug", map_folder="SegmentationClassAug").splits("map")[0]
    assert len(augmented) == 2 and (augmented.target(1)["map"] == 3).all()


def test_voc_that_cannot_be_used(voc):
    data = VOC(root=str(voc))
    with pytest.raises(InputError, match="The task needs segments, but data=voc has only boxes and masks and map"):
        data.splits("segments")
    with pytest.raises(InputError, match=r"Main/trainaug.txt does not exist. data.root must hold JPEGImages"):
        VOC(root=str(voc), train_split="trainaug").splits("boxes")
    save(voc / "SegmentationClass/2008_1.png", np.zeros((30, 40), dtype=np.uint8))
    with pytest.raises(BadImageError, match=r"SegmentationClass/2008_1.png has no class for object 1"):
        data.evaluation("masks").target(0)
    save(voc / "SegmentationClass/2008_1.png", np.zeros((31, 40), dtype=np.uint8))
    with pytest.raises(BadImageError, match="are not of the same size"):
        data.evaluation("masks").target(0)
    file = voc / "Annotations/2008_1.xml"
    for text, said in (("<a>", "no element|mismatched"), (XML.replace("dog", "dodo"), "'dodo' is not in list"),
                       (XML.replace("xmin", "x"), "there is no bndbox/xmin")):  # fmt: skip
        file.write_text(text)
        with pytest.raises(InputError, match=rf"2008_1.xml cannot be read as an annotation of Pascal VOC \(.*({said})"):
            data.splits("boxes")
    (voc / "ImageSets/Main/val.txt").write_text("")
    with pytest.raises(InputError, match=r"Main/val.txt is empty"):
        data.evaluation("boxes")
