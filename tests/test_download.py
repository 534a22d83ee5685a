"""Published weights from a web server on this machine, one that also breaks off, restarts and lies."""

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

import backbones
from backbones import InputError, registry
from backbones.download import download

CONTENT = bytes(range(256)) * 4000


class Server:
    """Serves `files` by name; `cuts` are the numbers of bytes after which it drops one connection each."""

    def __init__(self, files: dict[str, bytes]):
        self.files, self.cuts, self.ranges, self.requests = files, [], True, []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                outer.answer(self)

            def log_message(self, *arguments):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def answer(self, request) -> None:
        asked = request.headers.get("Range")
        self.requests.append(asked)
        content = self.files.get(request.path[1:].partition("?")[0])
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.ranges else 0
        if content is None or start >= max(1, len(content)):
            request.send_error(404 if content is None else 416)
            return
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(content) - start))
        request.end_headers()
        request.wfile.write(content[start : start + self.cuts.pop(0)] if self.cuts else content[start:])


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("backbones.download.PAUSE", 0)
    server = Server({"weights.pth": CONTENT})
    threading.Thread(target=server.http.serve_forever, daemon=True).start()
    yield server
    server.http.shutdown()
    server.http.server_close()


def test_a_file_is_fetched_once(server, tmp_path):
    path = download(f"{server.url}/weights.pth?download=1", tmp_path)
    assert path == tmp_path / "weights.pth" and path.read_bytes() == CONTENT
    assert download(f"{server.url}/weights.pth?download=1", tmp_path) == path
    assert server.requests == [None]


def test_an_interrupted_download_goes_on_where_it_stopped(server, tmp_path):
    server.cuts = [300_000, 200_000]
    assert download(f"{server.url}/weights.pth", tmp_path).read_bytes() == CONTENT
    assert server.requests == [None, "bytes=300000-", "bytes=500000-"]


def test_what_has_arrived_is_kept_for_the_next_call(server, tmp_path):
    server.cuts = [300_000] + [0] * 4
    with pytest.raises(InputError, match=r"300,000 of 1,024,000 bytes arrived.* continues where this stopped"):
        download(f"{server.url}/weights.pth", tmp_path)
    assert not (tmp_path / "weights.pth").exists()
    assert (tmp_path / "weights.pth.part").stat().st_size == 300_000
    assert download(f"{server.url}/weights.pth", tmp_path).read_bytes() == CONTENT
    assert server.requests[-1] == "bytes=300000-"


@pytest.mark.parametrize("kept", [len(CONTENT), len(CONTENT) + 5], ids=["all of it", "more than there is"])
def test_a_part_that_does_not_fit_is_fetched_anew(server, tmp_path, kept):
    (tmp_path / "weights.pth.part").write_bytes(b"x" * kept)
    assert download(f"{server.url}/weights.pth", tmp_path).read_bytes() == CONTENT


def test_a_server_that_cannot_continue_starts_again(server, tmp_path):
    server.cuts, server.ranges = [300_000], False
    assert download(f"{server.url}/weights.pth", tmp_path).read_bytes() == CONTENT


def test_two_that_want_one_file_share_it(server, tmp_path):
    with ThreadPoolExecutor() as pool:
        paths = set(pool.map(lambda _: download(f"{server.url}/weights.pth", tmp_path), range(4)))
    assert len(paths) == 1 and paths.pop().read_bytes() == CONTENT and len(server.requests) == 1


def test_no_such_file_and_no_server(server, tmp_path):
    with pytest.raises(InputError, match=r"missing.pth could not be downloaded .*404"):
        download(f"{server.url}/missing.pth", tmp_path)
    assert len(server.requests) == 1
    server.http.server_close()
    with pytest.raises(InputError, match=r"could not be downloaded .*refused"):
        download(f"{server.url}/weights.pth", tmp_path)


def test_pretrained_weights_are_downloaded_and_loaded(server, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    model = backbones.create_model("swin_nano")
    torch.save({"model": model.state_dict()}, tmp_path / "published.pth")
    server.files["swin_nano.pth"] = (tmp_path / "published.pth").read_bytes()
    cfg = registry._variants["swin_nano"].module.default_cfgs["swin_nano"].cfgs[""]
    monkeypatch.setattr(cfg, "url", f"{server.url}/swin_nano.pth")
    loaded = backbones.create_model("swin_nano", pretrained=True)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in loaded.state_dict().items())
    assert (tmp_path / "hub/checkpoints/swin_nano.pth").exists()

    other = backbones.create_model("swin_nano", pretrained=True, num_classes=7, in_chans=1, img_size=64)
    assert torch.equal(other.stem.proj.weight, model.stem.proj.weight.sum(1, keepdim=True))
    assert not other.head.fc.weight.any() and other(torch.randn(1, 1, 64, 64)).shape == (1, 7)


def test_weights_without_a_direct_download_say_where_they_are(monkeypatch):
    page = "https://example.org/share/weights"
    monkeypatch.setattr(registry, "checkpoints", lambda family, name: {"ms_in1k": {"page": page}})
    cfg = registry._variants["swin_t"].module.default_cfgs["swin_t"].cfgs["ms_in1k"]
    monkeypatch.setattr(cfg, "url", None)
    with pytest.raises(InputError, match=rf"Get the file from {page} with a browser, and pass its path"):
        backbones.create_model("swin_t", pretrained=True)
