"""What is Swin's own: its initial weights, its windows at other sizes, its dense backbones."""

import pytest
import torch

import backbones


def test_initial_weights_of_swin():
    model = backbones.create_model("swin_t")
    for n, p in model.named_parameters():
        if n.endswith("position_bias.table") or (p.dim() == 2 and n.endswith("weight")):
            assert p.std().item() == pytest.approx(0.02, rel=0.1) and abs(p.mean().item()) < 5e-3, n
        elif "norm" in n and n.endswith("weight"):
            assert (p == 1).all(), n
        elif n.endswith("bias") and not n.startswith("stem.proj"):
            assert not p.any(), n
    bound = 48**-0.5  # Kaiming uniform with a = sqrt(5): 1 / sqrt(fan_in)
    stem = model.stem.proj.weight
    assert stem.abs().max() <= bound and stem.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("dense", ["detection", "segmentation"])
def test_dense_backbones_norm_each_map_on_its_own(dense):
    dense_model = backbones.create_model("swin_nano", features_only=True, dense=dense, out_indices=(1, 3)).eval()
    norms = {n.split(".")[1] for n, _ in dense_model.named_parameters() if n.startswith("model.norm")}
    assert norms == {"norm1", "norm3"}
    plain = backbones.create_model("swin_nano", features_only=True, out_indices=(1, 3), img_size=36).eval()
    weights = {k: v for k, v in dense_model.model.state_dict().items() if not k.startswith("norm")}
    plain.model.load_state_dict(weights)
    images = torch.randn(1, 3, 36, 52)  # 18 x 26 tokens: the classification network is not defined there
    for y, e in zip(dense_model(images), plain(images), strict=True):
        torch.testing.assert_close(y, torch.nn.functional.layer_norm(e.movedim(1, -1), e.shape[1:2]).movedim(-1, 1))


def test_a_small_image_shrinks_the_windows_of_the_classification_network_only():
    """At 192 px the last map of swin_b_384 has 6 x 6 tokens, fewer than a window of 12 x 12."""
    at_size = backbones.create_model("swin_b_384", img_size=192, device="meta")
    windows = [stage.blocks[0].attention.position_bias.table.shape[0] for stage in at_size.stages]
    assert windows == [23**2, 23**2, 23**2, 11**2]
    dense = backbones.create_model("swin_b_384", img_size=192, features_only=True, dense="detection", device="meta")
    assert dense.model.stages[3].blocks[0].attention.position_bias.table.shape[0] == 23**2


def test_set_input_size_gives_what_building_at_that_size_gives():
    model = backbones.create_model("swin_nano", num_classes=3)
    model.set_input_size(img_size=64, window_size=8)
    built = backbones.create_model("swin_nano", num_classes=3, img_size=64, window_size=8)
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in built.named_parameters()}
    assert model(torch.randn(1, 3, 64, 64)).shape == (1, 3)
