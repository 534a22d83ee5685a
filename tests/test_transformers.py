"""transformers' classes for timm's models take our names: TimmBackbone, TimmWrapper, Mask2Former."""

import pytest
import torch

import backbones

pytest.importorskip("transformers")
from transformers import (
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    TimmBackbone,
    TimmBackboneConfig,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)

from .conftest import examples

NAMES = backbones.list_models()
NANO = backbones.list_models("*_nano")


def all_learn(model):
    return all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", NANO)
def test_timm_backbone_gives_our_maps(name):
    model = TimmBackbone(TimmBackboneConfig(backbone=name, out_indices=[1, 3])).eval()
    ours = backbones.create_model(name, features_only=True, out_indices=(1, 3)).eval()
    ours.load_state_dict(model._backbone.state_dict())
    images = torch.randn(2, 3, 64, 96)
    maps = model(images).feature_maps
    assert all(torch.equal(their, our) for their, our in zip(maps, ours(images), strict=True))
    assert model.channels == ours.feature_info.channels() and model.out_features == ["stages.1", "stages.3"]
    sum(y.square().mean() for y in maps).backward()
    assert all_learn(model)


def test_timm_backbone_gives_all_hidden_states():
    model = TimmBackbone(TimmBackboneConfig(backbone="dinat_nano", out_indices=[0, 1, 2, 3])).eval()
    out = model(torch.randn(1, 3, 64, 96), output_hidden_states=True)
    assert len(out.hidden_states) == 4 and torch.equal(out.hidden_states[3], out.feature_maps[3])


@pytest.mark.parametrize("name", NANO)
def test_timm_wrapper_gives_our_logits_and_is_saved(name, tmp_path):
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture=name, num_labels=5)).eval()
    ours = backbones.create_model(name, num_classes=5).eval()
    ours.load_state_dict(model.timm_model.state_dict())
    images = torch.randn(2, 3, 64, 96)
    out = model(images, labels=torch.tensor([0, 4]), output_hidden_states=True)
    assert torch.equal(out.logits, ours(images))
    maps = ours.forward_intermediates(images, intermediates_only=True)
    assert all(torch.equal(their, our) for their, our in zip(out.hidden_states, maps, strict=True))
    out.loss.backward()
    assert all_learn(model)

    model.save_pretrained(tmp_path)
    loaded = TimmWrapperForImageClassification.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(images).logits, out.logits)
    features = TimmWrapperModel.from_pretrained(tmp_path).eval()(images, output_hidden_states=[0, -1])
    assert torch.equal(features.last_hidden_state, ours.forward_features(images)) and len(features.hidden_states) == 2
    assert features.pooler_output.shape == (2, ours.head_hidden_size)


def test_timm_wrapper_checkpoints_gradients():
    model = TimmWrapperForImageClassification(TimmWrapperConfig(architecture="swin_nano", num_labels=5))
    model.gradient_checkpointing_enable()
    assert all(stage.grad_checkpointing for stage in model.timm_model.stages)


@pytest.mark.parametrize("name", NANO)
def test_mask2former_trains_around_ours(name):
    strides = backbones.model_info(name)["strides"]
    config = Mask2FormerConfig(
        backbone_config=TimmBackboneConfig(backbone=name, out_indices=[0, 1, 2, 3]),
        feature_strides=strides,
        common_stride=strides[0],
        num_labels=3,
        num_queries=8,
        feature_size=32,
        mask_feature_size=32,
        hidden_dim=32,
        encoder_feedforward_dim=32,
        dim_feedforward=32,
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=4,
        train_num_points=64,
    )
    model = Mask2FormerForUniversalSegmentation(config)
    masks = [torch.randint(0, 2, (2, 64, 96)).float() for _ in range(2)]
    out = model(torch.randn(2, 3, 64, 96), mask_labels=masks, class_labels=[torch.tensor([0, 2])] * 2)
    assert out.masks_queries_logits.shape == (2, 8, 64 // strides[0], 96 // strides[0])
    out.loss.sum().backward()
    encoder = model.model.pixel_level_module.encoder
    assert isinstance(encoder, TimmBackbone) and all_learn(encoder)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name not in NANO])
def test_timm_backbone_takes_every_name(name):
    with torch.device("meta"):
        model = TimmBackbone(TimmBackboneConfig(backbone=name, out_indices=[0, 1, 2, 3]))
        maps = model(torch.empty(1, 3, 96, 64)).feature_maps
    assert [y.shape[1] for y in maps] == model.channels == backbones.model_info(name)["channels"]


@pytest.mark.slow
def test_the_examples_of_the_docs_run():
    ran = {}
    exec(examples("transformers"), ran)
    assert [y.shape[1] for y in ran["maps"]] == [48, 192] and ran["loss"].isfinite().all()
