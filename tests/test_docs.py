"""docs/models.md says what the registry says, docs/dense.md what the experiments say, and examples run."""

import importlib.util
from pathlib import Path

import pytest

import backbones

DOCS = Path(__file__).parents[1] / "docs"
LINES = (DOCS / "models.md").read_text().splitlines()


def script_of(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
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
    script = script_of("make_models")
    names = [f"{family}_nano", backbones.list_models(f"{family}_*")[0]]
    for name in names:
        tag = next(iter(backbones.model_info(name)["tags"]), None)
        assert f"| {' | '.join(script.row(name, tag))} |" in LINES


@pytest.mark.slow
def test_the_whole_page_is_what_the_script_writes():
    script = script_of("make_models")
    text = "\n\n".join([script.HEAD.strip(), *map(script.section, backbones.list_families())])
    assert text.splitlines() == LINES


def test_dense_recipes_are_what_the_experiments_say():
    script, lines = script_of("make_dense"), (DOCS / "dense.md").read_text().splitlines()
    start = lines.index(script.HEAD) + 2
    rows = script.rows()
    assert len(rows) > 25 and lines[start : start + len(rows)] == rows
    assert not lines[start + len(rows)].startswith("|")


@pytest.mark.slow
@pytest.mark.parametrize("heading", ["timm", "segmentation_models_pytorch", "Hugging Face hub", "Quantisation"])
def test_examples_with_other_libraries_run(heading, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    section = (DOCS / "interop.md").read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]
    blocks = [block.partition("```")[0] for block in section.split("```python\n")[1:]]
    assert blocks
    for block in blocks:
        exec(block, {})
