"""What is VOLO's own: two classifiers, class attention as pooling, the position table, training with token labels."""

import pytest
import torch
import torch.nn.functional as F

import backbones
from backbones import InputError
from backbones.families.volo import TokenLogits
from backbones.layers import GridPosition, random_box, take_from_reversed


def officially_named(model) -> dict[str, torch.Tensor]:
    """The state dict as the release would name it."""
    official = {}
    for name, value in model.state_dict().items():
        parts = name.replace(".attention.logits.", ".attn.attn.").replace(".attention.", ".attn.").split(".")
        if parts[:2] == ["stem", "proj"]:
            parts[:2] = ["patch_embed", "conv", "0"]
        elif parts[:2] == ["stem", "convs"]:
            parts[:3] = ["patch_embed", "conv", str(int(parts[2]) + 1)]
        elif parts[0] == "stem":
            parts[:2] = ["patch_embed", "proj"]
        elif parts[0] == "stages" and parts[2] == "downsample":
            parts = ["pos_embed"] if parts[3] == "position" else ["network", "1", *parts[3:]]
        elif parts[0] == "stages":
            stage = int(parts[1])
            parts[:3] = ["network", str(stage and stage + 1)]
        else:
            names = {"fc": ["head"], "aux": ["aux_head"], "blocks": ["post_network"]}
            parts[:2] = names.get(parts[1], [parts[1]])
        official[".".join(parts)] = value
    return official


@pytest.fixture
def official(tmp_path):
    model = backbones.create_model("volo_nano").eval()
    torch.save({"state_dict": officially_named(model)}, tmp_path / "official.pth.tar")
    return model, tmp_path / "official.pth.tar"


def test_initial_weights_of_volo():
    model = backbones.create_model("volo_d1")
    linears = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    for n, p in model.named_parameters():
        layer, _, leaf = n.rpartition(".")
        if n.endswith(("position.table", "cls_token")) or (layer in linears and leaf == "weight"):
            assert p.std().item() == pytest.approx(0.02, rel=0.15) and abs(p.mean().item()) < 5e-3, n
        elif layer in linears:
            assert not p.any(), n
        elif p.dim() == 1 and not n.startswith(("stem.patches", "stages.1.downsample.proj")):  # norms
            assert (p == (leaf == "weight")).all(), n
        elif p.dim() == 4:  # Kaiming uniform with a = sqrt(5): 1 / sqrt(fan_in)
            bound = p[0].numel() ** -0.5
            assert p.abs().max() <= bound and p.std().item() == pytest.approx(bound / 3**0.5, rel=0.05), n
    assert model.no_weight_decay() == {"stages.1.downsample.position.table", "head.cls_token"}


def test_biases_are_where_the_release_has_them():
    names = {n for n, _ in backbones.create_model("volo_nano", device="meta").named_parameters()}
    assert {n.split(".")[-2] for n in names if ".attention." in n and n.endswith(".bias")} == {"logits", "proj"}


def test_drop_path_rises_over_all_blocks_but_spares_the_outlookers():
    model = backbones.create_model("volo_d1", drop_path_rate=0.1, device="meta")
    rates = [block.drop_path.drop_prob for stage in model.stages for block in stage.blocks]
    assert rates == pytest.approx([0] * 4 + [0.1 * i / 17 for i in range(4, 18)])


def test_logits_are_those_of_the_class_token_and_half_the_best_of_each_class(official):
    model, _ = official
    images = torch.randn(2, 3, 48, 64)
    last = model.forward_features(images)
    assert last.shape == (2, 96, 6, 8)
    x = last.permute(0, 2, 3, 1)
    tokens = torch.cat([model.head.cls_token.expand(2, -1, -1), x.flatten(1, 2)], 1)
    for block in model.head.blocks:
        normed = block.norm1(tokens)
        read = block.attention(normed[:, 0], normed[:, 1:].view_as(x))
        first = tokens[:, 0] + read
        tokens = torch.cat([(first + block.mlp(block.norm2(first)))[:, None], tokens[:, 1:]], 1)
    tokens = model.head.norm(tokens)
    logits = model.head.fc(tokens[:, 0]) + 0.5 * model.head.aux(tokens[:, 1:]).amax(1)
    torch.testing.assert_close(model(images), logits)
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), tokens[:, 0])
    model.reset_classifier(0, "avg")
    torch.testing.assert_close(model(images), tokens.mean(1))
    model.reset_classifier(0, "max")
    torch.testing.assert_close(model(images), tokens.amax(1))
    model.reset_classifier(0, "")
    torch.testing.assert_close(model(images), last)


def test_dense_backbones_norm_each_map_on_its_own(official):
    plain, file = official
    images = torch.randn(1, 3, 60, 45)
    for dense in ("detection", "segmentation"):
        model = backbones.create_model(
            "volo_nano", features_only=True, dense=dense, out_indices=(0, 3), checkpoint_path=file
        ).eval()
        norms = {n.split(".")[1] for n, _ in model.named_parameters() if n.startswith("model.norm")}
        assert norms == {"norm0", "norm3"} and not list(model.model.head.parameters())
        expected = plain.forward_intermediates(images, indices=[0, 3], intermediates_only=True)
        for y, e in zip(model(images), expected, strict=True):
            torch.testing.assert_close(y, F.layer_norm(e.movedim(1, -1), e.shape[1:2]).movedim(-1, 1))


@pytest.mark.parametrize("size", [(6, 7), (3, 4), (4, 6)])
def test_a_map_of_another_size_gets_the_interpolated_table(size):
    position = GridPosition((4, 6), 5)
    x = torch.randn(2, *size, 5)
    table = F.interpolate(position.table.permute(0, 3, 1, 2), size, mode="bicubic").permute(0, 2, 3, 1)
    torch.testing.assert_close(position(x), x + table)
    position.requires_grad_(False).set_grid(size)
    torch.testing.assert_close(position.table, table)
    assert not position.table.requires_grad


def test_checkpoints_of_another_size_and_age(official, tmp_path):
    model, file = official
    table = model.stages[1].downsample.position.table
    larger = backbones.create_model("volo_nano", img_size=64, checkpoint_path=file)
    expected = F.interpolate(table.permute(0, 3, 1, 2), (8, 8), mode="bicubic").permute(0, 2, 3, 1)
    torch.testing.assert_close(larger.stages[1].downsample.position.table, expected)
    # Any size gives what a model built for it gives; setting the size changes nothing but the table.
    images = torch.randn(1, 3, 64, 64)
    logits = model(images)
    torch.testing.assert_close(logits, larger.eval()(images))
    model.set_input_size(img_size=64)
    torch.testing.assert_close(model(images), logits)

    state = torch.load(file)["state_dict"]
    state["pos_embed"] = state["pos_embed"].flatten(1, 2)
    torch.save(state, tmp_path / "sequence.pth")
    assert torch.equal(
        backbones.create_model("volo_nano", checkpoint_path=tmp_path / "sequence.pth")
        .stages[1]
        .downsample.position.table,
        table,
    )
    state["pos_embed"] = torch.zeros(1, 17, 96)  # with a row for a class token, which the table has no place for
    torch.save(state, tmp_path / "class_row.pth")
    with pytest.raises(InputError, match=r"position.table \(\(1, 17, 96\) in the file"):
        backbones.create_model("volo_nano", checkpoint_path=tmp_path / "class_row.pth")


def test_a_last_odd_row_is_dropped_after_the_outlookers(official):
    model, _ = official
    images = torch.randn(1, 3, 36, 32, requires_grad=True)  # 9 x 8 fine tokens, 4 x 4 coarse ones
    fine, *coarse = model.forward_intermediates(images, intermediates_only=True)
    assert fine.shape[2:] == (9, 8) and {y.shape[2:] for y in coarse} == {(4, 4)}
    coarse[0].sum().backward()
    assert images.grad[:, :, 34:].any()  # the outlookers have seen it


def test_another_number_of_classes_zeroes_both_classifiers(official):
    model, file = official
    other = backbones.create_model("volo_nano", num_classes=7, checkpoint_path=file)
    assert len(other.head.fc.weight) == len(other.head.aux.bias) == 7
    assert not any(p.any() for layer in (other.head.fc, other.head.aux) for p in layer.parameters())
    none = backbones.create_model("volo_nano", num_classes=0, checkpoint_path=file).eval()
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(none(images), model.forward_head(model.forward_features(images), pre_logits=True))
    assert torch.equal(none.head.blocks[1].mlp.fc2.weight, model.head.blocks[1].mlp.fc2.weight)
    maps = backbones.create_model("volo_nano", num_classes=0, global_pool="", checkpoint_path=file).eval()
    torch.testing.assert_close(maps(images), model.forward_features(images))


def test_a_new_classifier_keeps_the_class_blocks(official):
    model, _ = official
    kept = {n: p for n, p in model.head.named_parameters() if not n.startswith(("fc", "aux"))}
    model.reset_classifier(5)
    parameters = dict(model.head.named_parameters())
    assert kept and all(parameters[n] is p for n, p in kept.items())
    assert len(parameters["fc.weight"]) == len(parameters["aux.weight"]) == 5


def test_the_gradient_of_a_single_image(official):
    """Batch norm before tokens, at batch 1: the step of the loss along the gradient is what the gradient says."""
    model = official[0].double().train()
    images = torch.randn(1, 3, 32, 48, dtype=torch.float64, requires_grad=True)
    fixed = torch.randn(1, 48, 8, 12, dtype=torch.float64)

    def loss(images):
        return (model.forward_intermediates(images, indices=[0], intermediates_only=True)[0] * fixed).sum()

    loss(images).backward()
    step = 1e-5 * torch.randn_like(images)
    with torch.no_grad():
        difference = loss(images + step) - loss(images - step)
    torch.testing.assert_close(difference, 2 * (images.grad * step).sum(), rtol=1e-6, atol=0)


def test_token_labelling_returns_both_logits_and_the_box(monkeypatch):
    model = backbones.create_model("volo_nano", num_classes=5, token_labelling=True)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # so that images do not meet in the statistics
    images = torch.randn(3, 3, 32, 48)
    monkeypatch.setattr("backbones.families.volo.random_box", lambda *_: torch.tensor([1, 2, 3, 6]))
    mixed = model(images)
    assert isinstance(mixed, TokenLogits) and mixed.box.tolist() == [1, 2, 3, 6]
    assert mixed.logits.shape == (3, 5) and mixed.token_logits.shape == (3, 24, 5)

    x = model.stem(images)
    x[:, 2:6, 4:12] = x.flip(0)[:, 2:6, 4:12].clone()
    for stage in model.stages:
        x = stage(x)
    class_token, tokens = model.head.pool(x.permute(0, 3, 1, 2))
    token_logits = model.head.aux(tokens).view(3, 4, 6, 5)
    token_logits[:, 1:3, 2:6] = token_logits.flip(0)[:, 1:3, 2:6].clone()
    torch.testing.assert_close(mixed.logits, model.head.fc(class_token))
    torch.testing.assert_close(mixed.token_logits, token_logits.flatten(1, 2))

    model.eval()
    assert model(images).shape == (3, 5)
    model.train()
    model.token_labelling = False
    monkeypatch.setattr("backbones.families.volo.random_box", lambda *_: torch.zeros(4, dtype=torch.long))
    plain, model.token_labelling = model(images), True
    unmixed = model(images)
    torch.testing.assert_close(plain, unmixed.logits + 0.5 * unmixed.token_logits.amax(1))


def test_boxes_lie_in_the_grid_and_have_every_size():
    boxes = torch.stack([random_box(6, 9, torch.device("cpu")) for _ in range(2000)])
    assert (boxes >= 0).all() and (boxes[:, 2] <= 6).all() and (boxes[:, 3] <= 9).all()
    assert (boxes[:, :2] <= boxes[:, 2:]).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.amin(0).tolist() == [0, 0] and sides.amax(0).tolist() == [4, 8]  # twice the half side, rounded down
    x = torch.arange(2.0)[:, None, None, None].expand(2, 6, 9, 1)
    taken = take_from_reversed(x, torch.tensor([1, 2, 3, 4]))
    assert taken[0].sum() == 4 and taken[0, 1:3, 2:4].all() and (taken.sum(0) == 1).all()


def test_token_labelling_compiles_to_one_graph_and_trains():
    model = backbones.create_model("volo_nano", num_classes=5, token_labelling=True)
    logits, token_logits, box = torch.compile(model, fullgraph=True, backend="aot_eager")(torch.randn(2, 3, 32, 32))
    (logits.square().sum() + token_logits.square().sum()).backward()
    assert all(p.grad is not None for p in model.parameters()) and box.shape == (4,)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (dict(depths=(1, 1)), r"a width, a depth and num_heads for each .* depths=\(1, 1\)"),
        (dict(dims=(48, 96, 96, 48)), "all stages but the first of one width"),
        (dict(patch_size=3), "an even patch_size, .* patch_size=3"),
        (dict(num_heads=(3, 3, 3, 5)), "96 channels cannot be split into 5 heads"),
        (dict(img_size=7), "leaves no token of 8 x 8 pixels"),
        (dict(global_pool="mean"), "global_pool is 'token', 'avg' or 'max'"),
        (dict(global_pool=""), "'' together with num_classes=0"),
        (dict(token_labelling=True, num_classes=0), "token_labelling trains two classifiers"),
    ],
)
def test_networks_that_cannot_be(wrong, said):
    with pytest.raises(InputError, match=said):
        backbones.create_model("volo_nano", **wrong)
