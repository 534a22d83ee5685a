"""Speed and memory of this project's models beside their peers, in one process, alternating.

    python benchmarks/models.py                              inference and training steps, batch 8, 224 px
    python benchmarks/models.py --precision bf16 --compile --batch 128 --json FILE       as on a GPU
    python benchmarks/models.py --smoke                      nanos and a single run, on any machine

The peer of a model that timm has is timm's, that of another is the same model on the reference operators. Prints a
line per model: images per second and peak memory in MiB of each side, eager and with --compile compiled, and the ratios
of the best of ours to the best of the peer: speed above 1 means that we are faster, memory below 1 that we need less.
A training step is forward, backward and AdamW; bf16 is autocast there, and the type of the weights in inference.
"""

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import measure
import timm
import torch
from torch import nn

import backbones
from backbones.kernels.dispatch import use

PEERS = {
    "swin_t": "swin_tiny_patch4_window7_224",
    "davit_t": "davit_tiny",
    "gcvit_t": "gcvit_tiny",
    "volo_d1": "volo_d1_224",
}
OTHERS = ["litv2_s", "biformer_t", "nat_t", "dinat_t", "l2vit_t", "overlock_t"]


def on_reference(run: measure.Run) -> measure.Run:
    def with_reference() -> None:
        with use("reference"):
            run()

    return with_reference


def start(model: nn.Module, mode: str, images: torch.Tensor, precision: str) -> measure.Run:
    if precision == "fp32":
        return measure.inference(model, images) if mode == "inference" else measure.training(model, images)
    if mode == "inference":
        return measure.inference(model.bfloat16(), images.bfloat16())
    run = measure.training(model, images)

    def run_in_bf16() -> None:
        with torch.autocast(images.device.type, torch.bfloat16):
            run()

    return run_in_bf16


def sides(name: str, mode: str, images: torch.Tensor, options: argparse.Namespace) -> dict[str, measure.Run]:
    """What is timed of a model, by title."""

    def ours() -> nn.Module:
        return backbones.create_model(name)

    def peer() -> nn.Module:
        return timm.create_model(PEERS[name], drop_path_rate=0.0) if name in PEERS else ours()

    runs = {}
    for side, build in (("ours", ours), ("peer", peer)):
        for compiled in (False, True) if options.compile else (False,):
            torch.manual_seed(0)
            model: nn.Module | Callable = build().to(images.device)
            run = start(torch.compile(model) if compiled else model, mode, images, options.precision)
            title = f"{side}, compiled" if compiled else side
            runs[title] = on_reference(run) if side == "peer" and name not in PEERS else run
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="models of this project; by default those that timm has")
    parser.add_argument("--all", action="store_true", help="one of each family")
    parser.add_argument("--mode", choices=["inference", "training", "both"], default="both")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--compile", action="store_true", help="time both sides compiled as well")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each side")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--smoke", action="store_true", help="nanos and a single run; the figures mean nothing")
    options = parser.parse_args()
    if options.smoke:
        options.names, options.batch, options.size, options.rounds = ["swin_nano", "dinat_nano"], 2, 32, 1
    names = options.names or [*PEERS, *(OTHERS if options.all else [])]

    print(measure.headline(options.precision))
    print(f"batch {options.batch}, {options.size} px, medians of {options.rounds} alternating runs")
    results = []
    for mode in ["inference", "training"] if options.mode == "both" else [options.mode]:
        titles = ["ours", "ours, compiled", "peer", "peer, compiled"][:: 1 if options.compile else 2]
        columns = [f"{title}, {unit}" for unit in ("img/s", "MiB") for title in titles]
        print(f"{mode:<12}" + "".join(f"{column:>23}" for column in columns) + f"{'speed':>8}{'memory':>8}")
        for name in names:
            row = measure_model(name, mode, options)
            results.append(row)
            shown = [row[unit][title] for unit in ("images_per_second", "memory") for title in titles]
            print(f"{name:<12}" + "".join(f"{x:>23.1f}" for x in shown) + f"{row['speed']:>8.2f}{row['less']:>8.2f}")
        speeds = [row["speed"] for row in results if row["mode"] == mode and row["name"] in PEERS]
        if speeds:
            print(f"geometric mean of the speeds to timm's: {math.prod(speeds) ** (1 / len(speeds)):.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        about = dict(machine=measure.headline(options.precision), batch=options.batch, size=options.size)
        options.json.write_text(json.dumps(about | dict(results=results), indent=1))


def measure_model(name: str, mode: str, options: argparse.Namespace) -> dict:
    images = torch.randn(options.batch, 3, options.size, options.size, device=measure.device())
    runs = sides(name, mode, images, options)
    times = dict(zip(runs, measure.medians(list(runs.values()), options.rounds)))
    memory = {title: measure.peak_memory(run) / 2**20 for title, run in runs.items()}

    def least(of: dict[str, float], side: str) -> float:
        return min(value for title, value in of.items() if title.startswith(side))

    return dict(
        name=name,
        mode=mode,
        images_per_second={title: options.batch / seconds for title, seconds in times.items()},
        memory=memory,
        speed=least(times, "peer") / least(times, "ours"),
        less=least(memory, "ours") / least(memory, "peer"),
    )


if __name__ == "__main__":
    main()
