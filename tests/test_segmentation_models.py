"""Backbones as encoders of segmentation_models_pytorch, through its own door to timm's models."""

import pytest
import segmentation_models_pytorch as smp
import torch

import backbones

DECODERS = [smp.Unet, smp.FPN, smp.UPerNet, smp.Segformer]
FAMILIES = [family for family in backbones.list_families() if family != "volo"]  # VOLO's maps are no pyramid
SMALLEST = dict(swin="swin_t", litv2="litv2_s", biformer="biformer_t", dinat="nat_m", gcvit="gcvit_xxt")
SMALLEST |= dict(davit="davit_t", l2vit="l2vit_t", overlock="overlock_xt")
AT_DEPTH_4 = {smp.Unet: dict(decoder_channels=(32, 16, 8, 8)), smp.FPN: dict(upsampling=2)}


def teach(model, images):
    """One step forward and back; every parameter of the encoder takes part."""
    logits = model(images)
    assert logits.shape == (len(images), 5, *images.shape[2:])
    logits.square().mean().backward()
    for name, parameter in model.encoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_an_encoder(family):
    """Our nanos have maps of strides 2 to 16, which is a depth of 4."""
    for decoder in DECODERS:
        options = dict(encoder_depth=4, encoder_weights=None, classes=5, in_channels=1) | AT_DEPTH_4.get(decoder, {})
        model = decoder(f"tu-{family}_nano", **options)
        teach(model, torch.randn(2, 1, 32, 64))


@pytest.mark.slow
@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_published_sizes_are_encoders(family, decoder):
    model = decoder(f"tu-{SMALLEST[family]}", encoder_weights=None, classes=5)
    assert model.encoder.out_channels[2:] == backbones.model_info(SMALLEST[family])["channels"]
    teach(model, torch.randn(2, 3, 96, 128))


def test_saved_weights_are_an_encoders(tmp_path):
    saved = backbones.create_model("swin_nano", num_classes=7, window_size=2)
    backbones.save_pretrained(saved, tmp_path)
    model = smp.FPN(f"tu-local-dir:{tmp_path}", encoder_depth=4, encoder_weights=True, classes=5, upsampling=2)
    images = torch.randn(1, 3, 64, 64)
    maps = saved.forward_intermediates(images, intermediates_only=True)
    for y, e in zip(model.encoder.eval()(images)[1:], maps, strict=True):
        assert torch.equal(y, e)


def test_volo_is_refused():
    with pytest.raises(ValueError, match="Unsupported model downsampling pattern"):
        smp.Unet("tu-volo_nano", encoder_weights=None)
