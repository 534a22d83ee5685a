"""Tar shards as a source: their index, the stream, and shards that are bad."""

import gc
import gzip
import io
import json
import os
import signal
import sys
import tarfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest
import torch

import eval as evaluation
import train
from backbones import InputError
from training.data import WebDataset, shards
from training.data.shard_index import ShardIndex

from .shard_files import PER_SHARD, loader, picture, shade, stream, write_shard, write_splits


@pytest.fixture
def folder(tmp_path):
    return write_splits(tmp_path / "shards")


@pytest.fixture
def settings(folder, tmp_path):
    return partial(WebDataset, root=str(folder), cache=str(tmp_path / "cache"), img_size=32)


def test_shards_are_one_source_in_the_order_of_the_pattern(settings):
    train_source, val_source = settings().splits()
    assert len(train_source) == 20 and len(val_source) == 5 and train_source.classes == ["0", "1"]
    assert [shade(train_source, i) for i in range(20)] == [10 * i for i in range(20)]
    assert [train_source.target(i) for i in range(20)] == [0, 1] * 10
    assert train_source.name(7).endswith("shards/train-000001.tar/0007.png")


@pytest.mark.parametrize(
    ("pattern", "shades"),
    [
        ("train-{000002..000003}.tar", [100, 150]),
        ("train-{000003,000000}.tar", [150, 0]),
        ("train-00000[12].tar", [50, 100]),
        ("train-000001.tar::train-000003.tar", [50, 150]),
        ("{root}/train-000001.tar", [50]),
        ("file://{root}/train-000001.tar", [50]),
        ("pipe:cat {root}/train-{{000000..000001}}.tar", [0, 50]),
    ],
)
def test_patterns_of_shards(settings, folder, pattern, shades):
    pattern = pattern.format(root=folder) if "root" in pattern else pattern
    source, _ = settings(train=pattern).splits()
    assert [shade(source, i) for i in range(0, len(source), PER_SHARD)] == shades


@pytest.mark.parametrize(
    "files",
    [
        {"a.jpg": "J", "a.cls": "1", "b.jpg": "J", "b.cls": "0"},
        {"a.json": '{"label": 1}', "a.JPEG": "J", "b.json": '{"label": "0"}', "b.JPEG": "J"},
        {"./deep/er.v2/a.png": "P", "./deep/er.v2/a.cls": " 1\n", "./deep/er.v2/b.png": "P", "./deep/er.v2/b.cls": "0"},
        {"__meta__/x.jpg": "J", "a.cls": "1", "a.seg.png": "P", "a.webp": "W", "b.webp": "W", "b.cls": "0", "c.t": "-"},
        {"a.png": "P", "a.jpg": "J", "a.cls": "1", "dir/": None, "b.ppm": "PPM", "b.cls": "0", "no_extension": "x"},
    ],
    ids=["cls", "json", "folders", "more fields", "several pictures"],
)  # fmt: skip
def test_keys_and_fields_are_webdatasets(settings, folder, files):
    forms = {"J": "JPEG", "P": "PNG", "W": "WEBP", "PPM": "PPM"}
    with tarfile.open(folder / "own.tar", "w") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            content = picture(77, forms[text]) if text in forms else (text or "").encode()
            member.type, member.size = (tarfile.REGTYPE, len(content)) if text else (tarfile.DIRTYPE, 0)
            tar.addfile(member, io.BytesIO(content))
    source, _ = settings(train="own.tar").splits()
    assert [source.target(i) for i in range(len(source))] == [1, 0]
    assert {abs(shade(source, i) - 77) <= 1 for i in range(2)} == {True}
    assert "a.png" not in source.name(0) or "a.jpg" not in files  # JPEG comes first


def test_an_index_is_built_once_and_again_for_another_shard(settings, folder, caplog, monkeypatch):
    settings().splits()
    assert (folder / "train-000002.tar.index").exists()
    with monkeypatch.context() as patch:
        patch.setattr(tarfile, "open", None)
        assert shade(settings().splits()[0], 13) == 130
    write_shard(folder / "train-000002.tar", {"x.png": picture(200), "x.cls": b"1"})
    source, _ = settings().splits()
    assert len(source) == 16 and shade(source, 10) == 200 and "train-000002.tar for one" in caplog.text
    (folder / "train-000001.tar.index").write_bytes(b"damaged")
    assert len(settings().splits()[0]) == 16
    # Another label field needs another index.
    write_shard(folder / "train-000000.tar", {"x.png": picture(1), "x.json": b'{"label": 1, "coarse": 0}'})
    assert settings().splits()[0].target(0) == 1 and settings(label="coarse").splits()[0].target(0) == 0


def test_a_folder_that_cannot_be_written_is_indexed_in_the_cache(settings, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as chmod cannot keep out the root user
    for _ in range(2):
        assert len(settings().splits()[0]) == 20
        assert not list(folder.glob("*.index")) and len(list((tmp_path / "cache").glob("*.index"))) == 5
        monkeypatch.setattr(tarfile, "open", None)


def test_the_stream_is_the_same_for_any_workers_and_from_any_batch(settings, monkeypatch):
    here, there = loader(settings()), loader(settings(), workers=2)
    whole = stream(here)
    assert len(whole) == 6 and stream(there) == whole and stream(there, epoch=1) == stream(here, epoch=1) != whole
    assert stream(there, start=4) == whole[4:]
    read, reading = [], shards.Shard.read
    monkeypatch.setattr(shards.Shard, "read", lambda shard, i: read.append((shard.name, i)) or reading(shard, i))
    assert stream(here, start=4) == whole[4:] and len(read) == 6  # two batches of three, and nothing before them


def damage(shard, how: str) -> None:
    content = shard.read_bytes()
    match how:
        case "missing":
            shard.unlink()
        case "cut in a picture":
            shard.write_bytes(content[:700])
        case "cut in a label":
            shard.write_bytes(content[:1700])
        case "cut between files":  # after the first picture and its label: tarfile would call this complete
            shard.write_bytes(content[: 512 + 512 * -(-len(picture(50)) // 512) + 1024])
        case "overwritten":
            shard.write_bytes(content[:2048] + b"\xff" * (len(content) - 2048))
        case "compressed":
            shard.write_bytes(gzip.compress(content))
        case "no tar":
            shard.write_bytes(b"no tar" * 200)
        case "empty":
            shard.write_bytes(b"")
        case "no pictures":
            write_shard(shard, {"a.cls": b"1", "a.txt": b"text"})
        case "twice the same":
            write_shard(shard, {"a.png": picture(1), "a.PNG": picture(2), "a.cls": b"0"})


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "No such file"),
        ("cut in a picture", "unexpected end of data"),
        ("cut in a label", "unexpected end of data"),
        ("cut between files", "damaged or cut short at byte 2048"),
        ("overwritten", "damaged or cut short at byte 2048"),
        ("compressed", "it is compressed"),
        ("no tar", "invalid header|bad checksum"),
        ("empty", "empty file"),
        ("no pictures", "it has no pictures"),
        ("twice the same", "holds a.PNG twice"),
    ],
)
def test_a_bad_shard_stops_the_run_or_is_left_out_as_one(settings, folder, caplog, how, reason):
    damage(folder / "train-000001.tar", how)
    pattern = "train-{000000..000003}.tar"  # which says what there should be
    with pytest.raises(InputError, match=rf"data.max_bad_shards allows 0.*train-000001.tar \(.*({reason})"):
        settings(train=pattern).splits()
    source, _ = settings(train=pattern, max_bad_shards=1, max_bad_images=0).splits()
    assert len(source) == 15 and [shade(source, i) for i in (0, 5, 10)] == [0, 100, 150]
    assert caplog.text.count("Left out a shard") == 1 and "train-000001.tar" in caplog.text
    damage(folder / "train-000003.tar", "missing")
    with pytest.raises(InputError, match=r"2 shard\(s\) cannot be used, and data.max_bad_shards allows 1"):
        settings(train=pattern, max_bad_shards=1).splits()


@pytest.mark.parametrize(("workers", "how"), [(0, "missing"), (0, "cut in a picture"), (1, "missing")])
def test_a_shard_that_goes_bad_during_the_run(settings, folder, workers, how):
    strict, lenient = loader(settings(), workers), loader(settings(max_bad_shards=1), workers, limit=1)
    damage(folder / "train-000001.tar", how)
    with pytest.raises(InputError, match=r"^1 shard\(s\) cannot be used.*train-000001.tar \(") as error:
        list(strict.epoch())
    assert "Traceback" not in str(error.value)
    indices = torch.cat([batch.indices for batch in lenient.epoch()]).tolist()
    assert len(indices) == 18 and not set(range(5, 10)) & set(indices)
    assert [name.endswith("train-000001.tar") for name in lenient.bad_images.reasons] == [True]  # one, not five


def test_a_picture_that_is_bad_in_a_good_shard(settings, folder):
    files = {
        "a.png": b"no picture",
        "a.cls": b"1",
        "b.png": picture(3),
        "b.json": b"{",
        "c.png": picture(4),
        "c.cls": b"0",
    }
    write_shard(folder / "train-000000.tar", files)
    data = loader(settings())
    indices = torch.cat([batch.indices for batch in data.epoch()]).tolist()
    assert len(indices) == 18 and not {0, 1} & set(indices)
    reasons = {name.rpartition("/")[2]: reason for name, reason in data.bad_images.reasons.items()}
    assert reasons == {"a.png": "neither a JPEG nor anything else that Pillow reads", "b.png": "it has no label"}


def test_labels_and_class_maps(settings, folder, tmp_path):
    names = tmp_path / "classes.txt"
    names.write_text("n01\ta cat\nn02\ta dog\n")
    write_shard(folder / "val-000000.tar", {"a.png": picture(1), "a.cls": b"n02", "b.png": picture(1), "b.cls": b"0"})
    source = settings(class_map=str(names), train="nothing-*.tar").evaluation()
    assert source.classes == ["a cat", "a dog"] and [source.target(i) for i in range(2)] == [1, 0]
    with pytest.raises(InputError, match=r"1 of 2 pictures.*no label from 0 to 1.*val-000000.tar/a.png.*'n02'"):
        settings(max_bad_images=0).splits()
    write_shard(folder / "val-000000.tar", {"a.png": picture(1), "a.cls": b"2"})
    with pytest.raises(InputError, match=r"1 of 1 pictures.*no label from 0 to 1.*'2'"):
        settings(max_bad_images=0).splits()
    write_shard(folder / "train-000000.tar", {"a.png": picture(1), "a.cls": b"9" * 30})
    assert settings().splits()[0].classes == ["0", "1"]
    write_shard(folder / "val-000000.tar", {"a.png": picture(1), "a.json": b'{"label": 1}'})
    with pytest.raises(InputError, match=r"no label that is a number.*with the label ''.*data.label=other"):
        settings(train="val-*.tar", label="other", max_bad_images=0).splits()


def test_what_cannot_be_configured(settings):
    with pytest.raises(InputError, match=r"There are no shards nothing-\*.tar in .*data.root=PATH"):
        settings(train="nothing-*.tar").splits()
    with pytest.raises(InputError, match=r"None of the 2 shards of nothing-{0..1}.tar can be used"):
        settings(train="nothing-{0..1}.tar", max_bad_shards=5).splits()
    with pytest.raises(InputError, match="max_bad_shards must not be negative"):
        settings(max_bad_shards=-1)


def test_without_webdataset_only_what_needs_it_fails(settings, monkeypatch):
    for name in ("webdataset", "webdataset.gopen", "webdataset.shardlists"):
        monkeypatch.setitem(sys.modules, name, None)
    assert len(settings().splits()[0]) == 20
    with pytest.raises(InputError, match=r"pip install 'backbones\[webdataset\]'"):
        settings(train="train-{000000..000003}.tar").splits()


def test_training_from_shards_resumes_within_an_epoch(call, folder, tmp_path, monkeypatch):
    arguments = ["data=webdataset", f"data.root={folder}", 'data.train="train-{000000..000003}.tar"']
    arguments += ["data.img_size=32", "data.workers=0", "trainer.batch_size=4", "trainer.epochs=2"]
    arguments += ["recipe.schedule.warmup_epochs=0"]
    said = call(train, *arguments, "run_dir=out")
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert summary["data"] == "webdataset" and summary["steps"] == 10 and "Opening 4 shard(s)" in said
    assert "5 pictures of webdataset" in call(evaluation, "run=out")

    read, reading = [], shards.Shard.read

    def read_and_stop(shard, i):
        read.append(i)
        if len(read) == 33:  # 20 for an epoch, 5 to evaluate it, and the second step of the next
            os.kill(os.getpid(), signal.SIGTERM)
        return reading(shard, i)

    monkeypatch.setattr(shards.Shard, "read", read_and_stop)
    assert "Nothing is lost" in call(train, *arguments, "run_dir=half", code=75)
    (folder / "train-000003.tar").rename(folder / "elsewhere")
    said = call(train, "resume=half", code=2)
    assert "data.max_bad_shards allows 0" in said and "train-000003.tar" in said
    (folder / "elsewhere").rename(folder / "train-000003.tar")
    assert "Resumed at epoch 2, step 7" in call(train, "resume=half")
    files = [tmp_path / name / "checkpoints/best.safetensors" for name in ("out", "half")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_many_threads_read_indices(settings, folder):
    """Collecting garbage makes threads alternate in the middle of reading."""
    settings().splits()
    [index, *_] = folder.glob("*.index")
    threshold = gc.get_threshold()

    def collected(phase, info):
        time.sleep(0)

    gc.callbacks.append(collected)
    gc.set_threshold(20)
    try:
        with ThreadPoolExecutor(8) as pool:
            read = list(pool.map(lambda _: ShardIndex.load(index, "label"), range(100)))
    finally:
        gc.set_threshold(*threshold)
        gc.callbacks.remove(collected)
    assert all(one is not None and one.stamp == read[0].stamp for one in read)
