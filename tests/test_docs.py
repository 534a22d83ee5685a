"""docs/models.md says what the registry says, docs/dense.md what the experiments say."""

import csv
import importlib.util
from pathlib import Path

import pytest

import backbones
from backbones.published import checkpoints

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
    rows = list(csv.DictReader((DOCS / "results/models.csv").read_text().splitlines()))
    assert [".".join(filter(None, (row["model"], row["tag"]))) for row in rows] == listed


@pytest.mark.parametrize("family", backbones.list_families())
def test_rows_are_what_the_script_writes(family):
    """Of the first model with weights; swin_nano, which has none, stands for the others of its kind."""
    script = script_of("make_models")
    names = [backbones.list_models(f"{family}_*")[0], *(["swin_nano"] if family == "swin" else [])]
    for name in names:
        tag = next(iter(checkpoints(family, name)), None)
        assert f"| {' | '.join(script.row(name, tag))} |" in LINES


@pytest.mark.slow
def test_the_whole_page_is_what_the_script_writes():
    script = script_of("make_models")
    assert script.page().splitlines() == LINES
    assert script.table() == (DOCS / "results/models.csv").read_text()


def test_dense_recipes_are_what_the_experiments_say():
    script, lines = script_of("make_dense"), (DOCS / "dense.md").read_text().splitlines()
    start = lines.index(script.HEAD) + 2
    rows = script.rows()
    assert len(rows) > 25 and lines[start : start + len(rows)] == rows
    assert not lines[start + len(rows)].startswith("|")
