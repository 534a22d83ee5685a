"""Images per second of the training loader beside timm's, in one process and one thread, on the same JPEGs.

    python benchmarks/data.py                     224 pixels, bicubic and bilinear, with and without RandAugment
    python benchmarks/data.py --smoke             a few pictures and one round; the figures mean nothing

The JPEGs are random views of two photographs, 500 x 375, quality 92. Both sides read, decode, crop, flip, augment and
collate them, erase rectangles (probability 0.25) and normalise, without worker processes. Seconds are those of the
processor, so that the figures are per core, also on a machine that does other things. A round is an epoch of each side
in turn. Printed are medians of all rounds, the ratio, and the time of each stage of ours. The figures go into a JSON
file as well.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path

import measure
import numpy as np
import timm.data
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images
from timm.data import auto_augment

from training.data import AugmentSettings, BadImages, ImageFolder, LabelledPictures, Loader, Picture, training_transform
from training.seeding import seed_everything
from training.tasks import Classification, RegularizeSettings

IMG_SIZE = 224
BATCH = 32
ERASING = 0.25
CASES = {
    f"{interpolation}, {policy or 'no RandAugment'}": (interpolation, policy)
    for interpolation in ("bicubic", "bilinear")
    for policy in ("rand-m9-mstd0.5-inc1", None)
}


def write_pictures(folder: Path, count: int) -> None:
    """ROOT/{train,val}/photo/*.jpg, each a random view of a photograph."""
    draw = random.Random(0)
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for part in ("train", "val"):
        (folder / part / "photo").mkdir(parents=True)
    for i in range(count):
        photograph = photographs[i % 2]
        width = draw.uniform(0.6, 0.88) * photograph.width
        height = width * 3 / 4
        x, y = draw.uniform(0, photograph.width - width), draw.uniform(0, photograph.height - height)
        view = photograph.resize((500, 375), Image.Resampling.BICUBIC, box=(x, y, x + width, y + height))
        view = ImageOps.mirror(view) if draw.random() < 0.5 else view
        view.save(folder / "train/photo" / f"{i:04}.jpg", quality=92)
    view.save(folder / "val/photo/0.jpg")


def timms(folder: Path, interpolation: str, policy: str | None) -> measure.Run:
    """An epoch of timm's loader."""
    loader = timm.data.create_loader(
        timm.data.ImageDataset(str(folder / "train")),
        IMG_SIZE,
        BATCH,
        is_training=True,
        re_prob=ERASING,
        re_mode="pixel",
        color_jitter=None,
        auto_augment=policy,
        interpolation=interpolation,
        num_workers=0,
        device=torch.device("cpu"),
    )

    def run() -> None:
        for images, _ in loader:
            assert images.dtype == torch.float32

    return run


def ours(folder: Path, interpolation: str, policy: str | None) -> measure.Run:
    """An epoch of our loader, and what the task does on the device: normalise."""
    data = ImageFolder(root=str(folder), img_size=IMG_SIZE)
    augment = AugmentSettings(auto_augment=policy, interpolation=interpolation, random_erasing=ERASING)
    source, _ = data.splits()
    loader = Loader(LabelledPictures(source, training_transform(data, augment)), BATCH, BadImages(0), seed=0)
    task = Classification(torch.nn.Identity(), source.classes, data.mean, data.std, RegularizeSettings())
    epoch = 0

    def run() -> None:
        nonlocal epoch
        for batch in loader.epoch(epoch):
            task._prepare(batch)
        epoch += 1

    return run


def medians(runs: list[measure.Run], rounds: int) -> list[float]:
    """Median seconds of processor time of each, run in turn after one round to warm up."""
    times = []
    for _ in range(rounds + 1):
        row = []
        for run in runs:
            started = time.process_time()
            run()
            row.append(time.process_time() - started)
        times.append(row)
    return [statistics.median(side) for side in zip(*times[1:])]


def stages(folder: Path, interpolation: str, policy: str | None, rounds: int) -> dict[str, float]:
    """Milliseconds a picture of each stage of ours, its median over the rounds."""
    data = ImageFolder(root=str(folder), img_size=IMG_SIZE)
    augment = AugmentSettings(auto_augment=policy, interpolation=interpolation, random_erasing=ERASING)
    source, _ = data.splits()
    transform = training_transform(data, augment)
    spent: dict[str, float] = {}

    def timed(name, function):
        def call(*arguments):
            started = time.process_time()
            result = function(*arguments)
            spent[name] = spent.get(name, 0.0) + time.process_time() - started
            return result

        return call

    class TimedPicture(Picture):
        pixels = timed("decode", Picture.pixels)

    read = timed("read", source.picture)
    seed = timed("seed", seed_everything)
    transform._crop = timed("decode, crop and resize", transform._crop)
    transform.colour = [timed("colour", operation) for operation in transform.colour]
    transform.erasing = timed("erase", transform.erasing)
    whole = timed("all", transform)
    table = []
    for epoch in range(rounds):
        spent.clear()
        for i in range(len(source)):
            picture = read(i)
            seed(0, "sample", epoch, i)
            whole(TimedPicture(picture.content, picture.channels))
        of = {name: 1e3 * seconds / len(source) for name, seconds in spent.items()}
        of["crop and resize"] = of.pop("decode, crop and resize") - of["decode"]
        named = sum(of.get(stage, 0) for stage in ("decode", "crop and resize", "colour", "erase"))
        of["flip and convert"] = of.pop("all") - named
        table.append(of)
    return {name: float(np.median([of[name] for of in table])) for name in table[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path, default=Path("data.json"), help="where the figures go")
    parser.add_argument("--smoke", action="store_true", help="a few pictures and one round; the figures mean nothing")
    options = parser.parse_args()
    images, rounds = (BATCH, 1) if options.smoke else (options.images, options.rounds)
    torch.set_num_threads(1)
    # timm's fails under Pillow 13 where its strongest level asks for 0 bits: let that be 1, at the same cost.
    auto_augment.NAME_TO_OP["PosterizeIncreasing"] = lambda image, bits, **_: auto_augment.posterize(
        image, max(bits, 1)
    )
    machine = f"{measure.headline('fp32')}, Pillow {Image.__version__}"
    print(f"{machine}, {images} JPEGs, {rounds} rounds")
    print(f"{'images/s':40}{'timm':>10}{'ours':>10}{'ratio':>10}")
    results = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, images)
        for title, case in CASES.items():
            seconds = medians([timms(folder, *case), ours(folder, *case)], rounds)
            rates = [images // BATCH * BATCH / s for s in seconds]
            print(f"{title:40}{rates[0]:10.0f}{rates[1]:10.0f}{rates[1] / rates[0]:10.2f}", flush=True)
            of = stages(folder, *case, rounds)
            print("    ms: " + ", ".join(f"{stage} {ms:.3f} ({ms / sum(of.values()):.0%})" for stage, ms in of.items()))
            results.append(dict(case=title, timm=rates[0], ours=rates[1], ratio=rates[1] / rates[0], stages=of))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    about = dict(machine=machine, images=images, rounds=rounds)
    options.json.write_text(json.dumps(about | dict(results=results), indent=1))
    print(f"Figures in images/s and ms: {options.json}")


if __name__ == "__main__":
    main()
