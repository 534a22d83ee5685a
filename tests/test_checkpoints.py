"""Official files, files of our own, and files that must be refused."""

import argparse
import os
from functools import partial

import pytest
import torch
from safetensors.torch import save_file

import backbones
from backbones import InputError
from backbones.checkpoints import read_checkpoint
from backbones.families.swin import class_rows

build = partial(backbones.create_model, "swin_nano")


def officially_named(model) -> dict[str, torch.Tensor]:
    """The state dict as the release would name it, with its index and mask buffers."""
    official = {}
    for name, value in model.state_dict().items():
        name = name.replace("stem.", "patch_embed.").replace(".attention.position_bias.table", ".attention.R")
        name = name.replace(".attention.", ".attn.").replace(".R", ".relative_position_bias_table")
        name = name.replace("head.fc.", "head.")
        parts = name.split(".")
        if parts[0] == "stages":
            parts[0] = "layers"
            if parts[2] == "downsample":
                parts[1] = str(int(parts[1]) - 1)
        official[".".join(parts)] = value
    official["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    official["layers.1.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    return official


def assert_same_weights(one, other):
    assert one.state_dict().keys() == other.state_dict().keys()
    for name, value in one.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3, "config": argparse.Namespace(lr=0.1)},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {"model_ema": s, "model": {k: v * 0 for k, v in s.items()}},
    ],
    ids=["bare", "model and options", "module prefix", "average first"],
)
@pytest.mark.parametrize("suffix", ["pth", "pth.tar"])
def test_official_files(tmp_path, wrap, suffix):
    model = build()
    torch.save(wrap(officially_named(model)), tmp_path / f"file.{suffix}")
    assert_same_weights(model, build(checkpoint_path=tmp_path / f"file.{suffix}"))


def test_files_of_this_project(tmp_path):
    model = build(num_classes=10)
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    torch.save(model.state_dict(), tmp_path / "own.pt")
    for file in ("own.safetensors", "own.pt"):
        assert_same_weights(model, build(num_classes=10, checkpoint_path=tmp_path / file))
    double = build(num_classes=10, checkpoint_path=tmp_path / "own.pt", dtype=torch.float64)
    assert double.stem.proj.weight.dtype == torch.float64


def test_a_detector_gives_its_backbone(tmp_path):
    dense = build(features_only=True, dense="detection")
    own = {k.removeprefix("model."): v for k, v in dense.state_dict().items()}
    model = build()
    official = officially_named(model) | {k: torch.randn_like(v) for k, v in own.items() if k.startswith("norm")}
    official = {k: v for k, v in official.items() if not k.startswith(("norm.", "head."))}
    detector = {f"backbone.{k}": v for k, v in official.items()} | {"rpn_head.weight": torch.zeros(3)}
    torch.save({"state_dict": detector, "meta": {"epoch": 12}}, tmp_path / "detector.pth")
    loaded = build(features_only=True, dense="detection", checkpoint_path=tmp_path / "detector.pth")
    assert torch.equal(loaded.model.norm2.weight, official["norm2.weight"])
    assert torch.equal(loaded.model.stages[1].downsample.norm.bias, model.stages[1].downsample.norm.bias)


def test_a_classifier_starts_a_dense_backbone(tmp_path, caplog):
    model = build()
    torch.save({"model": officially_named(model)}, tmp_path / "classifier.pth")
    with caplog.at_level("INFO"):
        dense = build(features_only=True, dense="detection", checkpoint_path=tmp_path / "classifier.pth")
    assert torch.equal(dense.model.stem.proj.weight, model.stem.proj.weight)
    assert (dense.model.norm3.weight == 1).all()
    assert "no norm0, norm1, norm2, norm3; they keep their initial values" in caplog.text


def test_another_number_of_classes_drops_and_zeroes_the_head(tmp_path, caplog):
    torch.save(officially_named(build()), tmp_path / "file.pth")
    with caplog.at_level("INFO"):
        model = build(num_classes=7, checkpoint_path=tmp_path / "file.pth")
    assert model.head.fc.weight.shape[0] == 7 and not model.head.fc.weight.any()
    assert "classifier of 1000 classes" in caplog.text
    assert build(num_classes=0, checkpoint_path=tmp_path / "file.pth").num_classes == 0


def test_a_22k_head_is_reduced_to_the_1k_classes(tmp_path):
    model = build(num_classes=21841)
    torch.save(officially_named(model), tmp_path / "22k.pth")
    reduced = build(checkpoint_path=tmp_path / "22k.pth")
    rows = class_rows(21841, 1000)
    # tench, the first class of ImageNet-1k, is row 359 of the sorted 22k synsets.
    assert rows[:3] == [359, 368, 460] and len(rows) == 1000 and rows.count(None) == 1
    assert torch.equal(reduced.head.fc.weight[0], model.head.fc.weight[359])
    assert not reduced.head.fc.weight[rows.index(None)].any()


def test_another_number_of_channels_adapts_the_stem(tmp_path):
    model = build()
    torch.save(officially_named(model), tmp_path / "file.pth")
    grey = build(in_chans=1, checkpoint_path=tmp_path / "file.pth")
    torch.testing.assert_close(grey.stem.proj.weight, model.stem.proj.weight.sum(1, keepdim=True))


def test_another_window_resizes_the_tables(tmp_path):
    model = build()
    torch.save(officially_named(model), tmp_path / "file.pth")
    larger = build(window_size=8, img_size=64, checkpoint_path=tmp_path / "file.pth")
    table = model.stages[0].blocks[0].attention.position_bias
    expected = table.resize_table(table.table, 8)
    assert torch.equal(larger.stages[0].blocks[0].attention.position_bias.table, expected)


def test_another_architecture_is_explained(tmp_path):
    torch.save(officially_named(build(dim=32)), tmp_path / "wider.pth")
    with pytest.raises(
        InputError, match=r"entries have another shape: stem\.\S+ \(\(32.* in the file, \(24.* in the m"
    ):
        build(checkpoint_path=tmp_path / "wider.pth")
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(
        InputError, match=r"entries of the model are missing from it: .*2 entries are unexpected: weight"
    ):
        build(checkpoint_path=tmp_path / "linear.pth")


class Evil:
    def __reduce__(self):
        return os.system, ("touch executed",)


@pytest.mark.parametrize("content", [{"model": {}, "x": Evil()}, Evil()])
def test_code_in_a_pickle_is_refused(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    torch.save(content, "evil.pth")
    with pytest.raises(InputError, match=r"holds more than weights \(.*system\) and was refused"):
        build(checkpoint_path="evil.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("kept", [0, 100, 0.5])
def test_truncated_files(tmp_path, suffix, kept):
    file = tmp_path / f"cut.{suffix}"
    state = build().state_dict()
    save_file(state, file) if suffix == "safetensors" else torch.save(state, file)
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    with pytest.raises(InputError, match=r"cut\.\w+ cannot be read; it is damaged or cut short"):
        read_checkpoint(file)


def test_files_that_are_missing_or_hold_no_weights(tmp_path):
    with pytest.raises(InputError, match="There is no checkpoint at"):
        read_checkpoint(tmp_path / "nothing.pth")
    torch.save({"epoch": 3}, tmp_path / "numbers.pth")
    with pytest.raises(InputError, match="holds no state dict"):
        read_checkpoint(tmp_path / "numbers.pth")
