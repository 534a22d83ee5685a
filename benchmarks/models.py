"""Speed of this project's models beside timm's, in one process, alternating.

    python benchmarks/models.py                        inference, batch 8, 224 px
    python benchmarks/models.py --mode training        forward, backward and AdamW

Prints a line per model: medians of both sides in ms, images per second, and the ratio (timm's time / ours: above 1 we
are faster).
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import timm
import torch

import backbones

PEERS = {"swin_t": "swin_tiny_patch4_window7_224"}


def inference(model: torch.nn.Module, images: torch.Tensor) -> Callable[[], None]:
    model.eval()

    @torch.inference_mode()
    def run() -> None:
        model(images)

    return run


def training(model: torch.nn.Module, images: torch.Tensor) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters())
    targets = torch.arange(len(images), device=images.device)

    def run() -> None:
        torch.nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def seconds(run: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=list(PEERS), help="models of this project that timm has too")
    parser.add_argument("--mode", choices=["inference", "training"], default="inference")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224, help="side of the images, in pixels")
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each side")
    options = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    where = (
        torch.cuda.get_device_name()
        if device.type == "cuda"
        else f"{platform.machine()}, {torch.get_num_threads()} threads"
    )
    print(f"{device.type} ({where}), torch {torch.__version__}, timm {timm.__version__}, fp32, eager")
    print(f"{options.mode}, batch {options.batch}, {options.size} px, medians of {options.rounds} alternating runs")
    print(f"{'model':<12}{'ours, ms':>10}{'timm, ms':>10}{'images/s':>10}{'ratio':>8}")
    for name in options.names:
        torch.manual_seed(0)
        images = torch.randn(options.batch, 3, options.size, options.size, device=device)
        sides = [backbones.create_model(name), timm.create_model(PEERS[name], drop_path_rate=0.0)]
        runs = [globals()[options.mode](model.to(device), images) for model in sides]
        for _ in range(3):
            for run in runs:
                run()
        times = [[seconds(run, device) for run in runs] for _ in range(options.rounds)]
        ours, peer = (statistics.median(side) for side in zip(*times))
        print(f"{name:<12}{1e3 * ours:>10.1f}{1e3 * peer:>10.1f}{options.batch / ours:>10.1f}{peer / ours:>8.2f}")


if __name__ == "__main__":
    main()
