"""Print the table of dense recipes in docs/dense.md, from the comments that files of configs/experiment/ open with."""

import re
from pathlib import Path

EXPERIMENTS = Path(__file__).parents[1] / "configs/experiment"
HEAD = "| `experiment=` | published box and mask AP, or box AP, or mIoU |"


def rows() -> list[str]:
    """A line of Markdown for each family's experiment with boxes, masks or maps."""
    files = (f for f in EXPERIMENTS.glob("*/[!_]*.yaml") if not re.search(r"_in(1|22)k", f.name))
    return [f"| `{file.parent.name}/{file.stem}` | {'; '.join(results(file))} |" for file in sorted(files)]


def results(file: Path) -> list[str]:
    """What is published for each backbone, as the comments have it, or that nothing is."""
    found = []
    for line in file.read_text().splitlines():
        if line.startswith("#   "):
            setting, _, values = line.removeprefix("#   ").partition(": ")
            if "window_size" not in setting:  # a variation of the backbone before
                backbone = setting.split(" ")[0].removeprefix("backbone=")
                found.append(f"{backbone} {values or 'not published'}")
    return found


if __name__ == "__main__":
    print(HEAD, "|---|---|", *rows(), sep="\n")
