"""Maps of what a model does, and the sheet that shows them."""

import itertools

import numpy as np
import pytest
import torch
from matplotlib.text import Text
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch import nn

import backbones
from backbones.errors import InputError
from backbones.explain import attention_of, feature_norms, grad_cam, receptive_field
from backbones.explain.maps import half_sides
from backbones.explain.sheet import draw_sheet, draw_strip
from backbones.subject import load_subject, view_of

from .test_docs import DOCS, script_of
from .test_tools import tool  # noqa: F401


@pytest.fixture
def photograph(tmp_path):
    path = tmp_path / "china.png"
    Image.fromarray(load_sample_image("china.jpg")).resize((160, 107)).save(path)
    return path


def test_grad_cam_is_the_map_of_the_channels_that_speak_for_a_class():
    model = backbones.create_model("davit_nano", num_classes=2).eval().requires_grad_(False)
    image = torch.randn(1, 3, 40, 56)
    fc = nn.Linear(128, 2, bias=False)
    fc.weight.data = torch.zeros(2, 128)
    fc.weight.data[1, [5, 9]] = torch.tensor([2.0, -1.0])
    model.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc)
    model.forward_head = model.head.forward
    features = model.forward_features(image)[0]
    cam = grad_cam(model, image, 1)
    torch.testing.assert_close(cam, (2 * features[5] - features[9]).relu() / features[5].numel())
    assert cam.shape == features.shape[1:] and cam.any() and not grad_cam(model, image, 0).any()


@pytest.mark.parametrize("family", backbones.list_families())
def test_maps_of_every_family(family):
    model = backbones.create_model(f"{family}_nano", num_classes=3).eval()
    image = torch.randn(2, 3, 40, 56)
    norms = feature_norms(model, image[:1])
    sizes = [features.shape[2:] for features in model.forward_intermediates(image, intermediates_only=True)]
    assert [n.shape for n in norms] == sizes and all(n.min() > 0 for n in norms)
    for stage in (-1, 2):
        cam = grad_cam(model, image[:1], 0, stage)
        assert cam.shape == sizes[stage] and cam.min() >= 0 and cam.isfinite().all()
    field = receptive_field(model, image)
    assert field.shape == (40, 56) and field.min() >= 0 and abs(field.sum() - 1) < 1e-4


def test_the_middle_of_the_first_stage_sees_the_windows_around_it_alone():
    model = backbones.create_model("swin_nano").eval()
    field = receptive_field(model, torch.randn(1, 3, 64, 64), stage=0)
    assert (field[24:40, 24:40] > 0).all()  # windows of 4 x 4 tokens of 2 x 2 pixels
    field[24:40, 24:40] = 0
    assert not field.any()


def test_squares_hold_their_share():
    flat = torch.ones(100, 100)
    for half, share in zip(half_sides(flat), (0.5, 0.95)):
        assert abs((2 * half) ** 2 / 1e4 - share) < 0.03
    flat[49:51, 49:51] = 1e6
    assert half_sides(flat, (0.5,)) == [1.0]


def test_pictures_are_prepared_as_the_run_did(grey_run, photograph):
    subject = load_subject("swin_nano", grey_run)
    assert (subject.classes, subject.size, subject.mean) == (["cat", "dog", "7"], (48, 48), [0.5])
    assert [subject.label(name) for name in ("Dog", "7", "1")] == [1, 2, 1]  # a name goes before a number
    view = view_of(subject, photograph)
    assert view.image.shape == (1, 1, 48, 48) and view.box == (0, 0, 160, 107) and view.crops().shape[1:] == (1, 48, 48)
    expected = np.array(Image.open(photograph).convert("L").resize((48, 48), Image.Resampling.BICUBIC), np.float32)
    torch.testing.assert_close(view.image[0, 0], torch.from_numpy((expected / 255 - 0.5) / 0.2))
    assert view.point(80, 0) == (24, 0) and view.point(None, None) == (24, 24)


def test_published_weights_see_the_middle(photograph):
    subject = load_subject("davit_nano")
    view = view_of(subject, photograph)
    side = 107 * subject.crop_pct
    assert view.box == pytest.approx((80 - side / 2, 53.5 - side / 2, 80 + side / 2, 53.5 + side / 2))
    assert view.image.shape == (1, 3, 32, 32) and len(subject.classes) == 1000 and "random" in subject.weights
    with pytest.raises(InputError, match="outside of what the model sees"):
        view.point(3, 50)


@pytest.mark.parametrize("name", ["davit_nano", "l2vit_nano"])
def test_no_text_of_a_sheet_lies_on_another(name, photograph):
    subject = load_subject(name)
    view = view_of(subject, photograph)
    if name == "davit_nano":
        figure = draw_sheet(subject, view, (20, 9), None, f"What {name} does with {photograph.name}")
    else:
        figure = draw_strip(subject, view, (20, 9))
    figure.draw_without_rendering()
    width, height = figure.bbox.size
    boxes = {}
    for text in figure.findobj(Text):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent()
            assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height, text.get_text()
            boxes[text] = box
    assert len(boxes) > 30
    for one, other in itertools.combinations(boxes, 2):
        a, b = boxes[one], boxes[other]
        apart = min(a.x1, b.x1) - max(a.x0, b.x0) < 1 or min(a.y1, b.y1) - max(a.y0, b.y0) < 1
        assert apart, (one.get_text(), other.get_text())


def test_the_command_writes_a_sheet(tool, grey_run, photograph, tmp_path):  # noqa: F811
    sheet = tmp_path / "new/sheet.png"
    command = ["explain", "--backbone", "swin_nano", "--image", str(photograph)]
    file = str(grey_run / "checkpoints/best.safetensors")
    printed = tool(*command, "--checkpoint", file, "--output", str(sheet), "--point", "80", "40", "--class", "dog")
    assert str(sheet) in printed and file in printed
    assert min(Image.open(sheet).size) > 1000


def test_what_cannot_be_explained_is_said(tool, grey_run, photograph, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    here = ["--checkpoint", str(grey_run), "--image", str(photograph)]
    swin = ["explain", "--backbone", "swin_nano"]
    assert "trained with swin_nano, not with davit_nano" in tool("explain", "--backbone", "davit_nano", *here, code=2)
    assert "x from 0 to 160 and y from 0 to 107" in tool(*swin, *here, "--point", "160", "3", code=2)
    assert "no class 'dogg'. Did you mean dog?" in tool(*swin, *here, "--class", "dogg", code=2)
    assert "no class '3'" in tool(*swin, *here, "--class", "3", code=2)
    assert "End its name in .png" in tool(*swin, *here, "--output", "sheet.xyz", code=2)
    (tmp_path / "text.png").write_text("no picture")
    assert "text.png cannot be read" in tool(*swin, "--image", "text.png", code=2)
    assert "absent.png cannot be read" in tool(*swin, "--image", "absent.png", code=2)
    assert "no checkpoint at" in tool(*swin, "--checkpoint", "absent", "--image", str(photograph), code=2)
    state = backbones.create_model("swin_nano", num_classes=0).state_dict()
    save_file(state | {"head.fc.weight": torch.zeros(5, 192), "head.fc.bias": torch.zeros(5)}, "no_head.safetensors")
    assert "no classifier" in tool(*swin, "--checkpoint", "no_head.safetensors", "--image", str(photograph), code=2)
    (grey_run / "config.yaml").write_text("data: [")
    assert "config.yaml, cannot be read" in tool(*swin, *here, code=2)


@pytest.mark.parametrize("family", backbones.list_families())
def test_the_gallery_shows_what_tells_each_family_from_the_others(family):
    _, stage, words = script_of("make_gallery").TELLING[family]
    model = backbones.create_model(f"{family}_nano").eval()
    found = attention_of(model, torch.randn(1, 3, 64, 64), (20, 20))
    assert any(entry.stage == stage - 1 and words in entry.title for entry in found)
    page = (DOCS / "explain.md").read_text()
    for name in (family, "gallery", "sheet"):
        picture = DOCS / f"images/explain_{name}.png"
        assert picture.stat().st_size < 400_000 and f"images/{picture.name}" in page
