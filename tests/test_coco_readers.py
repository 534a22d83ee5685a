"""Readers of COCO's format, on files as they are published and on spoilt ones."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from backbones import InputError
from training.annotation import IGNORED
from training.data import BadImageError
from training.data.dense.coco import Coco, CocoFolder, Lvis

from .dense_files import CATEGORIES, image, own, picture, save, thing, write_json


def test_objects_of_a_coco_file(tmp_path, caplog):
    square = [[4, 4, 10, 4, 10, 10, 4, 10]]
    annotations = [
        thing(9, [4, 4, 6, 6], 7, area=33.5, segmentation=square),
        thing(5, [-3.5, 20, 100, 100], segmentation={"size": [30, 40], "counts": [600, 600]}, iscrowd=1),
        thing(9, [1, 2, 3.25, 4], segmentation=[[1, 2, 3], [1, 2, 4.25, 2, 4.25, 6, 1, 6]]),
        thing(9, [5, 5, 0, 3], segmentation=square),  # empty
        thing(9, [50, 5, 10, 3], segmentation=square),  # outside
        thing(9, [5, 5, float("nan"), 3], segmentation=square),
    ]
    picture(tmp_path / "train/9.png")
    data = own(tmp_path, annotations, [image(9), image(2, 20, 30), image(5)])
    source, _ = data.splits("boxes")
    assert source.classes == ["cat", "dog"] and source.things is None and source.wide.tolist() == [True, False, True]
    assert f"3 of 6 objects of {tmp_path}/annotations/train.json have an empty box: left out" in caplog.text
    assert len(caplog.records) == 2  # one for each split
    assert source.name(0) == f"{tmp_path}/train/9.png" and source.picture(0).size == (40, 30)
    first, second, third = (source.target(i) for i in range(3))
    assert first["boxes"].tolist() == [[4, 4, 10, 10], [1, 2, 4.25, 6]] and first["boxes"].dtype == torch.float32
    assert first["labels"].tolist() == [1, 0] and first["crowd"].tolist() == [False, False]
    assert first["area"].tolist() == [33.5, 13]  # without one, the box's
    assert {name: (value.shape, value.dtype) for name, value in second.items()} == {
        "boxes": ((0, 4), torch.float32), "labels": ((0,), torch.int64), "crowd": ((0,), torch.bool),
        "area": ((0,), torch.float32),
    }  # fmt: skip
    assert third["boxes"].tolist() == [[0, 20, 40, 30]] and third["crowd"].tolist() == [True]

    source = data.evaluation("masks")
    assert source.target(1)["masks"].shape == (0, 30, 20) and source.target(1)["masks"].dtype == torch.uint8
    masks = source.target(0)["masks"]
    assert masks.sum((1, 2)).tolist() == [36, 12] and masks[0, 4:10, 4:10].all()
    assert source.target(0)["area"].tolist() == [33.5, 12]  # without one, the mask's
    crowd = source.target(2)["masks"][0]
    assert crowd.T.flatten()[600:].all() and not crowd.T.flatten()[:600].any()  # down the columns


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools
def test_masks_are_those_of_cocos_tools(tmp_path):
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(30):
        width, height = (int(side) for side in rng.integers(5, 70, 2))
        images.append(image(number, width, height))
        for _ in range(rng.integers(4)):
            parts = [(rng.uniform(-0.1, 1.1, (k, 2)) * (width, height)).round(2) for k in rng.integers(3, 9, 2)]
            polygons = [part.flatten().tolist() for part in parts]
            runs = rng.multinomial(width * height, [0.25] * 4).tolist()
            segmentation = polygons if rng.random() < 0.6 else {"size": [height, width], "counts": runs}
            annotations.append(thing(number, [0, 0, 5, 5], segmentation=segmentation) | {"id": len(annotations) + 1})
    source = own(tmp_path, annotations, images).evaluation("masks")
    coco = COCO(tmp_path / "annotations/val.json")
    compared = 0
    for number in range(30):
        expected = [coco.annToMask(annotation) for annotation in coco.imgToAnns[number]]
        masks = source.target(number)["masks"].numpy()
        assert len(masks) == len(expected) and all(map(np.array_equal, masks, expected))
        compared += len(expected)
    assert compared > 20


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ({"size": [40, 30], "counts": [0, 1200]}, "a mask of 30 x 40 pixels for a picture of 40 x 30"),
        ({"size": [30, 40], "counts": [0, 1201]}, "RLE counts exceed"),
        ({"size": [30, 40], "counts": [-1, 1201]}, "cast"),
        ({"size": [30, 40], "counts": "zz"}, "expected 1200"),
        ({"size": [30, 40]}, "counts"),
        ([[1, 2, 3, 4, float("nan"), 6]], "outside of the picture, or no number"),
        ([[1, 2, 3, 4, 1e12, 6]], "outside of the picture, or no number"),
        ([[1, 2, 3, 4, "five", 6]], "could not convert"),
    ],
)
def test_bad_segmentations_are_bad_pictures(tmp_path, segmentation, said):
    source = own(tmp_path, [thing(1, [0, 0, 9, 9], segmentation=segmentation)]).evaluation("masks")
    with pytest.raises(BadImageError, match=rf"annotations/val.json has a bad segmentation of it \(.*{said}"):
        source.target(0)


def test_objects_without_a_segmentation_have_no_masks(tmp_path, caplog):
    polygons = {"segmentation": [[0, 0, 5, 0, 5, 5]]}
    flat = {"segmentation": [[0, 0, 5, 5]]}  # two corners
    data = own(tmp_path, [thing(1, [0, 0, 5, 5]) | more for more in (polygons, flat, {"segmentation": []}, {})])
    assert len(data.evaluation("masks").target(0)["boxes"]) == 1
    assert "3 of 4 objects" in caplog.text and "have an empty box or no segmentation: left out" in caplog.text
    assert len(data.evaluation("boxes").target(0)["boxes"]) == 4


BOX = [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (dict(annotations=[thing(8, BOX)]), r"val.json has an annotation of the image id 8, but no image with this id"),
        (dict(annotations=[thing(1, BOX, 4)]), r"val.json has an annotation of the category id 4, but no category"),
        (dict(annotations=[], images=[image(1), image(2), image(1)]), r"val.json has the image id 1 twice"),
        (dict(annotations=[], categories=CATEGORIES * 2), r"val.json has the category id 3 twice"),
        (dict(annotations=[], images=[]), r"val.json has no pictures"),
        (dict(annotations=[{"image_id": 1, "category_id": 3}]), r"annotations\[0\] is .*\(there is no 'bbox'\)"),
        (dict(annotations=[thing(1, [1, 2, 3])]), r"annotations\[0\] is .*\(not enough values"),
        (dict(annotations=[thing(1, BOX), "box"]), r"annotations\[1\] is box"),
        (dict(annotations=[thing(1, BOX, area="large")]), r"annotations\[0\] is .*'large'"),
        (dict(annotations=[], images=[{"id": 1, "file_name": "a"}]), r"images\[0\] is .*there is no 'width'"),
        (dict(annotations=[], categories=[{"id": 1}]), r"categories\[0\] is .*there is no 'name'"),
    ],
)
def test_coco_files_that_contradict_themselves(tmp_path, content, said):
    with pytest.raises(InputError, match=said):
        own(tmp_path, **content).evaluation("boxes")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"images": [', r"train.json is no JSON \(.*expected a COCO file"),
        ("[]", "train.json has no list of images; expected a COCO file"),
        ('{"images": [], "annotations": {}}', "train.json has no list of annotations"),
        ("\xff", "train.json is no JSON"),
        (None, r"train.json does not exist. Set data.root .* or data.train_json to where it is"),
    ],
)
def test_files_that_are_not_in_cocos_format(tmp_path, text, said):
    data, file = own(tmp_path, []), tmp_path / "annotations/train.json"
    file.unlink()
    if text is not None:
        file.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=said):
        data.splits("boxes")
    assert len(data.evaluation("boxes")) == 1  # which has no need of it


def test_both_splits_must_have_the_same_classes(tmp_path):
    data = own(tmp_path, [])
    write_json(tmp_path / "annotations/val.json", images=[image(1)], annotations=[], categories=[CATEGORIES[0]])
    with pytest.raises(InputError, match=r"train.json and .*val.json must have the same categories, but differ in cat"):
        data.splits("boxes")
    swapped = [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    write_json(tmp_path / "annotations/val.json", images=[image(1)], annotations=[], categories=swapped)
    with pytest.raises(InputError, match="differ in their order"):
        data.splits("boxes")


def test_paths_of_ones_own(tmp_path):
    own(tmp_path, [thing(1, BOX)])
    picture(tmp_path / "elsewhere/1.png")
    (tmp_path / "annotations/val.json").rename(tmp_path / "my.json")
    data = CocoFolder(val_json=str(tmp_path / "my.json"), val_images=str(tmp_path / "elsewhere"))
    assert data.evaluation("boxes").picture(0).pixels().shape == (30, 40, 3)
    data = CocoFolder(root=str(tmp_path), val_json="my.json", val_images="nowhere")
    with pytest.raises(InputError, match=r"nowhere does not exist. Set data.root .*data.val_images"):
        data.evaluation("boxes")


def write_panoptic(root: Path, split: str, numbers: np.ndarray, segments: list[tuple], **others) -> None:
    """As COCO has it: 4 categories, of which the ids have gaps."""
    height, width = numbers.shape
    colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 256**2], axis=-1).astype(np.uint8)
    save(root / f"annotations/panoptic_{split}/1.png", colours)
    info = [{"id": number, "category_id": category, "iscrowd": crowd} for number, category, crowd in segments]
    names = {2: ("cat", 1), 9: ("dog", 1), 100: ("sky", 0), 200: ("sea", 0)}
    content = {
        "images": [image(1, width, height), image(2)],
        "annotations": [{"image_id": 1, "file_name": "1.png", "segments_info": info}],
        "categories": [{"id": n, "name": name, "isthing": thing} for n, (name, thing) in names.items()],
    }
    write_json(root / f"annotations/panoptic_{split}.json", **content | others)


def test_coco_as_it_is_published(tmp_path, caplog):
    numbers = np.zeros((30, 40), dtype=np.int64)
    numbers[:10], numbers[10:20, :20], numbers[10:20, 20:30] = 5, 256 * 3, 256**2 * 200 + 1
    for split in ("train", "val"):
        picture(tmp_path / f"{split}2017/1.jpg")
        segments = [(5, 100, 0), (256 * 3, 9, 0), (256**2 * 200 + 1, 2, 1), (77, 200, 0)]
        write_panoptic(tmp_path, f"{split}2017", numbers, segments)
        file = tmp_path / f"annotations/instances_{split}2017.json"
        write_json(file, images=[image(1, file_name="1.jpg")], annotations=[thing(1, BOX)], categories=CATEGORIES)
    data = Coco(root=str(tmp_path))
    assert data.splits("boxes")[0].target(0)["boxes"].tolist() == [[1, 2, 4, 6]]
    assert data.evaluation("boxes").picture(0).size == (40, 30)

    source, _ = data.splits("segments")
    assert len(source) == 1 and "1 of 2 pictures" in caplog.text and "have no segments: left out" in caplog.text
    assert source.classes == ["cat", "dog", "sky", "sea"] and source.things == [True, True, False, False]
    target = source.target(0)  # without the sea, which has no pixel
    assert target["labels"].tolist() == [2, 1, 0] and target["crowd"].tolist() == [False, False, True]
    assert [np.array_equal(mask, numbers == n) for mask, (n, _, _) in zip(target["masks"], segments)] == [True] * 3
    label_map = data.evaluation("map").target(0)["map"]
    assert label_map.dtype == torch.int16 and (label_map[20:] == IGNORED).all() and (label_map[10:, 30:] == -1).all()
    assert (label_map[:10] == 2).all() and (label_map[10:20, :20] == 1).all() and (label_map[10:20, 20:30] == 0).all()

    write_panoptic(tmp_path, "val2017", numbers, segments[1:])
    with pytest.raises(
        BadImageError, match=r"panoptic_val2017/1.png has pixels of the segment 5, which .*val2017.json"
    ):
        data.evaluation("map").target(0)
    write_panoptic(tmp_path, "val2017", numbers, segments, images=[image(1, 41, 30)])
    with pytest.raises(BadImageError, match=r"1.png has 40 x 30 pixels, but .*panoptic_val2017.json says 41 x 30"):
        data.evaluation("segments").target(0)
    save(tmp_path / "annotations/panoptic_val2017/1.png", np.zeros((30, 40), dtype=np.uint8))
    with pytest.raises(BadImageError, match=r"1.png has one number per pixel \(mode L\), but three"):
        data.evaluation("segments").target(0)
    write_panoptic(tmp_path, "val2017", numbers, [(5, 101, 0)])
    with pytest.raises(InputError, match=r"panoptic_val2017.json has an annotation of the category id 101"):
        data.evaluation("segments")
    twice = [{"image_id": 1, "file_name": "1.png", "segments_info": []}] * 2
    write_panoptic(tmp_path, "val2017", numbers, [], annotations=twice)
    with pytest.raises(InputError, match="two annotations of the same picture"):
        data.evaluation("segments")
    with pytest.raises(
        InputError, match=r"instances_val2017.json does not exist. Set data.root to the folder that holds"
    ):
        Coco(root=str(tmp_path / "train2017")).evaluation("boxes")


def test_lvis_finds_pictures_by_their_urls(tmp_path):
    picture(tmp_path / "train2017/000000000001.jpg")
    url = {"coco_url": "http://images.cocodataset.org/train2017/000000000001.jpg"}
    content = {"images": [{"id": 1, "width": 40, "height": 30} | url], "annotations": [thing(1, BOX)]}
    for split in ("train", "val"):
        write_json(tmp_path / f"annotations/lvis_v1_{split}.json", **content, categories=CATEGORIES)
    for source in Lvis(root=str(tmp_path)).splits("boxes"):
        assert source.name(0).endswith("train2017/000000000001.jpg") and source.picture(0).pixels().shape == (30, 40, 3)
    with pytest.raises(InputError, match="The task needs segments, but data=lvis has only boxes and masks"):
        Lvis(root=str(tmp_path)).splits("segments")
