"""What is BiFormer's own: its initial weights, batch norms and dense backbones, and the models in Swin's layout."""

import pytest
import torch
from torch import nn

import backbones
from backbones import InputError

SMALL = dict(depths=(1, 1, 1, 1), num_classes=5)


def test_initial_weights_of_biformer():
    model = backbones.create_model("biformer_t")
    convolutions = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    linear = {n for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    for n, p in model.named_parameters():
        module, _, kind = n.rpartition(".")
        if module in linear and kind == "weight":
            assert p.std().item() == pytest.approx(0.02, rel=0.1) and abs(p.mean().item()) < 5e-3, n
        elif module in convolutions:
            fan_in = model.get_submodule(module).weight[0].numel()
            assert p.abs().max() <= fan_in**-0.5, n
            if kind == "weight":
                assert p.std().item() == pytest.approx((3 * fan_in) ** -0.5, rel=0.15), n
        else:  # norms, and the biases of linear layers
            assert (p == (kind == "weight")).all(), n


def test_epsilons_heads_and_scales_of_the_release():
    model = backbones.create_model("biformer_b", device="meta")
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            assert module.eps == 1e-6
        if isinstance(module, nn.BatchNorm2d):
            assert module.eps == 1e-5
    routed, full = model.stages[2].blocks[0].attention, model.stages[3].blocks[0].attention
    assert (routed.num_heads, routed.top_k, routed.num_regions, routed.scale) == (12, 16, 7, 384**-0.5)
    assert full.num_heads == 8 and full.lepe_of_input


@pytest.mark.parametrize(("dense", "regions"), [("detection", 16), ("segmentation", 8)])
def test_dense_backbones_have_other_regions_and_norm_each_map_on_its_own(dense, regions):
    model = backbones.create_model("biformer_t", features_only=True, dense=dense, out_indices=(1, 3), depths=(1,) * 4)
    assert model.model.stages[2].blocks[0].attention.num_regions == regions
    assert {n.split(".")[1] for n, _ in model.named_parameters() if n.startswith("model.norm")} == {"norm1", "norm3"}
    plain = backbones.create_model(
        "biformer_t", features_only=True, out_indices=(1, 3), num_regions=regions, depths=(1,) * 4
    )
    weights = {k: v for k, v in model.model.state_dict().items() if not k.startswith("norm")}
    plain.model.load_state_dict(weights)
    images = torch.randn(1, 3, 50, 90)
    for y, e in zip(model.eval()(images), plain.eval()(images), strict=True):
        normed = torch.nn.functional.layer_norm(e.movedim(1, -1), e.shape[1:2], eps=1e-6).movedim(-1, 1)
        torch.testing.assert_close(y, normed)


def test_detection_keeps_running_statistics_and_trains_their_scale():
    images = torch.randn(2, 3, 32, 32)
    for dense, kept in (("detection", True), ("segmentation", False)):
        model = backbones.create_model("biformer_nano", features_only=True, dense=dense)  # as built: in training
        norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
        sum(y.square().sum() for y in model.train()(images)).backward()
        assert all((m.num_batches_tracked == 0) == kept for m in norms)
        assert all(m.weight.grad.abs().sum() > 0 for m in norms)


def test_batch_norms_can_be_synchronised():
    model = nn.SyncBatchNorm.convert_sync_batchnorm(backbones.create_model("biformer_nano")).eval()
    assert not any(type(m) is nn.BatchNorm2d for m in model.modules())
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 1000)


def official_stl(model, second: bool) -> dict[str, torch.Tensor]:
    """The model's weights under the names of the release; the second operator has 1 x 1 convolutions."""
    official = {}
    for name, value in model.state_dict().items():
        words = name.split(".")
        if words[0] == "stem":
            name = f"downsample_layers.0.{['proj', 'norm'].index(words[1])}.{words[2]}"
        elif words[2] == "downsample":
            name = f"downsample_layers.{words[1]}.{['norm', 'conv'].index(words[3])}.{words[4]}"
        elif words[0] == "stages":
            routed = words[1] != "3"
            if words[4:6] == ["attention", "qkv"] and routed:
                words[5] = "qkv_linear" if second else "qkv.qkv"
            if words[4:6] == ["attention", "proj"] and routed:
                words[5] = "output_linear" if second else "wo"
            words = [{"attention": "attn", "fc1": "0", "fc2": "2"}.get(word, word) for word in words]
            name = ".".join(words)
            if second and value.dim() == 2:
                value = value[:, :, None, None]
        else:
            name = name.replace("norm.norm.", "norm.").replace("head.fc.", "head.")
        official[name] = value
    return official


@pytest.mark.parametrize("name", ["biformer_stl", "biformer_stl_nchw"])
def test_the_models_in_swins_layout_load_official_files(name, tmp_path):
    model = backbones.create_model(name, **SMALL).eval()
    torch.save({"model": official_stl(model, second=name.endswith("nchw"))}, tmp_path / "official.pth")
    loaded = backbones.create_model(name, checkpoint_path=tmp_path / "official.pth", **SMALL).eval()
    images = torch.randn(2, 3, 50, 60)
    assert torch.equal(loaded(images), model(images))


def test_both_operators_agree_where_regions_divide_the_map_but_not_in_full_attention():
    first = backbones.create_model("biformer_stl", **SMALL).eval()
    second = backbones.create_model("biformer_stl_nchw", **SMALL).eval()
    second.load_state_dict(first.state_dict())
    for size, same in ((112, [True, True, True, False]), (120, [False] * 4)):
        images = torch.randn(1, 3, size, 112)
        pairs = zip(*(m.forward_intermediates(images, intermediates_only=True) for m in (first, second)))
        assert [torch.allclose(y, e, atol=1e-5) for y, e in pairs] == same


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(num_regions=3), "cannot attend to 16 of the 3 x 3 regions"),
        (dict(num_regions=0), "0 x 0 regions"),
        (dict(top_k=(1, 4)), "a top_k for each but the last"),
        (dict(depths=(1, 0, 1, 1)), r"depths=\(1, 0, 1, 1\)"),
        (dict(patch_size=3), "must be even, but patch_size=3"),
        (dict(num_heads=(3, 4, 8, 8)), "64 channels cannot be split into 3 heads"),
    ],
)
def test_what_cannot_be_built(wrong, said):
    with pytest.raises(InputError, match=said):
        backbones.create_model("biformer_t", device="meta", **wrong)
