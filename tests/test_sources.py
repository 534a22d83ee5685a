"""Class maps, lists of pictures, and tables of Hugging Face's datasets."""

import io
import sys
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from backbones import InputError
from training.data import (
    BadImageError,
    BadImages,
    HuggingFace,
    ImageFolder,
    LabelledPictures,
    Loader,
    evaluation_transform,
)


def write_picture(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 36), (shade, 0, 0)).save(path)


def targets(source) -> list[int]:
    return [source.target(i) for i in range(len(source))]


# Class maps and lists


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


# Hugging Face's datasets


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Write rows of pictures and labels, as columns of these names, to a split of tmp_path/data."""
    import datasets
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()

    def table(count: int, image="image", label="label", classes=("cat", "dog"), first=0):
        pictures, labels = [], []
        for i in range(first, first + count):
            content = io.BytesIO()
            Image.new("RGB", (40, 36), (10 * i, 0, 0)).save(content, "PNG")
            pictures.append({"bytes": content.getvalue(), "path": None})
            labels.append(i % 2)
        kind = datasets.ClassLabel(names=list(classes)) if classes else datasets.Value("int64")
        features = datasets.Features({image: datasets.Image(), label: kind})
        return datasets.Dataset.from_dict({image: pictures, label: labels}, features=features)

    return table


def hugging(tmp_path, **settings) -> HuggingFace:
    return HuggingFace(root=str(tmp_path / "data"), img_size=32, **settings)


def test_parquet_files_and_saved_tables(rows, tmp_path):
    import datasets

    (tmp_path / "data/data").mkdir(parents=True)
    for part in range(2):
        rows(4, first=4 * part).to_parquet(str(tmp_path / f"data/data/train-0000{part}-of-00002.parquet"))
    rows(3).to_parquet(str(tmp_path / "data/data/test-00000-of-00001.parquet"))
    datasets.DatasetDict(train=rows(8), validation=rows(3), test=rows(2)).save_to_disk(str(tmp_path / "saved"))
    for data in (hugging(tmp_path), HuggingFace(root=str(tmp_path / "saved"), img_size=32)):
        train_source, val_source = data.splits()
        assert len(train_source) == 8 and len(val_source) == len(data.evaluation()) == 3
        assert train_source.classes == ["cat", "dog"] and targets(train_source) == [0, 1] * 4
        shades = [train_source.picture(i).image().getpixel((0, 0))[0] for i in range(8)]
        assert shades == [10 * i for i in range(8)] and train_source.name(3).endswith(" train, row 3")
        # Read by worker processes, each picture by its index.
        streams = []
        for workers in (0, 2):
            loader = Loader(
                LabelledPictures(train_source, evaluation_transform(data)), 3, BadImages(0), workers, seed=0
            )
            streams.append([(batch.images.tolist(), batch.indices.tolist()) for batch in loader.epoch()])
        assert streams[0] == streams[1] and len(streams[0]) == 2


def test_columns_and_splits_are_found_or_named(rows, tmp_path):
    (tmp_path / "data").mkdir()
    rows(4, "photo", "animal", classes=()).to_parquet(str(tmp_path / "data/train.parquet"))
    with pytest.raises(InputError, match=r"Which column of .* is the label is not clear.*data.label to.*photo, animal"):
        hugging(tmp_path).splits()
    source, _ = hugging(tmp_path, label="animal", val="train").splits()
    assert source.classes == ["0", "1"] and source.picture(1).image().getpixel((0, 0))[0] == 10
    with pytest.raises(InputError, match=r"no column 'animals'. Did you mean animal\?"):
        hugging(tmp_path, label="animals").splits()
    with pytest.raises(InputError, match=r"has no split 'validation', but train. Set data.train and data.val"):
        hugging(tmp_path, label="animal").splits()
    with pytest.raises(InputError, match=r"'photo' of .* does not give a label"):
        hugging(tmp_path, label="photo", val="train").splits()
    source, _ = hugging(tmp_path, label="animal", image="animal", val="train").splits()
    with pytest.raises(BadImageError, match="column 'animal' holds 1 there, which is no picture"):
        source.picture(1)


def test_columns_of_bytes_and_paths(tmp_path, rows):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "data").mkdir()
    write_picture(tmp_path / "red.png", 200)
    for column in ([(tmp_path / "red.png").read_bytes(), None], [str(tmp_path / "red.png"), "nothing.png"]):
        pyarrow.parquet.write_table(pyarrow.table({"image": column, "label": [0, 1]}), tmp_path / "data/train.parquet")
        source, _ = hugging(tmp_path, val="train").splits()
        assert source.picture(0).image().getpixel((0, 0)) == (200, 0, 0)
        with pytest.raises(BadImageError):
            source.picture(1)


def test_one_of_several_configurations(rows, tmp_path):
    for name, count in (("small", 2), ("large", 5)):
        (tmp_path / "data" / name).mkdir(parents=True)
        rows(count).to_parquet(str(tmp_path / f"data/{name}/train.parquet"))
    entries = "".join(f"- config_name: {name}\n  data_dir: {name}\n" for name in ("small", "large"))
    (tmp_path / "data/README.md").write_text(f"---\nconfigs:\n{entries}---\n")
    assert len(hugging(tmp_path, config="large", val="train").splits()[0]) == 5
    with pytest.raises(InputError, match=r"datasets cannot load .*Config name is missing"):
        hugging(tmp_path, val="train").splits()


def test_tables_that_cannot_be_used(rows, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"needs data.root=PATH"):
        HuggingFace().splits()
    with pytest.raises(InputError, match=r"/data does not exist"):
        hugging(tmp_path).splits()
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"datasets cannot load .*any data files"):
        hugging(tmp_path).splits()
    (tmp_path / "data/train.parquet").write_bytes(b"no parquet")
    with pytest.raises(InputError, match="datasets cannot load"):
        hugging(tmp_path).splits()
    rows(2).to_parquet(str(tmp_path / "data/train.parquet"))
    rows(2).map(lambda row: {"label": -1}).to_parquet(str(tmp_path / "data/test.parquet"))
    with pytest.raises(InputError, match=r"'label' of .*test does not give a label, a number from 0 on"):
        hugging(tmp_path).splits()
    rows(2, classes=()).map(lambda row: {"label": 7}).to_parquet(str(tmp_path / "data/test.parquet"))
    with pytest.raises(InputError, match="test has the label 7, but there are 2 classes, from 0 on"):
        hugging(tmp_path).splits()
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r"pip install 'backbones\[huggingface\]'"):
        hugging(tmp_path).splits()
