"""torchvision's create_feature_extractor, which traces the model, gives what the modules gave."""

import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor

import backbones

from .conftest import examples

NAMES = backbones.list_models()
NANO = backbones.list_models("*_nano")


def by_hooks(model, names, images):
    found = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(lambda module, given, out, name=name: found.update({name: out}))
    model(images)
    return found


def check_points(model, names):
    """An extractor of these modules' outputs, which gives them for images of any size."""
    extractor = create_feature_extractor(model, return_nodes=names).eval()
    for size in ((64, 48), (72, 104)):
        images = torch.randn(2, 3, *size)
        expected, got = by_hooks(model, names, images), extractor(images)
        assert got.keys() == expected.keys()
        for point in names:
            torch.testing.assert_close(got[point], expected[point], msg=lambda text, at=point: f"{at}: {text}")
    return extractor


@pytest.mark.parametrize("name", NANO)
def test_every_stage_is_what_the_module_gave_and_trains(name):
    model = backbones.create_model(name, num_classes=5, drop_path_rate=0.1).eval()
    extractor = check_points(model, ["stem", *(f"stages.{i}" for i in range(4)), "norm", "head"])
    outputs = extractor.train()(torch.randn(2, 3, 64, 64))
    sum(y.square().mean() for y in outputs.values()).backward()
    assert all(p.grad is not None for p in extractor.parameters())


# torchvision gives the last operation of a stage, which is that of its last block, to one of the two alone.
@pytest.mark.slow
@pytest.mark.parametrize("name", NANO)
def test_every_block_is_what_the_module_gave(name):
    model = backbones.create_model(name).eval()
    check_points(
        model, [f"stages.{i}.blocks.{j}" for i, stage in enumerate(model.stages) for j in range(len(stage.blocks))]
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NANO])
def test_every_name_is_traced(name):
    with torch.device("meta"):
        model = backbones.create_model(name).eval()
        extractor = create_feature_extractor(model, return_nodes=[f"stages.{i}" for i in range(4)])
        maps = extractor(torch.empty(1, 3, 96, 64))
    assert len(maps) == 4


def test_the_example_of_the_docs_runs():
    ran = {}
    exec(examples("torchvision"), ran)
    assert set(ran["outputs"]) == {"low", "high", "logits"}
