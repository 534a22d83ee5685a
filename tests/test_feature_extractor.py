"""torchvision's create_feature_extractor, which traces the model, gives what the modules gave."""

import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

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


@pytest.mark.parametrize("name", NANO)
def test_every_point_is_what_the_module_gave(name):
    model = backbones.create_model(name, num_classes=5).eval()
    stages = {f"stages.{i}": len(stage.blocks) for i, stage in enumerate(model.stages)}
    blocks = [f"{stage}.blocks.{i}" for stage, depth in stages.items() for i in range(depth)]
    # torchvision gives the last operation of a stage, which is that of its last block, to one of the two alone.
    for names in (["stem", *stages, "norm", "head"], blocks):
        extractor = create_feature_extractor(model, return_nodes=names).eval()
        for size in ((64, 48), (72, 104)):  # the graph is for any size
            images = torch.randn(2, 3, *size)
            expected, got = by_hooks(model, names, images), extractor(images)
            assert got.keys() == expected.keys()
            for point in names:
                torch.testing.assert_close(got[point], expected[point], msg=lambda text, at=point: f"{at}: {text}")


@pytest.mark.parametrize("name", NANO)
def test_an_extractor_trains(name):
    model = backbones.create_model(name, drop_path_rate=0.1)
    training, inference = get_graph_node_names(model)
    assert training and inference
    extractor = create_feature_extractor(model, return_nodes={"stages.1": "low", "stages.3": "high"})
    maps = extractor(torch.randn(2, 3, 64, 64))
    assert set(maps) == {"low", "high"}
    sum(y.square().mean() for y in maps.values()).backward()
    assert all(p.grad is not None for p in extractor.parameters())


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
