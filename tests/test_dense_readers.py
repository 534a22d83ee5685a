"""Readers of data sets with boxes, masks, segments and maps, on files as they are published and on spoilt ones."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from backbones import InputError
from training.annotation import IGNORED
from training.data import BadImageError
from training.data.dense.ade20k import ADE20K
from training.data.dense.cityscapes import Cityscapes
from training.data.dense.coco import Coco, CocoFolder, Lvis
from training.data.dense.maps import MaskFolder
from training.data.dense.orientation import picture_of_size
from training.data.dense.segments import read_numbers
from training.data.dense.voc import CLASSES, VOC

CATEGORIES = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]  # with gaps, out of order


def save(path: Path, pixels, palette: bool = False, **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.asarray(pixels, dtype=np.uint8 if palette else None)
    image = Image.fromarray(pixels)
    if palette:
        image = Image.frombytes("P", image.size, pixels.tobytes())
        image.putpalette([value // 3 for value in range(767, -1, -1)])
    image.save(path, **options)
    return path


def picture(path: Path, width: int = 40, height: int = 30, **options) -> Path:
    return save(path, np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8), **options)


def write_json(path: Path, **content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def image(number: int, width: int = 40, height: int = 30, **others) -> dict:
    return {"id": number, "width": width, "height": height, "file_name": f"{number}.png"} | others


def thing(image_id: int, box: list, category: int = 3, **others) -> dict:
    return {"id": 1, "image_id": image_id, "category_id": category, "bbox": box} | others


def own(folder: Path, annotations: list, images: list | None = None, categories: list = CATEGORIES) -> CocoFolder:
    """A folder of one's own, with the same train and val."""
    images = [image(1)] if images is None else images
    for split in ("train", "val"):
        (folder / split).mkdir(exist_ok=True)
        write_json(folder / f"annotations/{split}.json", images=images, annotations=annotations, categories=categories)
    return CocoFolder(root=str(folder))


# Files in COCO's format


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


# The way round of pictures


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


# Maps


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
