"""How well each family uses the machine: multiply-adds per second in inference, relative to swin_t's in the same run.

    python benchmarks/families.py                      batch 8, 224 px
    python benchmarks/families.py nat_t volo_d1 --size 448

Prints a line per model: median in ms, images per second, GMACs per image, GMAC/s, and that over swin_t's.
"""

import argparse

import measure
import torch

import backbones

NAMES = ["nat_t", "dinat_t", "litv2_s", "biformer_t", "l2vit_t", "overlock_t"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=NAMES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=7, help="timed runs of each model")
    options = parser.parse_args()

    print(measure.headline())
    print(f"inference, batch {options.batch}, {options.size} px, medians of {options.rounds} runs, in turn with swin_t")
    titles = ("ms", "images/s", "GMACs", "GMAC/s", "to swin_t")
    print(f"{'model':<12}" + "".join(f"{title:>11}" for title in titles))
    images = torch.randn(options.batch, 3, options.size, options.size, device=measure.device())
    reference = backbones.create_model("swin_t").to(measure.device())
    for name in options.names:
        model = backbones.create_model(name).to(measure.device())
        runs = [measure.inference(side, images) for side in (model, reference)]
        times = measure.medians(runs, options.rounds)
        macs = [measure.macs(side, images) for side in (model, reference)]
        rate, reference_rate = (options.batch * count / seconds for count, seconds in zip(macs, times))
        print(
            f"{name:<12}{1e3 * times[0]:>11.1f}{options.batch / times[0]:>11.1f}{macs[0] / 1e9:>11.2f}"
            f"{rate / 1e9:>11.1f}{rate / reference_rate:>11.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
