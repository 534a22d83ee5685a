"""The pages as a site and as files: links, pictures, navigation, and what is generated."""

import os
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import markdown
import pytest
import yaml

from .conftest import ROOT

DOCS = ROOT / "docs"
PAGES = [*ROOT.glob("*.md"), *DOCS.rglob("*.md")]
CONFIG = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


class Found(HTMLParser):
    """The links, pictures and anchors of a page."""

    def __init__(self, page: Path):
        super().__init__()
        self.targets, self.anchors = [], set()
        self.feed(markdown.markdown(page.read_text(), extensions=["tables", "fenced_code", "toc"]))

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attrs = dict(attrs)
        self.anchors |= {attrs["id"]} if "id" in attrs else set()
        self.targets += [attrs[name] for name in ("href", "src") if name in attrs]


def pages_of(nav: list | dict | str) -> list[str]:
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in pages_of(part)]


def broken(page: Path, root: Path) -> list[str]:
    """Links and pictures of a page that lead nowhere: in the repository, and, of pages of docs/, on the site."""
    wrong = []
    for target in Found(page).targets:
        url = urlsplit(target)
        if url.scheme:
            found = url.scheme in ("https", "mailto")
        else:
            file = Path(os.path.normpath(page.parent / unquote(url.path))) if url.path else page
            found = file.exists() and (page.parent == root or file.is_relative_to(root / "docs"))
            if found and url.fragment:
                found = url.fragment in Found(file).anchors
        wrong += [] if found else [target]
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_lead_somewhere(page):
    assert broken(page, ROOT) == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "docs/a/page.md"
    page.parent.mkdir(parents=True)
    for name in ("docs/other.md", "README.md", "docs/picture.png"):
        (tmp_path / name).write_text("# A heading\n")
    good = "[a](../other.md#a-heading) [b](#mine) ![c](../picture.png) [d](https://arxiv.org/abs/1)"
    bad = "[a](../other.md#no) [b](#no) ![c](../no.png) [d](../../README.md) [e](no.md) [f](http://a.b)"
    page.write_text(f"# Mine\n\n{good}\n\n{bad}\n\n```sh\n[x](no)\n```\n")
    expected = ["../other.md#no", "#no", "../no.png", "../../README.md", "no.md", "http://a.b"]
    assert broken(page, tmp_path) == expected


def test_every_page_is_in_the_navigation_once():
    assert sorted(pages_of(CONFIG["nav"])) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


def test_the_site_needs_no_network():
    """Nothing of the theme is fetched: no fonts, no scripts, no pictures."""
    assert CONFIG["theme"]["font"] is False and "extra_javascript" not in CONFIG
    assert all((DOCS / file).is_file() for file in CONFIG["extra_css"])
