"""What the demo says and draws of a picture, and what it refuses; test_demo_page.py has the page itself."""

import json
import re
import socket
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

import backbones
import eval as evaluation
from backbones.errors import InputError
from backbones.explain import attention_of
from training.building import Recipe, build_task
from training.data import DATASETS, Digits
from training.demo import overlay
from training.demo.networks import Classifier, Finder, load_backbone, load_run, networks_of_runs
from training.engine import RunFolder

from .test_report import tool  # noqa: F401

SCENES = dict(name="digit_scenes", size=[64, 80], img_size=64, scale=[16.0, 32.0], train_scenes=2, val_scenes=2)
CAREFUL = "<b>a&b</b>"  # a class that is no HTML


def write_run(folder, task: dict, data: dict, classes: list[str], sure_of: int | None = None):
    """A run folder of a network that has learned nothing, as far as the demo looks at it.

    Args:
        sure_of: a label that a detector gives to everything.
    """
    config = dict(name="nothing", backbone=dict(name="swin_nano"), task=task, data=data, trainer=dict(epochs=1))
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    built = SimpleNamespace(
        backbone=config["backbone"], task=task, data=DATASETS[data["name"]](**data), recipe=Recipe()
    )
    built = build_task(built, classes)
    if sure_of is not None:
        built.model.get_parameter("detector.roi_heads.box_predictor.cls_score.bias").data[1 + sure_of] = 20
    state = {name: value.contiguous() for name, value in built.model.state_dict().items()}
    save_file(state, RunFolder(folder).best, built.metadata())
    return folder


def write_digits(folder):
    return write_run(folder, dict(name="classification"), dict(name="digits"), [*"0123456789"])


def write_detector(folder):
    task = dict(name="detection", head="faster_rcnn", width=32, hidden=32)
    return write_run(folder, task, SCENES, [*"0123456789"], sure_of=3)


@pytest.fixture
def classifier(tmp_path) -> Classifier:
    """A network for pictures of 64 x 64 pixels, of which it sees three quarters of the short side."""
    data = dict(name="imagefolder", img_size=64, crop_pct=0.75, root="gone")
    return load_run(write_run(tmp_path / "run", dict(name="classification"), data, ["cat", "dog", CAREFUL]))


@pytest.fixture
def picture(tmp_path):
    """160 x 96 pixels of noise."""
    path = tmp_path / "noise.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 160, 3), dtype=np.uint8)).save(path)
    return path


def test_a_run_answers_as_in_evaluation(call, tmp_path):
    run = write_digits(tmp_path / "run")
    (run / "summary.json").write_text(json.dumps(dict(top1=0.25, top5=0.5, loss=2.0)))
    upright = Digits().splits()[1].picture(0).image()
    upright.save("upright.png")
    sideways = upright.transpose(Image.Transpose.ROTATE_90)
    sideways.getexif()[0x0112] = 6  # to be turned clockwise
    sideways.save("sideways.png", exif=sideways.getexif())
    network = load_run(run)
    seen = network.see("upright.png")
    lines = call(evaluation, f"run={run}", "image=sideways.png").splitlines()
    assert [f"{share:7.2%}  {network.task.classes[label]}" for label, share in seen.likeliest] == lines
    assert "swin_nano · classification · 10 classes of digits · top-1 25.00%" in network.facts and network.has_cam
    sample, origin = network.sample(tmp_path)
    assert Image.open(sample).size == (32, 32) and re.fullmatch(
        r"Validation picture: “\d” \(digit \d+ of scikit-learn\)", origin
    )


def test_a_point_of_the_picture_is_a_point_of_what_the_network_gets(classifier, picture):
    seen = classifier.see(picture)
    assert seen.box == (44, 12, 116, 84) and seen.middle == (80, 48)
    assert seen.sees((44, 12)) and seen.sees((115, 83)) and not seen.sees((116, 40)) and not seen.sees((80, 11))
    for found, other in zip(
        classifier.attention(seen, (53, 30)), attention_of(classifier.backbone, seen.image, (8, 16))
    ):
        assert found.token == other.token and found.weights.equal(other.weights)
    assert found.token == (1, 0)


def test_colours_lie_where_the_token_looks(classifier, picture):
    """The first block of the first stage sees windows of 4 x 4 tokens of 2 x 2 pixels."""
    seen = classifier.see(picture)
    point = 44 + 72 * 20 / 64, 12 + 72 * 36 / 64
    found = classifier.attention(seen, point)[0]
    drawn = np.asarray(overlay.draw_attention(classifier, seen, found, point)).astype(int)
    assert drawn.shape == (288, 480, 3) and overlay.point_of(seen, (240, 33)) == (80, 11)
    coloured = np.ptp(drawn, 2) > 0
    rows, columns = np.flatnonzero(coloured.any(1)), np.flatnonzero(coloured.any(0))
    # The window holds pixels 16 to 24 of 64 across, and 32 to 40 down; a pixel of these has 72 / 64 of the picture's.
    expected = [3 * (12 + 36), 3 * (12 + 45) - 1, 3 * (44 + 18), 3 * (44 + 27) - 1]
    assert np.allclose([rows[0], rows[-1], columns[0], columns[-1]], expected, atol=1)
    x, y = (round(3 * place) for place in point)
    assert (drawn[y, x] == 255).all()
    inside = np.zeros(coloured.shape, bool)
    inside[36:252, 132:348] = True
    assert drawn[~inside].max() <= 0.3 * 255 + 1 and drawn[inside & ~coloured & (drawn.min(2) > 0)].min() >= 89
    text = overlay.attention_legend(classifier, found)
    assert "It sees 16 of 1024 tokens of 2 × 2 pixels each." in text and "all weights" not in text


def test_what_speaks_for_a_class(classifier, picture):
    seen = classifier.see(picture)
    cam = classifier.cam(seen, 2)
    drawn = np.asarray(overlay.draw_cam(classifier, seen, cam)).astype(int)
    coloured = np.ptp(drawn, 2) > 0
    assert coloured[36:252, 132:348].mean() > 0.99
    coloured[36:252, 132:348] = False
    assert not coloured.any()
    assert "&lt;b&gt;a&amp;b&lt;/b&gt;" in overlay.cam_legend(CAREFUL, cam)
    nothing = torch.zeros_like(cam)
    assert "Nothing speaks for it" in overlay.cam_legend("cat", nothing)
    overlay.draw_cam(classifier, seen, nothing)


def test_pictures_that_lie_on_their_side_and_have_a_border(tmp_path, picture):
    """A crop that is larger than the picture gives it a border, which has no place in what is drawn."""
    data = dict(name="imagefolder", img_size=64, crop_pct=1.25, channels=1, mean=[0.5], std=[0.2])
    network = load_run(write_run(tmp_path / "run", dict(name="linear_probe"), data, ["cat", "dog"]))
    turned = Image.open(picture)
    turned.getexif()[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif())
    seen = network.see(tmp_path / "turned.jpg")
    assert seen.picture.size == (96, 160) and seen.box == (-12, 20, 108, 140)
    assert not network.has_cam and "not finished" in network.facts
    found = network.attention(seen, (0, 20))[-1]
    assert overlay.draw_attention(network, seen, found, (0, 20)).size == (288, 480)


def test_what_is_found_is_drawn_and_listed(tmp_path, picture):
    network = load_run(write_detector(tmp_path / "run"))
    assert isinstance(network, Finder) and "detection · 10 classes of digit_scenes" in network.facts
    drawn, rows = network.find(picture)
    assert drawn.size == (480, 288) and rows and {row["label"] for row in rows} == {"3"}
    assert all(row.keys() == {"label", "score", "box"} and row["score"] >= 0.5 for row in rows)
    pixels = np.asarray(drawn).astype(int)
    assert (np.abs(pixels - (0xCC, 0x79, 0xA7)).sum(2) < 3).sum() > 100  # the colour of label 3
    table = overlay.table_of([dict(label=CAREFUL, box=[1.5, 2.0])])
    assert "<th>label</th><th>box</th>" in table and "<td>[1.5, 2.0]</td>" in table and CAREFUL not in table
    assert overlay.table_of([]) == "Nothing is found."
    sample, origin = network.sample(tmp_path)
    assert Image.open(sample).size == (80, 64) and origin.startswith("Validation picture (scene ")


def test_a_backbone_without_a_run(picture, tmp_path):
    network = load_backbone("davit_nano", None, False)
    seen = network.see(picture)
    assert len(seen.likeliest) == 5 and "1000 classes · weights: random, not trained" in network.facts
    assert not network.of_run
    assert all("channels" not in found.title for found in network.attention(seen, seen.middle))
    model = backbones.create_model("davit_nano", num_classes=3).eval()
    save_file(model.state_dict(), tmp_path / "three.safetensors", {"classes": '["cat", "dog", "7"]'})
    network = load_backbone("davit_nano", tmp_path / "three.safetensors", False)
    seen = network.see(picture)
    with torch.no_grad():
        expected = model(seen.image).softmax(1)[0]
    assert seen.likeliest == [
        (i, pytest.approx(expected[i].item())) for i in expected.argsort(descending=True).tolist()
    ]
    assert network.task.classes == ["cat", "dog", "7"]


def test_runs_are_found_in_folders(classifier, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other/config.yaml").write_text("a run that has no weights yet")
    one = str(tmp_path / "run")
    assert list(networks_of_runs([tmp_path])) == [one] == list(networks_of_runs([tmp_path / "run", tmp_path]))
    for path in ("other", "absent"):
        with pytest.raises(InputError, match="no run with weights in"):
            networks_of_runs([tmp_path / path])
    with pytest.raises(InputError, match="data folder gone does not exist"):
        classifier.sample(tmp_path)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=r"The picture .*text.png cannot be read \(neither a JPEG nor"):
        classifier.see(tmp_path / "text.png")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("crop_pct", "crop_percentage"))
    with pytest.raises(InputError, match="of another version, or damaged"):
        networks_of_runs([tmp_path])[one]()


def test_what_the_command_refuses(tool, classifier, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(sys.modules, "gradio", None)  # as where it is not installed
    assert "requirements-demo.txt" in tool("demo", "--run", tmp_path, "--port", 0, code=2)
    assert "--checkpoint and --pretrained go with" in tool("demo", "--run", tmp_path, "--pretrained", code=2)
    assert "no run with weights in nowhere" in tool("demo", "--run", "nowhere", code=2)
    assert "one of the arguments --run --backbone is required" in tool("demo", code=2)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = tool("demo", "--run", tmp_path, "--port", port, code=2)
        assert f"cannot be served at 127.0.0.1:{port}" in said and "Choose another --port" in said
