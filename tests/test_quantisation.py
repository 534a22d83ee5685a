"""Eight bits per weight by torchao, on a CPU."""

import copy

import pytest
import torch
from torch import nn
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

import backbones
from backbones.layers import MapLinear
from backbones.layers.linear import faster_as_convolution
from training.data.digits import digits

NANO = backbones.list_models("*_nano")
CONFIGS = [Int8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig]


@pytest.mark.parametrize("config", CONFIGS)
def test_a_quantised_layer_is_no_convolution(config, products_are_slow):
    layer, x = MapLinear(128, 256), torch.randn(2, 16, 16, 128)
    assert faster_as_convolution(x, layer.weight)
    expected = layer(x)
    quantize_(layer, config())
    with torch.no_grad():
        assert (layer(x) - expected).abs().max() < 0.05 * expected.std()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("name", NANO)
def test_every_family_can_be_quantised(name, config):
    model = backbones.create_model(name, num_classes=7).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        expected = model.forward_features(images)
        quantize_(model, config())
        features = model.forward_features(images)
        assert model(images).shape == (2, 7)
    assert 0 < (features - expected).std() < 0.1 * expected.std()
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    assert linear and all(type(module.weight) is not nn.Parameter for module in linear)


def top1(model, images, labels) -> float:
    with torch.inference_mode():
        return (model(images).argmax(1) == labels).float().mean().item()


def learned(name: str, epochs: int):
    """A model that has learned the training digits, with the validation digits and their labels."""
    parts = []
    for pixels, labels, _ in digits():
        images = nn.functional.interpolate(torch.from_numpy(pixels)[:, None] / 255, size=(32, 32), mode="bicubic")
        parts.append(((images - 0.3) / 0.35, torch.from_numpy(labels)))
    (images, labels), validation = parts
    model = backbones.create_model(name, num_classes=10, in_chans=1)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05)
    steps = epochs * (len(images) // 96)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(images))[: 96 * (len(images) // 96)].split(96):
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    return model.eval(), *validation


QUICK = ("swin_nano",)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NANO])
def test_accuracy_stays(name):
    model, images, labels = learned(name, epochs=4 if name in QUICK else 8)
    before = top1(model, images, labels)
    assert before > 0.9
    for config in CONFIGS:
        quantised = copy.deepcopy(model)
        quantize_(quantised, config())
        assert abs(top1(quantised, images, labels) - before) <= 0.005
