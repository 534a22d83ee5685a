"""How the cost of a pixel grows with the image: time per pixel at two sizes, beside what the arithmetic predicts.

    python benchmarks/scaling.py                       448 and 896 px, one image
    python benchmarks/scaling.py nat_t --sizes 224 448

Prints a line per model, as a classifier's maps and as the official detection backbone: milliseconds per megapixel at
both sizes, their ratio, the ratio of multiply-adds per pixel (which is the families' cost formula, border padding
included), and the one over the other.
"""

import argparse

import measure
import torch

import backbones

LINEAR = ["swin_t", "nat_t", "dinat_t", "gcvit_t", "davit_t", "l2vit_t", "overlock_t"]
WITH_GLOBAL_PART = ["volo_d1", "litv2_s", "biformer_t"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=LINEAR + WITH_GLOBAL_PART)
    parser.add_argument("--sizes", type=int, nargs=2, default=[448, 896], help="sides of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=3, help="timed runs of each size")
    options = parser.parse_args()

    print(measure.headline())
    print(f"inference, one image, medians of {options.rounds} alternating runs; time in ms per megapixel")
    small, large = options.sizes
    titles = (f"{small} px", f"{large} px", "time ratio", "MACs ratio", "one / other")
    print(f"{'model':<24}" + "".join(f"{title:>12}" for title in titles))
    for name in options.names:
        for dense in (None, "detection"):
            model = backbones.create_model(name, features_only=True, dense=dense).to(measure.device())
            images = [torch.randn(1, 3, side, side, device=measure.device()) for side in options.sizes]
            times = measure.medians([measure.inference(model, x) for x in images], options.rounds, warmup=1)
            per_pixel = [1e9 * seconds / side**2 for seconds, side in zip(times, options.sizes)]
            work = [measure.macs(model, x) / side**2 for x, side in zip(images, options.sizes)]
            grown, predicted = per_pixel[1] / per_pixel[0], work[1] / work[0]
            print(
                f"{name + (' ' + dense if dense else ''):<24}{per_pixel[0]:>12.0f}{per_pixel[1]:>12.0f}"
                f"{grown:>12.2f}{predicted:>12.2f}{grown / predicted:>12.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
