"""Train the nine nano networks on crops of two photographs, and draw docs/images/explain_*.png with them.

python docs/make_gallery.py

The photographs are the two in scikit-learn. What is in them is marked below by hand, in rectangles; crops around points
of these are the classes. The runs, about two minutes each on one core, are kept in runs/gallery and used again.
"""

import random
import subprocess
import sys
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from sklearn.datasets import load_sample_image

import backbones
from backbones.explain import attention_of
from backbones.explain.panels import draw_attention, draw_channels
from backbones.explain.sheet import draw_sheet, draw_strip
from backbones.subject import Subject, View, load_subject, view_of

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
POINT = (262, 190)  # the query, in pixels of china.jpg
WEIGHTS = "trained for 10 epochs on 300 crops of this and another photograph"
# The panel of each family in the overview: its heading, a stage, counted from 1, and words of the title.
TELLING = {
    "biformer": ("BiFormer", 3, "regions"),
    "davit": ("DaViT", 3, "channels"),
    "dinat": ("DiNAT", 2, "apart"),
    "gcvit": ("GC ViT", 2, "global"),
    "l2vit": ("L²ViT", 3, "linear"),
    "litv2": ("LITv2", 3, "Lo-Fi"),
    "overlock": ("OverLoCK", 3, "large"),
    "swin": ("Swin", 2, "shifted"),
    "volo": ("VOLO", 1, "outlook"),
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


def picture(figure: Figure, name: str) -> None:
    """Write docs/images/explain_NAME.png in 256 colours, which takes half of the space."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=72, facecolor="white")
    image = Image.open(buffer).convert("RGB")
    image = image.quantize(palette=image.quantize(256), dither=Image.Dither.FLOYDSTEINBERG)
    image.save(ROOT / f"docs/images/explain_{name}.png", optimize=True)


def draw_gallery(shown: dict[str, tuple[Subject, View, tuple[float, float]]]) -> Figure:
    """What tells each family from the others, in one panel each."""
    figure = Figure(figsize=(13.2, 15.2), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    for axes, (family, (subject, view, point)) in zip(figure.subplots(3, 3).flat, shown.items()):
        name, stage, words = TELLING[family]
        found = attention_of(subject.model, view.image, point)
        entry = [e for e in found if e.stage == stage - 1 and words in e.title][-1]
        if entry.of_channels:
            draw_channels(axes, entry)
        else:
            draw_attention(axes, view, entry, point, subject.model.feature_info[entry.stage]["reduction"])
        axes.set_title(f"{name}\n{axes.get_title()}", fontsize=12.5)
    return figure


def main() -> None:
    if not (RUNS / "crops").exists():
        write_crops(RUNS / "crops")
    file = RUNS / "china.png"
    Image.fromarray(load_sample_image("china.jpg")).save(file)
    shown = {}
    for family in backbones.list_families():
        subject = load_subject(f"{family}_nano", trained(f"{family}_nano"))
        subject = replace(subject, weights=WEIGHTS)
        view = view_of(subject, file)
        shown[family] = subject, view, view.point(*POINT)
        picture(draw_strip(*shown[family]), family)
    picture(draw_gallery(shown), "gallery")
    picture(draw_sheet(*shown["dinat"], None, "What dinat_nano does with china.jpg"), "sheet")


if __name__ == "__main__":
    main()
