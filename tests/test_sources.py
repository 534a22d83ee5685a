"""Class maps and lists of pictures."""

from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from backbones import InputError
from training.data import (
    ImageFolder,
)


def write_picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), (shade, 0, 0)).save(path)


def targets(source) -> list[int]:
    return [source.target(i) for i in range(len(source))]


@pytest.fixture
def folder(tmp_path):
    for i, path in enumerate(["train/n1/a.jpg", "train/n1/b.jpg", "train/n2/c.jpg", "val/n1/d.jpg", "val/n2/e.jpg"]):
        write_picture(tmp_path / path, 10 * i)
    write_picture(tmp_path / "train/n2/deeper/f.png")
    return tmp_path


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("map.txt", "n2 a cat\nn1 a dog\n"),
        ("map.txt", "\nn2\ta cat\n\nn1\ta dog"),
        ("map.json", '{"1": ["n1", "a dog"], "0": ["n2", "a cat"]}'),
    ],
)
def test_a_class_map_gives_order_and_names(folder, file, text):
    (folder / file).write_text(text)
    data = ImageFolder(root=str(folder), class_map=str(folder / file))
    train_source, val_source = data.splits()
    assert train_source.classes == val_source.classes == ["a cat", "a dog"]
    assert targets(train_source) == [0, 0, 1, 1] and targets(val_source) == [0, 1]
    assert train_source.name(1) == f"{folder}/train/n2/deeper/f.png"
    for path in (folder / "train").rglob("*.*"):
        path.unlink()
    assert len(data.evaluation()) == 2  # the map says what the training pictures would


def test_a_class_map_without_names_and_of_some_folders(folder, caplog):
    (folder / "map.txt").write_text("n2\n")
    train_source, val_source = ImageFolder(root=str(folder), class_map=str(folder / "map.txt")).splits()
    assert train_source.classes == ["n2"] and len(train_source) == 2 and len(val_source) == 1
    assert f"1 folders of {folder}/train have no class in {folder}/map.txt: left out" in caplog.text


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("map.txt", "n1 a\n\nn2 b\nn1 c\n", r"map.txt, line 4, names the folder n1 again"),
        ("map.txt", "", r"map.txt is empty"),
        ("map.txt", "n1\nn2\nn3\n", r"map.txt names the folder\(s\) n3, which are not in .*train"),
        ("map.json", '["n1"]', r"map.json holds a list; expected {\"0\": \[FOLDER, NAME\]"),
        ("map.json", '{"0": ["n1", "a"], "2": ["n2", "b"]}', r"map.json has None for label 1"),
        ("map.json", '{"0": "n1"}', r"map.json has 'n1' for label 0"),
        ("map.json", "{", r"map.json is no JSON"),
        ("map.txt", None, r"The class map .*map.txt cannot be read \(.*No such file"),
    ],
)
def test_class_maps_that_cannot_be_used(folder, file, text, said):
    if text is not None:
        (folder / file).write_text(text)
    with pytest.raises(InputError, match=said):
        ImageFolder(root=str(folder), class_map=str(folder / file)).splits()


def test_lists_of_pictures(folder):
    (folder / "train.txt").write_text("n2/c.jpg 1\nn1/a.jpg 0\n\nn1/with space.jpg\t2\n")
    (folder / "val.txt").write_text("n2/e.jpg 1\n")
    data = partial(ImageFolder, root=str(folder), train_list=str(folder / "train.txt"))
    train_source, val_source = data(val_list=str(folder / "val.txt")).splits()
    assert targets(train_source) == [1, 0, 2] and train_source.classes == ["0", "1", "2"]
    assert train_source.picture(1).image().size == (40, 36)
    assert train_source.name(2) == f"{folder}/train/n1/with space.jpg"
    assert targets(val_source) == [1] and val_source.picture(0).image()
    with pytest.raises(InputError, match=r"numbers the classes, so nothing says which number the folder\(s\) n1, n2"):
        data().splits()
    # Beside folders: as ImageNet's validation pictures often are.
    flat = ImageFolder(root=str(folder), val_list=str(folder / "val.txt"))
    assert flat.splits()[1].classes == ["n1", "n2"] and targets(flat.evaluation()) == [1]
    # With a class map, and without the folders train and val.
    (folder / "map.txt").write_text("n1 a dog\nn2 a cat\nn3 a bird\n")
    (folder / "all.txt").write_text("val/n2/e.jpg 1\n")
    data = ImageFolder(
        root=str(folder / "val/.."), class_map=str(folder / "map.txt"), val_list=str(folder / "val.txt"),
        train_list=str(folder / "train.txt"),
    )  # fmt: skip
    assert data.splits()[0].classes == ["a dog", "a cat", "a bird"]
    (folder / "moved").mkdir()
    (folder / "val").rename(folder / "moved/val2")
    (folder / "val.txt").write_text("val2/n2/e.jpg 1\n")
    moved = ImageFolder(root=str(folder / "moved"), class_map=data.class_map, val_list=data.val_list)
    assert moved.evaluation().picture(0).image()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("n1/a.jpg 0\n\nn1/b.jpg\n", r"train.txt, line 3, is 'n1/b.jpg', but must be a path and its label"),
        ("n1/a.jpg zero\n", r"train.txt, line 1, is 'n1/a.jpg zero'"),
        ("n1/a.jpg -1\n", r"train.txt, line 1"),
        ("n1/a.jpg 1\nn1/a.jpg 2\n", r"train.txt, line 2, has the label 2, but there are 2 classes, 0 to 1"),
        ("", r"train.txt is empty"),
    ],
)
def test_lists_that_cannot_be_used(folder, text, said):
    (folder / "train.txt").write_text(text)
    (folder / "map.txt").write_text("n1\nn2\n")
    files = dict(class_map=str(folder / "map.txt"), train_list=str(folder / "train.txt"))
    with pytest.raises(InputError, match=said):
        ImageFolder(root=str(folder), **files).splits()
