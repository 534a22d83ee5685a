"""What training takes by arithmetic, and by measurement where this machine can measure: the tables of docs/scaling.md.

    python benchmarks/scaling_estimate.py               all tables, in a few minutes
    python benchmarks/scaling_estimate.py --memory swin_nano --size 32 --batch 8       the first one, of other models

Memory: arithmetic beside real training steps on the CPU, each in a process of its own: bytes that PyTorch allocates,
and growth of the process. Data: pictures that one core decodes and augments. Scaling: predictions for 1 to 512 GPUs,
from what VENDOR and ASSUMED say about them; no GPU takes part.
"""

import argparse
import multiprocessing
import time
from pathlib import Path

import measure
import sklearn.datasets
import torch

import backbones
from backbones.backbone import Backbone
from training.activations import footprint
from training.data import AugmentSettings, ImageFolder, Picture, training_transform
from training.estimate import Cluster, Link, estimate

GIB, MIB = 2**30, 2**20
PEAK = 989.4e12  # VENDOR: bfloat16 products of an H100 SXM without sparsity, operations per second
# VENDOR: NVLink 4 has 900 GB/s in both directions together; an InfiniBand NDR card 400 Gbit/s in each. ASSUMED: four
# fifths of either arrive, eight GPUs and cards in a node, and the latencies.
CLUSTER = Cluster(8, Link(0.8 * 450e9, 3e-6), Link(0.8 * 50e9, 10e-6))
UTILISATION = (0.2, 0.4)  # ASSUMED: share of PEAK that a training step reaches
JPEG_BYTES = 147_897_477_120 / 1_281_167  # size of ImageNet-1k's training archive over its pictures
# Model, strategy, checkpointing and batch per GPU.
PLANS = [("swin_b", "ddp", False, 128), ("swin_b", "fsdp", False, 128)]
PLANS += [("davit_g", "ddp", True, 64), ("davit_g", "fsdp", True, 64)]


def table(headings: list[str], rows: list[list]) -> None:
    for row in (headings, ["---"] * len(headings), *rows):
        print(f"| {' | '.join(map(str, row))} |", flush=True)
    print()


def status(field: str) -> int:
    """A figure of the process in bytes, such as VmRSS, or VmHWM for the most there was."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def real_step(name: str, checkpointing: bool, batch: int, size: int) -> tuple[int, int]:
    """Peak bytes of training steps in float32 on the CPU: allocated by PyTorch, and growth of the process."""
    images = torch.randn(batch, 3, size, size)
    before = status("VmRSS")
    model: Backbone = backbones.create_model(name)
    model.set_grad_checkpointing(checkpointing)
    run = measure.training(model, images)
    for _ in range(2):
        run()
    grown = status("VmHWM") - before
    state = 3 * sum(p.nbytes for p in model.parameters())  # the weights and AdamW's moments, which stay
    return state + measure.peak_memory(run), grown


def memory(names: list[str], batch: int, size: int) -> None:
    rows = []
    for name in names:
        for checkpointing in (False, True):
            # In a new process each: what a model leaves behind would count for the next.
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                allocated, grown = pool.apply(real_step, (name, checkpointing, batch, size))
            model = footprint(name, checkpointing, "fp32", "cpu", (3, size, size))
            expected = estimate(model, CLUSTER, 1, batch, 1, jpeg_bytes=0, decoded_per_second=1)
            state = expected.memory_bytes - expected.activation_bytes
            figures = [state, expected.activation_bytes, expected.memory_bytes, allocated, grown]
            row = [f"`{name}`", "yes" if checkpointing else "no", *(f"{x / MIB:,.0f}" for x in figures)]
            rows.append([*row, f"{allocated / expected.memory_bytes:.2f}"])
    print(f"Memory of a training step, batch {batch}, {size} px, MiB; {measure.headline()}\n")
    headings = ["model", "checkpointing", "weights, gradients, moments", "activations", "estimate"]
    table([*headings, "allocated", "growth of the process", "allocated / estimate"], rows)


def data() -> float:
    """Pictures per second of one core: photographs of 640 x 427 pixels, augmented as the recipe for ImageNet does."""
    files = sorted((Path(sklearn.datasets.__file__).parent / "images").glob("*.jpg"))
    augment = AugmentSettings(auto_augment="rand-m9-mstd0.5-inc1")
    transform = training_transform(ImageFolder(root="."), augment)
    contents = [file.read_bytes() for file in files]
    torch.set_num_threads(1)
    started, count = time.process_time(), 0  # of the core, whoever else wants it
    while time.process_time() - started < 10:
        for content in contents:
            transform(Picture(content, 3).image())
            count += 1
    rate = count / (time.process_time() - started)
    size = sum(map(len, contents)) / len(contents)
    print(f"One core decodes and augments {rate:.0f} pictures/s ({len(contents)} JPEGs, {size / 1e3:.0f} kB each)\n")
    return rate


def scaling(decoded_per_second: float) -> None:
    rows = []
    for name in ("swin_b", "davit_g"):
        for checkpointing in (False, True):
            for precision in ("fp32", "bf16"):
                model = footprint(name, checkpointing, precision)
                figures = [model.image_bytes, model.block_bytes, model.fixed_bytes]
                row = [f"`{name}`", f"{model.parameters / 1e6:,.1f}", precision, "yes" if checkpointing else "no"]
                rows.append([*row, *(f"{x / MIB:,.1f}" for x in figures)])
    print("Kept for the backward pass on the operators that a GPU takes, 224 px, MiB\n")
    headings = ["model", "parameters, M", "precision", "checkpointing", "per image", "block at work, per image"]
    table([*headings, "whatever the batch"], rows)

    for name, strategy, checkpointing, batch in PLANS:
        model = footprint(name, checkpointing, "bf16")
        # Two operations per multiply-add; the backward pass has twice those of the forward pass.
        operations = 6 * backbones.model_info(name)["macs"]
        rows = []
        for gpus in (2**i for i in range(10)):
            slow, fast = (
                estimate(model, CLUSTER, gpus, batch, u * PEAK / operations * (3 / 4 if checkpointing else 1), strategy,
                         jpeg_bytes=JPEG_BYTES, decoded_per_second=decoded_per_second)
                for u in UTILISATION
            )  # fmt: skip
            nodes = max(1, gpus / CLUSTER.gpus_per_node)
            rows.append([
                gpus, f"{slow.memory_bytes / GIB:.1f}", f"{slow.sent_bytes / MIB:,.0f}",
                f"{1e3 * slow.communication_seconds:.1f}",
                *(f"{1e3 * e.step_seconds:,.1f} | {e.efficiency:.1%}" for e in (slow, fast)),
                f"{fast.images_per_second:,.0f}",
                f"{fast.data_bytes_per_second / nodes / 1e9:.2f}", f"{fast.decode_cores / nodes:,.0f}",
            ])  # fmt: skip
        print(
            f"{name}, {strategy}, bf16, {batch} images per GPU{', checkpointing' * checkpointing}: predictions at "
            f"{UTILISATION[0]:.0%} and at {UTILISATION[1]:.0%} of the peak\n"
        )
        headings = ["GPUs", "memory, GiB", "sent, MiB/step", "sending, ms"]
        headings += [f"{x} ({u:.0%})" for u in UTILISATION for x in ("step, ms", "efficiency")]
        last = f"({UTILISATION[-1]:.0%})"
        table([*headings, f"images/s {last}", f"GB/s per node {last}", f"decoding cores per node {last}"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", nargs="+", metavar="NAME", help="only measure the memory of these models")
    parser.add_argument("--batch", type=int, default=4, help="of the measured steps")
    parser.add_argument("--size", type=int, default=224, help="side of the images of the measured steps, in pixels")
    options = parser.parse_args()
    memory(options.memory or ["swin_t", "davit_t", "swin_b"], options.batch, options.size)
    if not options.memory:
        scaling(data())


if __name__ == "__main__":
    main()
