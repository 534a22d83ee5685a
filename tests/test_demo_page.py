"""The demo's page in a real browser; `make test-demo` makes the environment that it needs, and runs this."""

import os
import shutil
import socket
import subprocess
import sys
import time
from io import BytesIO
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from training.data import Digits
from training.demo import overlay
from training.demo.networks import load_run

from .conftest import ROOT
from .test_demo import write_detector, write_digits

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")  # None: what `playwright install chromium` brought
QUIET = ("background-networking", "component-update", "sync", "quic", "gpu")  # what the browser does of its own accord
FLAGS = ["--no-sandbox", "--no-first-run", *(f"--disable-{name}" for name in QUIET)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of the digits, and one that finds a 3 everywhere."""
    folder = tmp_path_factory.mktemp("demo")
    return write_digits(folder / "digits"), write_detector(folder / "scenes")


@pytest.fixture(scope="module")
def address(runs):
    """Of the page, served by the real program; afterwards, it must have asked no other machine for anything."""
    pytest.importorskip("gradio", reason="needs Gradio, which `make test-demo` installs")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with socket.create_server(("127.0.0.1", 0)) as outside:  # where requests to other machines would arrive
        outside.setblocking(False)
        proxy = f"http://127.0.0.1:{outside.getsockname()[1]}"
        proxies = dict(http_proxy=proxy, https_proxy=proxy, all_proxy=proxy, no_proxy="127.0.0.1,localhost")
        command = [sys.executable, "-m", "training", "demo", "--port", str(port), *(f"--run={run}" for run in runs)]
        server = subprocess.Popen(command, cwd=ROOT, env=os.environ | proxies)
        try:
            wait_for(port, server)
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            server.wait(60)
        with pytest.raises(BlockingIOError):
            outside.accept()


def wait_for(port: int, server: subprocess.Popen) -> None:
    """Until the server listens."""
    for _ in range(600):
        assert server.poll() is None, "The server has ended."
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.5)
    raise TimeoutError("The server does not listen.")


@pytest.fixture
def page(address, tmp_path):
    """The page in a browser of its own; afterwards, every request must have gone to the server."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright, which `make test-demo` installs")
    playwright.expect.set_options(timeout=60_000)
    requests, errors = [], []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch_persistent_context(
            tmp_path / "profile", executable_path=BROWSER, args=FLAGS, viewport=dict(width=1280, height=1000)
        )
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: requests.append(urlsplit(request.url)))
        page.on("pageerror", lambda error: errors.append(error))
        page.goto(address)
        yield page
        browser.close()
    # The addresses of pictures that the browser has not sent yet begin with blob: or data:.
    hosts = {url.netloc for url in requests if url.scheme in ("http", "https", "ws", "wss")}
    assert hosts == {urlsplit(address).netloc} and not errors


def picture(page, number: int) -> np.ndarray:
    """The pixels of a picture on the page, counted from its top."""
    source = page.locator("img").nth(number).get_attribute("src")
    return np.asarray(Image.open(BytesIO(page.request.get(source).body())).convert("RGB"))


def fits(page) -> bool:
    """Whether nothing of the page lies beside the window."""
    return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_a_classifier_is_asked(page, runs, tmp_path):
    from playwright.sync_api import expect

    file, text = tmp_path / "digit.png", tmp_path / "text.png"
    Digits().splits()[1].picture(0).image().save(file)
    text.write_text("no picture")
    network = load_run(runs[0])
    seen = network.see(file)
    names = [network.task.classes[label] for label, _ in seen.likeliest]
    expect(page.get_by_text("swin_nano · classification · 10 classes of digits")).to_be_visible()

    page.set_input_files("input[type=file]", text)
    expect(page.get_by_text("text.png cannot be read (neither a JPEG nor anything else")).to_be_visible()
    page.set_input_files("input[type=file]", file)
    expect(page.get_by_text(f"What speaks for “{names[0]}”")).to_be_visible()
    expect(page.get_by_test_id("label-output-value")).to_have_text(names[0])
    bars = page.get_by_role("button").filter(has=page.locator("meter"))
    assert bars.locator("dt").all_inner_texts() == names

    # A click into the upper left quarter of the picture moves the cross there: to a place inside a token, as at the
    # quarter itself, where two meet, a pixel decides which one is asked.
    at = 9 / 32
    before = page.locator("img").nth(1).get_attribute("src")
    box = page.locator("img").nth(0).bounding_box()
    side = min(box["width"], box["height"])  # what is square lies in the middle
    place = [(box["width"] - side) / 2 + at * side, (box["height"] - side) / 2 + at * side]
    page.locator("img").nth(0).click(position=dict(zip("xy", place)))
    expect(page.locator("img").nth(1)).not_to_have_attribute("src", before)
    point = at * seen.picture.width, at * seen.picture.height
    found = network.attention(seen, point)
    drawn = np.asarray(overlay.draw_attention(network, seen, found[len(found) // 2], point)).astype(int)
    assert (np.abs(picture(page, 1) - drawn).max(2) > 0).mean() < 0.01  # of the cross, which may be a pixel beside

    page.get_by_label("Block of the network").click()
    options = page.get_by_role("option")
    assert options.count() == len(found)
    options.nth(0).click()
    expect(page.get_by_text("It sees 16 of 256 tokens of 2 × 2 pixels each")).to_be_visible()
    bars.nth(1).click()
    expect(page.get_by_text(f"What speaks for “{names[1]}”")).to_be_visible()
    assert fits(page)
    page.set_viewport_size(dict(width=390, height=800))
    assert fits(page)


def test_what_another_network_finds(page, runs):
    from playwright.sync_api import expect

    page.get_by_role("combobox", name="Network", exact=True).click()
    page.get_by_role("option", name=str(runs[1])).click()
    expect(page.get_by_text("swin_nano · detection · 10 classes of digit_scenes · not finished")).to_be_visible()
    page.get_by_role("button", name="Take a picture of its validation set").click()
    expect(page.get_by_text("Validation picture (scene")).to_be_visible()
    expect(page.locator("td").first).to_have_text("3")
    assert picture(page, 0).shape == (384, 480, 3)
    pixels = picture(page, 1).astype(int)
    assert (np.abs(pixels - (0xCC, 0x79, 0xA7)).sum(2) < 3).sum() > 100  # the colour of a 3
    assert page.get_by_text("Attention of the clicked point").count() == 0
