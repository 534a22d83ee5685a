"""NATTEN's dropped names on our kernels: against loops, in transformers' DiNAT, and beside a real NATTEN."""

import importlib
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import backbones
from backbones import InputError
from backbones.compat import natten
from backbones.compat.transformers import repair_dinat
from backbones.kernels.neighborhood import neighborhood_aggregate, neighborhood_attention, neighborhood_scores

from .conftest import examples
from .test_neighborhood import MAPS, window

sides = st.one_of(st.integers(0, 4), st.sampled_from([9, 19]))
maps = dict(kernel=st.sampled_from([3, 5]), dilation=st.integers(1, 3), more=st.tuples(sides, sides))


def loops(query, key, rpb, value, kernel, dilation):
    """NATTEN's scores before the softmax, and what they are weights of, (B, heads, H, W, ...), one by one."""
    scores, out = query.new_zeros(*query.shape[:4], kernel**2), torch.zeros_like(value)
    for y in range(query.shape[2]):
        rows, row_index = window(y, query.shape[2], kernel, dilation)
        for x in range(query.shape[3]):
            columns, column_index = window(x, query.shape[3], kernel, dilation)
            for i in range(kernel):
                for j in range(kernel):
                    near = (slice(None), slice(None), rows[i], columns[j])
                    score = (query[:, :, y, x] * key[near]).sum(-1) + rpb[:, row_index[i], column_index[j]]
                    scores[:, :, y, x, i * kernel + j] = score
                    out[:, :, y, x] += score[..., None] * value[near]
    return scores, out


@settings(max_examples=8, deadline=None)
@given(**maps, seed=st.integers(0, 99))
def test_the_split_operators_equal_loops(kernel, dilation, more, seed):
    torch.manual_seed(seed)
    height, width = (kernel * dilation + extra for extra in more)
    query, key, value = torch.randn(3, 1, 2, height, width, 2, dtype=torch.float64)
    rpb = torch.randn(2, 2 * kernel - 1, 2 * kernel - 1, dtype=torch.float64)
    expected, combined = loops(query, key, rpb, value, kernel, dilation)
    scores = natten.natten2dqkrpb(query, key, rpb, kernel, dilation)
    torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)
    out = natten.natten2dav(scores, value, kernel, dilation)
    torch.testing.assert_close(out, combined, rtol=1e-12, atol=1e-12)
    assert scores.is_contiguous() and out.is_contiguous()


def test_every_name_is_the_same_operator():
    query, key, value = torch.randn(3, 1, 2, 7, 9, 4)
    rpb = torch.randn(2, 5, 5)
    scores = natten.natten2dqkrpb(query, key, rpb, 3, 2)
    assert torch.equal(natten.na2d_qk(query, key, (3, 3), dilation=(2, 2), rpb=rpb), scores)
    assert torch.equal(natten.na2d_qk_with_bias(query, key, rpb, 3, 2), scores)
    plain = natten.na2d_qk(query, key, 3, 2)
    assert torch.equal(natten.natten2dqkrpb(query, key, None, 3, 2), plain) and not torch.equal(plain, scores)
    assert torch.equal(natten.na2d_av(scores, value, 3, dilation=2), natten.natten2dav(scores, value, 3, 2))


def test_scores_and_aggregation_are_attention():
    q, k, v = torch.randn(3, 2, 16, 11, 2, 4, dtype=torch.float64)
    bias = torch.randn(2, 5, 5, dtype=torch.float64)
    scores = neighborhood_scores(q, k, 3, 2, bias)
    whole = neighborhood_attention(q, k, v, 3, 2, bias)
    torch.testing.assert_close(neighborhood_aggregate(scores, v, 3, 2, softmax=True), whole)


@pytest.mark.parametrize(("height", "width", "kernel", "dilation"), MAPS)
def test_gradients_of_the_split_operators(height, width, kernel, dilation):
    shape = (1, 1, height, width)
    query, key = (torch.randn(*shape, 1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    rpb = torch.randn(1, 2 * kernel - 1, 2 * kernel - 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: natten.natten2dqkrpb(*x, kernel, dilation), (query, key, rpb))
    attn = torch.randn(*shape, kernel**2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: natten.natten2dav(*x, kernel, dilation), (attn, key))


def test_wrong_arguments_are_named():
    x = torch.zeros(1, 2, 12, 16, 4)
    with pytest.raises(ValueError, match=r"kernel_size \* dilation = 15 positions a side, but got 12 x 16"):
        natten.natten2dqkrpb(x, x, None, 5, 3)
    with pytest.raises(ValueError, match=r"kernel_size \* dilation = 15"):
        natten.natten2dav(torch.zeros(1, 2, 12, 16, 25), x, 5, 3)
    with pytest.raises(ValueError, match=r"bias of shape \(2, 9, 9\)"):
        natten.na2d_qk(x, x, 5, rpb=torch.zeros(2, 5, 5))
    with pytest.raises(ValueError, match="q and k of one shape"):
        natten.na2d_qk(x, x[:, :, 1:], 5)
    with pytest.raises(ValueError, match=r"\(B, heads, H, W, head_dim\), but got \(2, 12, 16, 4\)"):
        natten.na2d_qk(x[0], x[0], 5)
    with pytest.raises(ValueError, match="dilation is the same for rows and columns here"):
        natten.na2d_qk(x, x, 3, dilation=(1, 2))


@pytest.mark.parametrize("size", [(9, 11), (4, 8)])
def test_the_module_is_ours_by_nattens_names(size):
    theirs = natten.NeighborhoodAttention2D(8, 2, kernel_size=3, dilation=2, rel_pos_bias=True)
    ours = backbones.attention.NeighborhoodAttention(8, 2, 3, 2)
    state = theirs.state_dict()
    ours.load_state_dict({name.replace("rpb", "table"): value for name, value in state.items()})
    x = torch.randn(2, *size, 8)
    torch.testing.assert_close(theirs(x), ours(x))
    dropping = natten.NeighborhoodAttention2D(8, 2, 3, 2, attn_drop=1e-9)  # through the split operators
    dropping.load_state_dict(state)
    torch.testing.assert_close(dropping.train()(x), ours(x))
    plain = natten.NeighborhoodAttention2D(8, 2, 3, dilation=None, bias=False, qkv_bias=False)
    assert plain.rpb is None and plain.qkv.bias is None and plain(x).shape == x.shape


@pytest.fixture
def dinat(monkeypatch):
    """transformers' DiNAT on our natten, as shipped; repairs are taken back after the test."""
    utils = pytest.importorskip("transformers.utils")
    if "natten" not in sys.modules:
        assert not utils.is_natten_available()
    natten.install()
    assert utils.is_natten_available()
    from transformers.models.dinat import modeling_dinat

    attention = modeling_dinat.NeighborhoodAttention
    monkeypatch.setattr(attention, "forward", attention.forward)
    return modeling_dinat


SHARED = dict(depths=[2, 1, 1, 1], num_heads=[2, 4, 4, 4], kernel_size=3, dilations=[[1, 2], [1], [1], [1]])
SMALL = dict(embed_dim=8, drop_path_rate=0.0, **SHARED)
MINI = dict(embed_dim=64, depths=[3, 4, 6, 5], num_heads=[2, 4, 8, 16], kernel_size=7, dilations=None)


def build(cls, **arguments):
    from transformers import DinatConfig

    torch.manual_seed(0)
    model = cls(DinatConfig(**SMALL | arguments))
    for name, parameter in model.named_parameters():
        if ".attention." in name:  # so that it matters; the position tables are zero
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def test_code_for_natten_finds_our_names(dinat):
    for name in ("natten", "natten.functional", "natten.natten2d", "natten.na2d"):
        assert importlib.import_module(name) is natten
    assert natten.functional.natten2dqkrpb is dinat.natten2dqkrpb
    with pytest.raises(ModuleNotFoundError, match="'natten' is not a package"):
        importlib.import_module("natten.context")


@pytest.mark.parametrize("mixed", [False, True])
def test_dinat_model_trains(dinat, mixed):
    repair_dinat()
    model = build(dinat.DinatForImageClassification, num_labels=3, layer_scale_init_value=0.1)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        out = model(torch.randn(2, 3, 72, 104), labels=torch.tensor([0, 2]), output_attentions=True)
    assert out.logits.shape == (2, 3) and out.attentions[0].shape == (2, 2, 18, 26, 9)
    out.loss.backward()
    assert all(p.grad.abs().sum() > 0 for name, p in model.named_parameters() if "key.bias" not in name)


def test_dinat_backbone_gives_the_maps_of_ours(dinat):
    repair_dinat()
    theirs = build(dinat.DinatForImageClassification).eval()
    maps = build(dinat.DinatBackbone, out_features=["stage1", "stage2", "stage3", "stage4"]).eval()
    state = {k.removeprefix("dinat."): v for k, v in theirs.state_dict().items()}
    assert maps.load_state_dict(state, strict=False).missing_keys == [k for k in maps.state_dict() if k not in state]
    ours = backbones.create_model("dinat_m", dim=8, **SHARED, features_only=True).eval()
    converted = backbones.families.dinat.convert_checkpoint(theirs.state_dict())
    ours.model.load_state_dict({k: v for k, v in converted.items() if not k.startswith(("norm.", "head."))})
    images = torch.randn(2, 3, 72, 104)
    for their, our in zip(maps(images).feature_maps, ours(images), strict=True):
        torch.testing.assert_close(their, F.layer_norm(our.movedim(1, 3), our.shape[1:2]).movedim(3, 1))


@pytest.mark.parametrize("layer_scale", [0.0, 0.1])
def test_checkpoints_of_transformers_load_and_give_the_same_logits(dinat, layer_scale, tmp_path):
    repair_dinat()
    theirs = build(dinat.DinatForImageClassification, layer_scale_init_value=layer_scale, num_labels=5).eval()
    theirs.save_pretrained(tmp_path)
    ours = backbones.create_model(
        "dinat_m",
        checkpoint_path=tmp_path / "model.safetensors",
        num_classes=5,
        dim=8,
        layer_scale=layer_scale or None,
        **SHARED,
    ).eval()
    images = torch.randn(2, 3, 72, 104)
    torch.testing.assert_close(theirs(images).logits, ours(images))


def test_dinat_mini_is_ours_once_repaired(dinat, tmp_path):
    """At the size of the release, where its widest window just fits, and below, where maps are filled up."""
    repair_dinat()
    theirs = build(dinat.DinatForImageClassification, **MINI).eval()
    theirs.save_pretrained(tmp_path)
    ours = backbones.create_model("dinat_m", num_classes=2, checkpoint_path=tmp_path / "model.safetensors").eval()
    images = torch.randn(1, 3, 192, 224)
    with torch.no_grad():
        torch.testing.assert_close(theirs(images).logits, ours(images), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_the_examples_of_the_docs_run_in_a_fresh_process():
    check = "assert [tuple(y.shape) for y in maps] == [(1, 128, 28, 28), (1, 512, 7, 7)]"
    subprocess.run([sys.executable, "-c", examples("NATTEN's names") + check], check=True)


def test_without_the_repair_it_fails_or_is_wrong(dinat):
    """As long as this test passes, the repair is needed."""
    images = torch.randn(1, 3, 72, 104)
    with pytest.raises(ValueError, match="neighborhood_scores expects"):
        build(dinat.DinatModel)(images)
    heads = dict(embed_dim=16, depths=[1], num_heads=[4], dilations=[[1]])
    model = build(dinat.DinatModel, **heads).eval()
    images = torch.randn(1, 3, 12, 16)  # a map of 3 x 4 tokens, as wide as there are heads
    shipped = model(images).last_hidden_state
    repair_dinat()
    right = model(images).last_hidden_state
    assert shipped.shape == right.shape and (shipped - right).abs().max() > 0.1


def test_an_installed_natten_stays(dinat, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "natten"]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InputError, match=r"DiNAT was imported before .* Call install\(\) first"):
        natten.install()
    (tmp_path / "natten.py").write_text("__version__ = '0.21.6'")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match="NATTEN is installed here"):
        natten.install()
    import natten as installed

    assert installed.__version__ == "0.21.6"
    with pytest.raises(InputError, match="NATTEN is installed here"):
        natten.install()


def test_no_transformers_is_explained(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("transformers.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(InputError, match="There is no transformers to repair"):
        repair_dinat()
