"""Graphs that leave Python: torch.compile, torch.export, ONNX."""

import onnxruntime
import pytest
import torch
from torch._dynamo.utils import counters

import backbones

NANO = backbones.list_models("*_nano")
# Compiling and tracing take long: by default the families whose arithmetic on sizes differs most.
SOME = ("biformer_nano", "dinat_nano", "swin_nano")
COMPILED = [pytest.param(name, marks=() if name in SOME else pytest.mark.slow) for name in NANO]


@pytest.fixture(params=NANO)
def nano(request):
    return backbones.create_model(request.param, num_classes=7).eval()


@pytest.mark.parametrize("nano", COMPILED, indirect=True)
def test_compiles_to_one_graph_per_image_size_for_any_batch(nano):
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(nano, fullgraph=True, backend="eager")
    graphs = {(2, 32, 32): 1, (3, 32, 32): 2, (5, 32, 32): 2, (2, 64, 48): 3, (4, 64, 48): 3}  # the second: any batch
    for (batch, height, width), expected in graphs.items():
        images = torch.randn(batch, 3, height, width)
        torch.testing.assert_close(compiled(images), nano(images), rtol=1e-4, atol=1e-4)
        assert counters["stats"]["unique_graphs"] == expected and not counters["graph_break"]


@pytest.mark.parametrize("nano", COMPILED, indirect=True)
def test_training_step_compiles_to_one_graph(nano):
    torch._dynamo.reset()
    nano.train()
    images = torch.randn(2, 3, 32, 32)
    nano(images).square().sum().backward()
    plain = {name: p.grad.clone() for name, p in nano.named_parameters()}
    nano.zero_grad()
    torch.compile(nano, fullgraph=True, backend="aot_eager")(images).square().sum().backward()
    for name, p in nano.named_parameters():
        torch.testing.assert_close(p.grad, plain[name], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize("nano", COMPILED, indirect=True)
def test_exports_for_any_batch(nano):
    batch = torch.export.Dim("batch", min=1, max=64)
    images = torch.randn(2, 3, 64, 48)
    program = torch.export.export(nano, (images,), dynamic_shapes=({0: batch},))
    images = torch.randn(5, 3, 64, 48)
    torch.testing.assert_close(program.module()(images), nano(images), rtol=1e-4, atol=1e-4)


def onnx_mismatch(model: torch.nn.Module, path) -> float:
    """Worst difference of onnxruntime's output to PyTorch's, over its standard deviation, for another batch size."""
    torch.onnx.export(
        model, (torch.randn(2, 3, 64, 48),), path, opset_version=20, dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    session = onnxruntime.InferenceSession(path)
    images = torch.randn(3, 3, 64, 48)
    output = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    expected = model(images)
    return ((output - expected).abs().max() / expected.std()).item()


def test_onnx_gives_the_same_numbers(tmp_path):
    model = backbones.create_model("swin_nano", num_classes=7).eval()
    assert onnx_mismatch(model, tmp_path / "model.onnx") < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NANO if name != "swin_nano"])
def test_onnx_gives_the_same_numbers_for_every_family(name, tmp_path):
    model = backbones.create_model(name, num_classes=7).eval()
    assert onnx_mismatch(model, tmp_path / "model.onnx") < 1e-3
