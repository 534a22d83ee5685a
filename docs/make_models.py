"""Write what the registry and the experiments say.

That is docs/models.md, docs/results/models.csv, and the marked tables of docs/families/*.md.

python docs/make_models.py
"""

import csv
import io
import re
from functools import cache
from pathlib import Path
from typing import Any

import backbones
from backbones.published import checkpoints, facts

DOCS = Path(__file__).parent
EXPERIMENTS = DOCS.parent / "configs/experiment"
HEAD = """# All models

The names of `backbones.list_models()`, written by `python docs/make_models.py`. A family's page has its checkpoints,
their licences, and how it was trained; [results/models.csv](results/models.csv) has all of it, for a spreadsheet or
pandas to sort.

Parameters and multiply-adds are counted on the model with a classifier of 1000 classes, the latter by PyTorch's flop
counter for one image of the input size. Strides are those of the feature maps. Top-1 is what the release publishes for
ImageNet-1k, of the weights that `pretrained=True` takes.
"""
MODELS = ["model", "family", "parameters, M", "GMACs", "input", "strides", "top-1, %", "checkpoints"]
WEIGHTS = ["weights", "parameters, M", "GMACs", "input", "top-1, %", "file"]


def table(columns: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))


def names(family: str) -> list[str]:
    """The models of a family, in the order of the release; then ours."""
    return [*facts(family)["published"], f"{family}_nano"]


def counts(info: dict) -> list[str]:
    return [f"{info['parameters'] / 1e6:.2f}", f"{info['macs'] / 1e9:.2f}", "×".join(map(str, info["input_size"][1:]))]


def top1(checkpoint: dict) -> str:
    return f"{checkpoint['top1']:.1f}" if checkpoint.get("top1") else "–"


@cache
def info(name: str) -> dict:
    return backbones.model_info(name)


def full_names(family: str, name: str) -> list[str]:
    """A model's checkpoints, or the model alone where there are none."""
    return [f"{name}.{tag}" for tag in checkpoints(family, name)] or [name]


def model_row(family: str, name: str) -> list[str]:
    """The cells of a model in docs/models.md."""
    about = info(full_names(family, name)[0])
    tags, strides = list(about["tags"].values()), ", ".join(map(str, about["strides"]))
    published = [top1(tags[0]), str(len(tags))] if tags else ["–", "–"]
    return [f"`{name}`", f"[{family}](families/{family}.md)", *counts(about), strides, *published]


def weights_row(full: str) -> list[str]:
    """The cells of a checkpoint, or of a model without any, on its family's page."""
    about = info(full)
    own = about["tags"].get(full.partition(".")[2], {})
    file = f"[{'page' if 'page' in own else 'file'}]({own.get('page') or own['url']})" if own else "–"
    if own and own["num_classes"] != 1000:
        file += f", {own['num_classes']:,} classes" if own["num_classes"] else ", classes not stated"
    return [f"`{full}`", *counts(about), top1(own), file]


def weights(family: str) -> str:
    """Sources, licence and table of a family's checkpoints."""
    about = facts(family)
    paper = f"[{about['paper']}](https://arxiv.org/abs/{about['paper'].removeprefix('arXiv:')})"
    licence = about["licence"]
    rows = [weights_row(full) for name in names(family) for full in full_names(family, name)]
    return (
        f"Paper {paper}, official code <{about['code']}>.\nLicence of the code: {licence['code']}; of the weights: "
        f"{licence['weights']}.\n\n{table(WEIGHTS, rows)}"
    )


def recipes(family: str) -> str:
    """A table of a family's classification experiments, from the comments that their files open with."""
    rows = []
    for file in sorted((EXPERIMENTS / family).glob("[!_]*.yaml")):
        if re.search(r"_in(1|22)k", file.name):
            _, command, result, setting = (line.lstrip("# ") for line in file.read_text().splitlines()[:4])
            needs = "`backbone.checkpoint_path=FILE`" if "checkpoint_path" in command else "–"
            setting = setting.removesuffix(" Not run here.").removesuffix(".").removeprefix("Published for ")
            rows.append([f"`{family}/{file.stem}`", result, setting, needs])
    return "What is published is quoted; none of it was run here.\n\n" + table(
        ["`experiment=`", "published result", "published for", "starts from"], rows
    )


def with_section(page: str, name: str, text: str) -> str:
    """A page with what is between the comments `<!-- name -->` and `<!-- /name -->` replaced."""
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = page.partition(begin)
    return before + begin + "\n" + text + "\n\n" + end + rest.partition(end)[2]


def record(full: str) -> dict[str, Any]:
    """A line of the CSV: what is known of a checkpoint, or of a model without any."""
    name, _, tag = full.partition(".")
    about = info(full)
    own = about["tags"].get(tag, {})
    return dict(
        family=about["family"],
        model=name,
        tag=tag,
        parameters_m=f"{about['parameters'] / 1e6:.2f}",
        gmacs=f"{about['macs'] / 1e9:.2f}",
        input_size=about["input_size"][-1],
        strides=" ".join(map(str, about["strides"])),
        top1=own.get("top1"),
        num_classes=own.get("num_classes"),
        crop_pct=own.get("crop_pct"),
        crop_mode=own.get("crop_mode", "center") if own else None,
        interpolation=own.get("interpolation"),
        licence_of_weights=own.get("licence"),
        licence_of_code=about["licence"]["code"],
        file=own.get("url"),
        page=own.get("page"),
        paper=about["paper"],
        code=about["code"],
    )


def models_csv() -> str:
    everything = [(family, name) for family in backbones.list_families() for name in names(family)]
    records = [record(full) for family, name in everything for full in full_names(family, name)]
    text = io.StringIO()
    writer = csv.DictWriter(text, records[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def models_page() -> str:
    rows = [model_row(family, name) for family in backbones.list_families() for name in names(family)]
    return f"{HEAD}\n{table(MODELS, rows)}\n"


def family_page(page: str, family: str) -> str:
    return with_section(with_section(page, "models", weights(family)), "recipes", recipes(family))


def main() -> None:
    (DOCS / "models.md").write_text(models_page())
    (DOCS / "results/models.csv").write_text(models_csv())
    for family in backbones.list_families():
        file = DOCS / f"families/{family}.md"
        file.write_text(family_page(file.read_text(), family))


if __name__ == "__main__":
    main()
