"""Write docs/models.md and docs/results/models.csv from the registry.

python docs/make_models.py
"""

import csv
import io
from functools import cache
from pathlib import Path
from typing import Any

import backbones
from backbones.published import checkpoints, facts

DOCS = Path(__file__).parent
HEAD = """# Models

All names of `backbones.list_models()`, family by family and there by size, written by `python docs/make_models.py`. The
same in one table with more columns, for a spreadsheet or pandas to sort, is [results/models.csv](results/models.csv).

Parameters and multiply-adds are counted on the model with a classifier of 1000 classes, the latter by PyTorch's flop
counter for one image of the input size. Top-1 is what the release publishes for ImageNet-1k. Weights marked "page" have
no direct download: fetch the file with a browser and pass it as `checkpoint_path`. Strides are those of the feature
maps.
"""
COLUMNS = ["model", "parameters, M", "GMACs", "input", "strides", "top-1, %", "weights", "licence of the weights"]


@cache
def record(name: str, tag: str | None) -> dict[str, Any]:
    """A line of the CSV: what is known of one checkpoint, or of a model without any."""
    info = backbones.model_info(f"{name}.{tag}" if tag else name)
    own = info["tags"].get(tag, {})
    return dict(
        family=info["family"],
        model=name,
        tag=tag,
        parameters_m=f"{info['parameters'] / 1e6:.2f}",
        gmacs=f"{info['macs'] / 1e9:.2f}",
        input_size=info["input_size"][-1],
        strides=" ".join(map(str, info["strides"])),
        top1=own.get("top1"),
        num_classes=own.get("num_classes"),
        crop_pct=own.get("crop_pct"),
        crop_mode=own.get("crop_mode", "center") if own else None,
        interpolation=own.get("interpolation"),
        licence_of_weights=own.get("licence"),
        licence_of_code=info["licence"]["code"],
        file=own.get("url"),
        page=own.get("page"),
        paper=info["paper"],
        code=info["code"],
    )


def row(name: str, tag: str | None) -> list[str]:
    """The cells of one checkpoint, or of a model without any."""
    info = record(name, tag)
    weights = f"[{'page' if info['page'] else 'file'}]({info['page'] or info['file']})" if tag else "–"
    if tag and info["num_classes"] != 1000:
        weights += f", {info['num_classes']:,} classes" if info["num_classes"] else ", classes not stated"
    return [
        f"`{name}.{tag}`" if tag else f"`{name}`",
        info["parameters_m"],
        info["gmacs"],
        f"{info['input_size']}×{info['input_size']}",
        info["strides"].replace(" ", ", "),
        f"{info['top1']:.1f}" if info["top1"] else "–",
        weights,
        info["licence_of_weights"] or "–",
    ]


def names_of(family: str) -> list[tuple[str, str | None]]:
    """Every (model, tag) of a family, in the order of its facts; None where a model has no weights."""
    names = [*facts(family)["published"], f"{family}_nano"]
    return [(name, tag) for name in names for tag in checkpoints(family, name) or [None]]


def section(family: str) -> str:
    """Heading, sources and table of a family."""
    about = facts(family)
    lines = [COLUMNS, ["---"] * len(COLUMNS), *(row(*names) for names in names_of(family))]
    paper = f"[{about['paper']}](https://arxiv.org/abs/{about['paper'].removeprefix('arXiv:')})"
    return "\n".join(
        [f"## {family}", "", f"Paper {paper}, official code <{about['code']}> ({about['licence']['code']}).", ""]
        + [f"| {' | '.join(cells)} |" for cells in lines]
    )


def page() -> str:
    """docs/models.md."""
    families = backbones.list_families()
    contents = "Families: " + ", ".join(f"[{family}](#{family})" for family in families) + "."
    return "\n\n".join([HEAD.strip(), contents, *map(section, families)]) + "\n"


def table() -> str:
    """docs/results/models.csv."""
    records = [record(*names) for family in backbones.list_families() for names in names_of(family)]
    text = io.StringIO()
    writer = csv.DictWriter(text, records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def main() -> None:
    (DOCS / "models.md").write_text(page())
    (DOCS / "results").mkdir(exist_ok=True)
    (DOCS / "results/models.csv").write_text(table())


if __name__ == "__main__":
    main()
