"""docs/models.md says what the registry says."""

import importlib.util
from pathlib import Path

import pytest

import backbones

DOCS = Path(__file__).parents[1] / "docs"
LINES = (DOCS / "models.md").read_text().splitlines()


def make_models():
    spec = importlib.util.spec_from_file_location("make_models", DOCS / "make_models.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_model_and_checkpoint_is_listed_once():
    listed = [line.split("`")[1] for line in LINES if line.startswith("| `")]
    expected = []
    for name in backbones.list_models():
        expected += backbones.list_models(name, pretrained=True) or [name]
    assert sorted(listed) == sorted(expected)


@pytest.mark.parametrize("family", backbones.list_families())
def test_rows_are_what_the_script_writes(family):
    script = make_models()
    names = [f"{family}_nano", backbones.list_models(f"{family}_*")[0]]
    for name in names:
        tag = next(iter(backbones.model_info(name)["tags"]), None)
        assert f"| {' | '.join(script.row(name, tag))} |" in LINES


@pytest.mark.slow
def test_the_whole_page_is_what_the_script_writes():
    script = make_models()
    text = "\n\n".join([script.HEAD.strip(), *map(script.section, backbones.list_families())])
    assert text.splitlines() == LINES
