"""What scripts write into the pages is up to date: models and recipes of families, dense recipes, the API."""

import csv
import importlib.util
import re
from pathlib import Path

import pytest

import backbones

DOCS = Path(__file__).parents[1] / "docs"


def script_of(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines_of(page):
    return (DOCS / page).read_text().splitlines()


def listed(page):
    """Models and checkpoints in the first column of a page's tables."""
    first = [line.split("`")[1] for line in lines_of(page) if line.startswith("| `")]
    return [name for name in first if not re.search("[/=]", name)]


def test_every_model_is_listed_once():
    assert sorted(listed("models.md")) == sorted(backbones.list_models())


def test_every_checkpoint_is_a_line_of_the_csv():
    rows = list(csv.DictReader((DOCS / "results/models.csv").read_text().splitlines()))
    expected = [
        full for name in backbones.list_models() for full in backbones.list_models(name, pretrained=True) or [name]
    ]
    assert sorted(".".join(filter(None, (row["model"], row["tag"]))) for row in rows) == sorted(expected)


@pytest.mark.parametrize("family", backbones.list_families())
def test_a_family_has_a_page_with_what_the_script_writes(family):
    """All its checkpoints and recipes, and of the counted figures those of a released model and of the nano."""
    script, page = script_of("make_models"), f"families/{family}.md"
    expected = [full for name in script.names(family) for full in script.full_names(family, name)]
    assert listed(page) == expected
    assert f"\n\n{script.recipes(family)}\n\n" in (DOCS / page).read_text()
    for name in script.names(family)[:: len(script.names(family)) - 1]:
        assert script.table(script.MODELS, [script.model_row(family, name)]).splitlines()[-1] in lines_of("models.md")
        full = script.full_names(family, name)[0]
        assert script.table(script.WEIGHTS, [script.weights_row(full)]).splitlines()[-1] in lines_of(page)
    text = (DOCS / page).read_text()
    assert f"images/explain_{family}.png" in text and "## Traps" in text and "```bibtex" in text


@pytest.mark.slow
def test_all_of_the_pages_is_what_the_script_writes():
    script = script_of("make_models")
    assert script.models_page() == (DOCS / "models.md").read_text()
    assert script.models_csv() == (DOCS / "results/models.csv").read_text()
    for family in backbones.list_families():
        page = (DOCS / f"families/{family}.md").read_text()
        assert script.family_page(page, family) == page


def test_dense_recipes_are_what_the_experiments_say():
    script, lines = script_of("make_dense"), lines_of("dense.md")
    start = lines.index(script.HEAD) + 2
    rows = script.rows()
    assert len(rows) > 25 and lines[start : start + len(rows)] == rows
    assert not lines[start + len(rows)].startswith("|")


def test_the_api_is_what_the_docstrings_say():
    assert script_of("make_api").page() == (DOCS / "api.md").read_text()
