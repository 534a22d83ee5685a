"""Train the nine nano networks on crops of two photographs, and draw docs/images/explain_*.png with them.

python docs/make_gallery.py

The photographs are the two in scikit-learn. What is in them is marked below by hand, in rectangles; crops around points
of these are the classes. The runs, about two minutes each on one core, are kept in runs/gallery and used again.
"""

import random
import subprocess
import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

import backbones

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "runs/gallery"
SIDE = 64  # pixels, of the networks' pictures
TRAIN, VAL = 60, 20  # crops of each class
# Photograph, where a crop's middle may be (left, top, right, bottom), and its least and largest side; in pixels.
CLASSES = {
    "pagoda": ("china.jpg", (110, 90, 310, 320), (90, 400)),
    "sky": ("china.jpg", (370, 40, 600, 120), (60, 160)),
    "trees": ("china.jpg", (380, 330, 600, 390), (60, 130)),
    "flower": ("flower.jpg", (240, 150, 380, 290), (90, 400)),
    "leaves": ("flower.jpg", (40, 60, 130, 380), (60, 160)),
}


def write_crops(folder: Path) -> None:
    """train/CLASS/*.png and val/CLASS/*.png, the same at every call."""
    draw = random.Random(0)
    for name, (photograph, middle, sides) in CLASSES.items():
        image = Image.fromarray(load_sample_image(photograph))
        for split, number in (("train", TRAIN), ("val", VAL)):
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(number):
                half = draw.uniform(*sides) / 2
                x, y = (draw.uniform(*middle[axis::2]) for axis in (0, 1))
                x, y = (min(max(v, half), limit - half) for v, limit in zip((x, y), image.size))
                crop = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, (x - half, y - half, x + half, y + half))
                crop.save(folder / split / name / f"{i:03}.png")


def trained(name: str) -> Path:
    """The run folder of a network that has learned the crops."""
    run = RUNS / name
    if not (run / "summary.json").exists():
        command = [sys.executable, ROOT / "train.py", f"backbone={name}", "data=imagefolder", f"run_dir={run}"]
        command += [f"data.root={RUNS / 'crops'}", f"data.img_size={SIDE}", "data.crop_pct=1.0", "data.workers=0"]
        command += ["recipe.augment.hflip=0.5", "recipe.augment.color_jitter=0.4", "trainer.epochs=10"]
        command += ["trainer.batch_size=30", "recipe.schedule.warmup_epochs=2", "resume=auto"]
        subprocess.run(command, check=True)
    return run


def main() -> None:
    if not (RUNS / "crops").exists():
        write_crops(RUNS / "crops")
    for family in backbones.list_families():
        trained(f"{family}_nano")


if __name__ == "__main__":
    main()
