"""What docs/dense.md shows, from its sources.

python docs/make_dense.py           print the table of recipes, from the comments that configs/experiment/ opens with
python docs/make_dense.py RUN …     write docs/images/dense_TASK.png, of the validation pictures that each run drew last
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
EXPERIMENTS = ROOT / "configs/experiment"
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


def picture(run: Path) -> Path:
    """Write the upper half of a run's last sheet, which is enough to see, in 256 colours."""
    task = json.loads((run / "summary.json").read_text())["task"]
    sheet = Image.open(max((run / "samples").glob("*.png"))).convert("RGB")
    white = np.flatnonzero(np.asarray(sheet).min(axis=(1, 2)) == 255)  # lines between rows of pictures
    sheet = sheet.crop((0, 0, sheet.width, int(white[white <= sheet.height // 2].max())))
    file = ROOT / f"docs/images/dense_{task}.png"
    sheet.quantize(256, dither=Image.Dither.NONE).save(file, optimize=True)
    return file


if __name__ == "__main__":
    if runs := sys.argv[1:]:
        print(*(picture(Path(run)) for run in runs), sep="\n")
    else:
        print(HEAD, "|---|---|", *rows(), sep="\n")
