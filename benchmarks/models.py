"""Speed and memory of this project's models beside timm's, in one process, alternating.

    python benchmarks/models.py                        inference, batch 8, 224 px
    python benchmarks/models.py --mode training        forward, backward and AdamW

Prints a line per model: medians of both sides in ms, images per second, peak memory in MiB, and the ratios. Speed is
timm's time / ours, above 1 we are faster; memory is ours / timm's, below 1 we need less.
"""

import argparse
import math

import measure
import timm
import torch

import backbones

PEERS = {
    "swin_t": "swin_tiny_patch4_window7_224",
    "davit_t": "davit_tiny",
    "gcvit_t": "gcvit_tiny",
    "volo_d1": "volo_d1_224",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(PEERS), help="models of this project that timm has too")
    parser.add_argument("--mode", choices=["inference", "training"], default="inference")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each side")
    options = parser.parse_args()

    print(measure.headline())
    print(f"{options.mode}, batch {options.batch}, {options.size} px, medians of {options.rounds} alternating runs")
    titles = ("ours, ms", "timm, ms", "images/s", "speed", "ours, MiB", "timm, MiB", "memory")
    print(f"{'model':<12}" + "".join(f"{title:>11}" for title in titles))
    start = measure.inference if options.mode == "inference" else measure.training
    ratios = []
    for name in options.names:
        torch.manual_seed(0)
        images = torch.randn(options.batch, 3, options.size, options.size, device=measure.device())
        sides = [backbones.create_model(name), timm.create_model(PEERS[name], drop_path_rate=0.0)]
        runs = [start(model.to(measure.device()), images) for model in sides]
        ours, peer = measure.medians(runs, options.rounds)
        own_memory, peer_memory = (measure.peak_memory(run) / 2**20 for run in runs)
        ratios.append(peer / ours)
        print(
            f"{name:<12}{1e3 * ours:>11.1f}{1e3 * peer:>11.1f}{options.batch / ours:>11.1f}{peer / ours:>11.2f}"
            f"{own_memory:>11.0f}{peer_memory:>11.0f}{own_memory / peer_memory:>11.2f}",
            flush=True,
        )
    print(f"geometric mean of the speed ratios: {math.prod(ratios) ** (1 / len(ratios)):.2f}")


if __name__ == "__main__":
    main()
