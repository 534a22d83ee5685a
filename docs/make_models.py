"""Write docs/models.md from the registry.

python docs/make_models.py
"""

from pathlib import Path

import backbones
from backbones.published import checkpoints, facts

HEAD = """# Models

All names of `backbones.list_models()`, written by `python docs/make_models.py`.

Parameters and multiply-adds are counted on the model with a classifier of 1000 classes, the latter by PyTorch's flop
counter for one image of the input size. Top-1 is what the release publishes for ImageNet-1k. Weights marked "page" have
no direct download: fetch the file with a browser and pass it as `checkpoint_path`. Strides are those of the feature
maps.
"""
COLUMNS = ["model", "parameters, M", "GMACs", "input", "strides", "top-1, %", "weights", "licence of the weights"]


def row(name: str, tag: str | None) -> list[str]:
    """The cells of one checkpoint, or of a model without any."""
    full = f"{name}.{tag}" if tag else name
    info = backbones.model_info(full)
    own = info["tags"].get(tag, {})
    weights = f"[{'page' if 'page' in own else 'file'}]({own.get('page') or own['url']})" if own else "–"
    if own and own["num_classes"] != 1000:
        weights += f", {own['num_classes']:,} classes" if own["num_classes"] else ", classes not stated"
    return [
        f"`{full}`",
        f"{info['parameters'] / 1e6:.2f}",
        f"{info['macs'] / 1e9:.2f}",
        "×".join(map(str, info["input_size"][1:])),
        ", ".join(map(str, info["strides"])),
        f"{own['top1']:.1f}" if own.get("top1") else "–",
        weights,
        own["licence"] if own else "–",
    ]


def section(family: str) -> str:
    """Heading, sources and table of a family."""
    about = facts(family)
    names = [*about["published"], f"{family}_nano"]
    rows = [row(name, tag) for name in names for tag in checkpoints(family, name) or [None]]
    lines = [COLUMNS, ["---"] * len(COLUMNS), *rows]
    paper = f"[{about['paper']}](https://arxiv.org/abs/{about['paper'].removeprefix('arXiv:')})"
    return "\n".join(
        [f"## {family}", "", f"Paper {paper}, official code <{about['code']}> ({about['licence']['code']}).", ""]
        + [f"| {' | '.join(cells)} |" for cells in lines]
    )


def main() -> None:
    text = "\n\n".join([HEAD.strip(), *map(section, backbones.list_families())]) + "\n"
    (Path(__file__).parent / "models.md").write_text(text)


if __name__ == "__main__":
    main()
