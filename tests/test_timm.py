"""What timm's programs do with a model, done with ours. `make test-timm` runs timm's own tests over all names."""

import pytest
import timm
import timm.data
import timm.optim
import torch
from PIL import Image

import backbones

NANO = backbones.list_models("*_nano")


def test_lists_by_pattern_module_and_weights():
    assert timm.list_models("dinat_?") == backbones.list_models("dinat_?")
    assert set(backbones.list_models("overlock*")) == set(timm.list_models(module="overlock"))
    ours = {full for full in timm.list_models(pretrained=True) if full.partition(".")[0] in backbones.list_models()}
    info = {name: backbones.model_info(name)["tags"] for name in ("swin_t", "davit_t")}
    assert {full for full in ours if full.startswith("swin_t.")} == {f"swin_t.{tag}" for tag in info["swin_t"]}
    assert "page" in info["davit_t"]["msft_in1k"] and "davit_t.msft_in1k" not in ours  # no program can download it
    assert timm.is_model_pretrained("swin_t") and not timm.is_model_pretrained("swin_nano")


@pytest.mark.parametrize("full", ["swin_b_384.ms_in1k", "volo_d4.sail_in1k", "gcvit_t.nvidia_in1k", "overlock_nano"])
def test_pictures_are_prepared_as_the_weights_want_it(full):
    config = timm.data.resolve_model_data_config(timm.create_model(full, device="meta"))
    tag = full.partition(".")[2]
    info = backbones.model_info(full)
    assert config["input_size"] == info["input_size"]
    for key in ("mean", "std", "crop_pct", "interpolation") if tag else ():
        expected = info["tags"][tag][key]
        assert config[key] == (tuple(expected) if isinstance(expected, list) else expected)
    picture = timm.data.create_transform(**config)(Image.new("RGB", (500, 400)))
    assert picture.shape == info["input_size"]


@pytest.mark.parametrize("name", NANO)
def test_groups_of_timms_optimizers(name):
    model = timm.create_model(name, num_classes=5)
    optimizer = timm.optim.create_optimizer_v2(model, opt="adamw", lr=1e-2, weight_decay=0.05, layer_decay=0.5)
    groups = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    assert len(groups) == sum(len(group["params"]) for group in optimizer.param_groups) == len([*model.parameters()])
    for n, p in model.named_parameters():
        decayed = p.dim() > 1 and n not in model.no_weight_decay()
        assert groups[id(p)]["weight_decay"] == (0.05 if decayed else 0), n
    scales = {n: groups[id(p)]["lr_scale"] for n, p in model.named_parameters()}
    assert scales["head.fc.weight"] == 1 and scales["stem.proj.weight"] == min(scales.values())
    for stage in range(len(model.stages) - 1):
        assert scales_of(scales, stage) < scales_of(scales, stage + 1)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(p, before[n]) for n, p in model.named_parameters())


def scales_of(scales: dict[str, float], stage: int) -> float:
    """The rate of a stage's last block."""
    return max(scale for n, scale in scales.items() if n.startswith(f"stages.{stage}."))


@pytest.mark.parametrize("name", NANO)
def test_frozen_models_stay_frozen(name):
    model = timm.create_model(name).requires_grad_(False)
    model.reset_classifier(0)
    model.reset_classifier(0, "")
    if hasattr(model, "set_input_size"):
        model.set_input_size(img_size=(64, 64))
    assert not [n for n, p in model.named_parameters() if p.requires_grad]
