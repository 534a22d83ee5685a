"""Names, keywords, and what importing the package brings along."""

import subprocess
import sys

import pytest
import timm
import torch

import backbones
from backbones import InputError


def test_names_families_and_tags():
    assert backbones.list_models("swin_?") == ["swin_b", "swin_l", "swin_s", "swin_t"]
    assert "swin" in backbones.list_families()
    assert "swin_t.ms_in1k" in backbones.list_models("swin*", pretrained=True)
    assert backbones.list_models("swin_t*", pretrained=True) == [
        "swin_t.ms_in1k",
        "swin_t.ms_in22k",
        "swin_t.ms_in22k_ft_in1k",
    ]


def test_model_info():
    info = backbones.model_info("swin_t")
    assert info["strides"] == [4, 8, 16, 32] and info["channels"] == [96, 192, 384, 768]
    assert info["tags"]["ms_in1k"]["top1"] == 81.2 and info["tags"]["ms_in1k"]["url"].endswith(".pth")
    assert info["licence"]["code"] == "MIT" and info["input_size"] == (3, 224, 224)


def test_unknown_names_and_keywords_are_explained():
    with pytest.raises(InputError, match=r"no model named 'swint'. Did you mean .*swin_t"):
        backbones.create_model("swint")
    with pytest.raises(InputError, match=r"no weights tagged 'in1k'; its tags are: ms_in1k"):
        backbones.create_model("swin_t.in1k")
    with pytest.raises(TypeError, match=r"no argument 'windowsize'. Did you mean window_size"):
        backbones.create_model("swin_t", windowsize=8)
    with pytest.raises(InputError, match="pass features_only=True"):
        backbones.create_model("swin_t", dense="detection")
    with pytest.raises(InputError, match="must be one of detection, segmentation"):
        backbones.create_model("swin_t", dense="depth", features_only=True)
    for indices in ((5,), (-5,), (), 9):
        with pytest.raises(InputError, match="out_indices is"):
            backbones.create_model("swin_nano", features_only=True, out_indices=indices)
    with pytest.raises(InputError, match="need features_only=True"):
        backbones.create_model("swin_nano", out_indices=(1,))
    with pytest.raises(InputError, match="no published weights for swin_nano"):
        backbones.create_model("swin_nano", pretrained=True)


def test_hyper_parameters_are_keywords():
    model = backbones.create_model("swin_t", depths=(1, 1, 1, 1), window_size=4, device="meta")
    assert [len(stage.blocks) for stage in model.stages] == [1, 1, 1, 1]
    assert model.stages[0].blocks[0].attention.window_size == 4
    assert backbones.create_model("swin_nano", dtype=torch.float64).stem.proj.weight.dtype == torch.float64


def test_timm_knows_every_name_and_keeps_its_own():
    ours = set(backbones.list_models())
    assert ours <= set(timm.list_models())
    code = (
        "import timm; before = set(timm.list_models()); import backbones; "
        "both = before & set(backbones.list_models()); assert not both, both"
    )
    subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], check=True)
    features = timm.create_model("swin_nano", features_only=True, out_indices=(1, 2))
    assert [y.shape[1] for y in features(torch.randn(1, 3, 32, 32))] == features.feature_info.channels()


def test_importing_needs_torch_and_timm_alone():
    code = (
        "import sys, timm, torch; before = set(sys.modules); import backbones; "
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}; "
        "extra = new - {'backbones', 'timm', 'torch', 'torchvision'} - set(sys.stdlib_module_names); "
        "assert not extra, extra"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
