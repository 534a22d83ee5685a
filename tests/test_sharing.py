"""Models saved as folders and repositories, and built again by both factories."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlparse

import huggingface_hub
import pytest
import timm
import torch
import yaml

import backbones
from backbones import InputError

NANO = backbones.list_models("*_nano")
DILATIONS = [[1, 2], [1, 2], [1, 4], [1]]

# What differs from a name's defaults, in construction or afterwards.
CHANGED = {
    "swin_nano": dict(img_size=64, window_size=2),
    "litv2_nano": dict(alpha=0.5, window_size=[4, 2, 2, 1]),
    "biformer_nano": dict(num_regions=2, in_chans=1),
    "dinat_nano": dict(dilations=DILATIONS, drop_path_rate=0.5),
    "volo_nano": dict(img_size=(48, 64), global_pool="avg"),
    "gcvit_nano": dict(window_size=[4, 2, 2, 2], img_size=64),
    "davit_nano": dict(depths=[1, 2, 1, 1], global_pool="max"),
    "l2vit_nano": dict(window_size=2),
    "overlock_nano": dict(reparameterized=True),
}


def logits(model, images):
    with torch.no_grad():
        return model.eval()(images)


def built_again(folder, **arguments):
    """The model in a folder by each factory."""
    for factory in (backbones.create_model, timm.create_model):
        yield factory(f"local-dir:{folder}", pretrained=True, **arguments)


@pytest.mark.parametrize("name", NANO)
def test_a_saved_model_is_the_same_model(name, tmp_path):
    model = backbones.create_model(name, num_classes=7, **CHANGED[name])
    backbones.save_pretrained(model, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    images = torch.randn(2, model.in_chans, 64, 64)
    for again in built_again(tmp_path):
        assert again.num_classes == 7 and torch.equal(logits(again, images), logits(model, images))
    maps = model.forward_intermediates(images, intermediates_only=True)
    for features in built_again(tmp_path, features_only=True):
        assert all(torch.equal(y, e) for y, e in zip(features.eval()(images), maps, strict=True))
    for other in built_again(tmp_path, num_classes=3):
        assert torch.equal(other.eval().forward_features(images), model.forward_features(images))
        assert torch.equal(logits(other, images), torch.zeros(2, 3))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("swin_nano", lambda model: model.set_input_size(64, window_size=8)),
        ("gcvit_nano", lambda model: model.set_input_size(64)),
        ("volo_nano", lambda model: model.set_input_size((64, 48))),
        ("overlock_nano", lambda model: model.reparameterize()),
        ("l2vit_nano", lambda model: model.reset_classifier(9, "max")),
    ],
)
def test_changes_after_construction_are_saved(name, change, tmp_path):
    model = timm.create_model(name, num_classes=7)
    change(model)
    backbones.save_pretrained(model, tmp_path)
    images = torch.randn(2, 3, 64, 48)
    for again in built_again(tmp_path):
        assert torch.equal(logits(again, images), logits(model, images))


def test_timms_own_writer_and_no_weights(tmp_path):
    model = backbones.create_model("swin_nano", num_classes=7, window_size=2)
    timm.models.save_for_hf(model, tmp_path, model_args=dict(window_size=2))
    images = torch.randn(1, 3, 32, 32)
    for again in built_again(tmp_path):
        assert torch.equal(logits(again, images), logits(model, images))
    untrained = backbones.create_model(f"local-dir:{tmp_path}")
    assert untrained.num_classes == 7 and not torch.equal(logits(untrained, images), logits(model, images))


def test_preprocessing_and_labels_go_along(tmp_path):
    model = backbones.create_model("davit_nano", num_classes=2, img_size=48)
    model.pretrained_cfg["mean"] = (0.3, 0.3, 0.3)  # what it was trained with
    backbones.save_pretrained(model, tmp_path, model_config={"label_names": ["cat", "dog"]})
    again = backbones.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert list(again.pretrained_cfg["label_names"]) == ["cat", "dog"]
    ours, theirs = (timm.data.resolve_model_data_config(m) for m in (model, again))
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in theirs.items()} == ours  # JSON has no tuples
    assert ours["input_size"] == (3, 48, 48) and ours["mean"] == (0.3, 0.3, 0.3)


def card(folder):
    """The front matter and the text of a saved model's card."""
    _, front, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(front), text


def test_the_card_says_what_the_model_is(tmp_path):
    model = backbones.create_model("litv2_s", num_classes=10)
    backbones.save_pretrained(model, tmp_path, details={"Dataset": "digits", "Top-1": "99.7 %"})
    front, text = card(tmp_path)
    assert front["license"] == "apache-2.0" and front["library_name"] == "backbones" and front["datasets"] == ["digits"]
    published = backbones.model_info("litv2_s")
    parameters = published["parameters"] - 990 * 769  # ten of a thousand classes, 768 weights and a bias each
    for said in (f"{parameters:,}", "3.7", "2205.13213", published["code"], "99.7 %", "litv2_s.", "82.0 %"):
        assert said in text, said
    assert f'backbones.create_model("local-dir:{tmp_path}", pretrained=True)' in text


@pytest.mark.parametrize(("given", "said"), [(None, "other"), ("MIT", "mit"), ("Ask us first", "other")])
def test_the_licence_of_a_card(given, said, tmp_path):
    backbones.save_pretrained(backbones.create_model("swin_nano"), tmp_path, licence=given)
    front, text = card(tmp_path)
    assert front["license"] == said and f"weights:** {given or 'not stated'}\n" in text


def test_the_code_of_a_card_runs(tmp_path):
    from PIL import Image

    backbones.save_pretrained(backbones.create_model("l2vit_nano", num_classes=7), tmp_path)
    code = card(tmp_path)[1].split("```python\n")[1].split("```")[0]
    names = dict(picture=Image.new("RGB", (80, 60)), images=torch.zeros(1, 3, 64, 64))
    exec(code, names)
    assert names["logits"].shape == (1, 7) and len(names["maps"]) == 4


def test_what_cannot_be_saved_or_found_is_explained(tmp_path):
    with pytest.raises(InputError, match="got FeatureGetterNet"):
        backbones.save_pretrained(backbones.create_model("swin_nano", features_only=True), tmp_path)
    changed = backbones.create_model("swin_nano")
    changed.stem.proj = torch.nn.Conv2d(3, 16, 4, 4, bias=False)
    with pytest.raises(InputError, match=r"entries differ, such as stem\.proj"):
        backbones.save_pretrained(changed, tmp_path / "changed")
    with pytest.raises(InputError, match=r"no saved model in .*empty: it has no config\.json"):
        backbones.create_model(f"local-dir:{tmp_path}/empty")
    backbones.save_pretrained(backbones.create_model("swin_nano"), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(InputError, match="no weights in"):
        backbones.create_model(f"local-dir:{tmp_path}", pretrained=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architecture": "resnet18"}))
    with pytest.raises(InputError, match="no model named 'resnet18'"):
        backbones.create_model(f"local-dir:{tmp_path}")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as its client needs to make a repository, commit to it and read it."""

    files: dict[str, bytes]

    def answer(self, body: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:
        lines = self.rfile.read(int(self.headers["Content-Length"])).splitlines()
        url = f"http://{self.headers['Host']}/me/swin"
        action = urlparse(self.path).path.removeprefix("/api/")
        if action == "models/me/swin/preupload/main":
            asked = [file["path"] for file in json.loads(lines[0])["files"]]
            answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]}
        elif action == "models/me/swin/commit/main":
            for entry in map(json.loads, lines):
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            answer = {"commitUrl": f"{url}/commit/{'0' * 40}", "commitOid": "0" * 40}
        else:
            answer = {"url": url, "errors": [], "warnings": []}  # of making a repository, and of checking a card
        self.answer(json.dumps(answer).encode())

    def do_GET(self) -> None:
        name = urlparse(self.path).path.rpartition("/")[2]
        if name in self.files:
            self.answer(self.files[name], ETag=f'"{name}"', X_Repo_Commit="0" * 40)
        else:
            self.answer(b"", 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The files of the one repository of a hub on this machine, which the hub's client talks to."""
    handler = type("Handler", (Hub,), {"files": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    constants = huggingface_hub.constants
    for name in ("HUGGINGFACE_CO_URL_TEMPLATE", "ENDPOINT"):
        address = getattr(constants, name).replace(constants.ENDPOINT, f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setattr(constants, name, address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    yield handler.files
    server.shutdown()
    server.server_close()


def test_what_is_pushed_to_the_hub_comes_back(hub, tmp_path):
    model = backbones.create_model("swin_nano", num_classes=7, window_size=2)
    address = backbones.push_to_hub(model, "me/swin")
    assert "/me/swin/commit/" in address
    backbones.save_pretrained(model, tmp_path / "folder", source="hf-hub:me/swin")
    assert hub == {path.name: path.read_bytes() for path in (tmp_path / "folder").iterdir()}
    images = torch.randn(1, 3, 32, 32)
    for factory in (backbones.create_model, timm.create_model):
        again = factory("hf-hub:me/swin", pretrained=True)
        assert torch.equal(logits(again, images), logits(model, images))
    hub["README.md"] = b"written by hand"
    backbones.push_to_hub(model, "me/swin")
    assert hub["README.md"] == b"written by hand"
    del hub["config.json"]
    with pytest.raises(InputError, match="did not give or take the model me/other"):
        backbones.create_model("hf-hub:me/other")
