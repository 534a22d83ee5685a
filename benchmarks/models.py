"""Speed and memory of this project's models beside timm's and torchvision's, in one process, alternating.

    python -m benchmarks models                          one model of each family beside timm's, batch 8, 224 px
    python -m benchmarks models 'swin_*' --against timm,torchvision --batch 1,8 --size 224,384 --output swin.csv
    python -m benchmarks models --against timm,reference --dtype bfloat16 --compile none,default --batch 128
    python -m benchmarks models --smoke                  nanos and a single run, on any machine

Every option but the names may be several, with commas between: all combinations are measured. A side is timm,
torchvision, or reference, which is our own model on PyTorch's operators in place of the Triton kernels; timm's and
torchvision's names for ours are in PEERS.

A row of the table is one side of one combination: median milliseconds of a run, images per second, the most memory
that a run holds beyond weights and optimizer in MiB, and ratios of ours to that side: above 1 we are faster, or need
more memory. What cannot run has the reason instead. A run is a forward pass, or in training forward, backward and
AdamW; other types than float32 are autocast there, and the type of the weights in inference. --output is written after
every combination, and a combination that it has, from the same machine, is not measured again. Where other programs
want the cores as well, --clock processor counts the seconds that a run had them, with OMP_NUM_THREADS=1 those of one.
"""

import argparse
import gc
import itertools
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import astuple, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

import measure
import timm
import torch
import torchvision
from table import Row, Table, short
from torch import nn

import backbones
from backbones.errors import InputError, first_line
from backbones.kernels.dispatch import use

# Names of timm's and torchvision's models that are the same networks as ours.
PEERS = {
    "swin_t": dict(timm="swin_tiny_patch4_window7_224", torchvision="swin_t"),
    "swin_s": dict(timm="swin_small_patch4_window7_224", torchvision="swin_s"),
    "swin_b": dict(timm="swin_base_patch4_window7_224", torchvision="swin_b"),
    "swin_b_384": dict(timm="swin_base_patch4_window12_384"),
    "swin_l": dict(timm="swin_large_patch4_window7_224"),
    "swin_l_384": dict(timm="swin_large_patch4_window12_384"),
    "davit_t": dict(timm="davit_tiny"),
    "davit_s": dict(timm="davit_small"),
    "davit_b": dict(timm="davit_base"),
    "davit_l": dict(timm="davit_large"),
    "davit_h": dict(timm="davit_huge"),
    "davit_g": dict(timm="davit_giant"),
    "gcvit_xxt": dict(timm="gcvit_xxtiny"),
    "gcvit_xt": dict(timm="gcvit_xtiny"),
    "gcvit_t": dict(timm="gcvit_tiny"),
    "gcvit_s": dict(timm="gcvit_small"),
    "gcvit_b": dict(timm="gcvit_base"),
    "volo_d1": dict(timm="volo_d1_224"),
    "volo_d2": dict(timm="volo_d2_224"),
    "volo_d3": dict(timm="volo_d3_224"),
    "volo_d4": dict(timm="volo_d4_224"),
    "volo_d5": dict(timm="volo_d5_224"),
}
ANY_SIZE = ("davit",)  # of timm's: these take any image; the others are built for one size
TINY = ["swin_t", "davit_t", "gcvit_t", "volo_d1", "litv2_s", "biformer_t", "nat_t", "dinat_t", "l2vit_t", "overlock_t"]
CLOCKS = dict(wall=time.perf_counter, processor=time.process_time)
COMPILE = ("none", "default", "reduce-overhead", "max-autotune")
# What one side may fail of while the others go on; running out of memory is a RuntimeError.
FAILURES = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, OSError)
MEASURED = ["ms", "images_per_second", "memory_mib", "speed_ratio", "memory_ratio"]
MEASURED += ["parameters_m", "gmacs", "rounds", "reason"]


@dataclass(frozen=True)
class Case:
    """One combination of what can be chosen."""

    clock: str
    device: str
    mode: str
    dtype: str
    compile: str
    batch: int
    size: int
    model: str


SETTINGS = list(Case.__dataclass_fields__)
KEY = [*SETTINGS, "side", "machine", "threads"]  # what a row is of; with the same, it is not measured again
COLUMNS = ["side", "peer", *SETTINGS, "family", *MEASURED, *measure.machine(torch.device("cpu")), "date"]


def build(side: str, case: Case) -> nn.Module:
    """The model of a side, on the CPU in float32.

    Raises:
        LookupError: that side has no such model.
    """
    if side in ("ours", "reference"):
        return backbones.create_model(case.model, img_size=case.size)
    name = PEERS.get(case.model, {}).get(side)
    if name is None:
        raise LookupError(f"{side} has no {case.model}")
    if side == "torchvision":
        model = torchvision.models.get_model(name, weights=None)
        for module in model.modules():  # whose rates its functions fix; the others have none
            if isinstance(module, torchvision.ops.StochasticDepth):
                module.p = 0.0
        return model
    size = {} if name.startswith(ANY_SIZE) else dict(img_size=case.size)
    return timm.create_model(name, drop_path_rate=0.0, **size)


def start(side: str, case: Case) -> tuple[nn.Module, measure.Run]:
    """The model of a side, and a run of it that has run once."""
    torch.manual_seed(0)
    dtype, training = getattr(torch, case.dtype), case.mode == "training"
    stored = torch.float32 if training else dtype
    images = torch.randn(case.batch, 3, case.size, case.size).to(case.device, stored)
    model = build(side, case).to(case.device, stored)
    called = model if case.compile == "none" else torch.compile(model, mode=case.compile)
    work = (measure.training if training else measure.inference)(called, images)
    on = partial(use, "reference") if side == "reference" else nullcontext
    cast = partial(torch.autocast, case.device, dtype) if stored != dtype else nullcontext

    def run() -> None:
        with on(), cast():
            work()

    run()
    return model, run


def measure_case(case: Case, sides: list[str], rounds: int) -> list[Row]:
    """A row for each side."""
    device = torch.device(case.device)
    models: dict[str, nn.Module] = {}
    runs: dict[str, measure.Run] = {}
    reasons = {}
    for side in sides:
        try:
            models[side], runs[side] = start(side, case)
        except FAILURES as error:
            reasons[side] = reason(error)
    try:
        times = dict(zip(runs, measure.medians(list(runs.values()), rounds, clock=CLOCKS[case.clock])))
        memory = {side: measure.peak_memory(run, device) / 2**20 for side, run in runs.items()}
    except RuntimeError as error:  # each could run alone, but not beside the others
        reasons |= dict.fromkeys(runs, f"beside the other sides: {reason(error)}")
        runs, times, memory = {}, {}, {}

    def row(side: str) -> Row:
        peer = PEERS.get(case.model, {}).get(side, "") if side in ("timm", "torchvision") else case.model
        found = dict(side=side, peer=peer, family=backbones.registry.family_of(case.model), reason=reasons.get(side))
        if side in runs:
            image = torch.zeros(1, 3, case.size, case.size, device=device, dtype=next(models[side].parameters()).dtype)
            found |= dict(ms=1e3 * times[side], images_per_second=case.batch / times[side], memory_mib=memory[side])
            found |= dict(gmacs=measure.macs(models[side], image) / 1e9, rounds=rounds)
            found |= dict(parameters_m=sum(p.numel() for p in models[side].parameters()) / 1e6)
        if side in runs and "ours" in runs:
            found |= dict(speed_ratio=times[side] / times["ours"], memory_ratio=memory["ours"] / memory[side])
        return dict(zip(SETTINGS, astuple(case))) | found

    return [row(side) for side in sides]


def reason(error: Exception) -> str:
    out_of_memory = isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
    return "out of memory" if out_of_memory else first_line(error)


def several(*choices: str, kind: Callable = str) -> Callable[[str], list]:
    """A type for argparse: values with commas between."""

    def parse(text: str) -> list:
        values = [kind(value) for value in text.split(",")]
        for value in values:
            if choices and value not in choices:
                raise argparse.ArgumentTypeError(f"{value} is none of {', '.join(choices)}")
        return values

    return parse


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=TINY, help="models of this project, or patterns of their names")
    parser.add_argument("--against", type=several("timm", "torchvision", "reference", "none"), default=["timm"])
    parser.add_argument("--device", type=several("cpu", "cuda"), default=[measure.device().type])
    parser.add_argument("--mode", type=several("inference", "training"), default=["inference", "training"])
    parser.add_argument("--dtype", type=several("float32", "bfloat16", "float16"), default=["float32"])
    parser.add_argument("--compile", type=several(*COMPILE), default=["none"], help="modes of torch.compile, or none")
    parser.add_argument("--batch", type=several(kind=int), default=[8])
    parser.add_argument("--size", type=several(kind=int), default=[224], help="side of the images, in pixels")
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="processor: seconds of all cores, on a busy CPU"
    )
    parser.add_argument("--rounds", type=int, default=15, help="timed runs of each side")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="the table, begun or to be gone on with")
    parser.add_argument("--smoke", action="store_true", help="nanos and a single run; the figures mean nothing")
    options = parser.parse_args()
    if options.smoke:
        options.names, options.batch, options.size, options.rounds = ["swin_nano", "dinat_nano"], [2], [32], 1
    names = [name for pattern in options.names for name in backbones.list_models(pattern) or [pattern]]
    unknown = [name for name in names if name not in backbones.list_models()]
    if unknown:
        parser.error(f"no model is named like {', '.join(unknown)}; python -m backbones list prints all names")

    if "cuda" in options.device and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; use --device cpu")
    if options.clock == "processor" and "cuda" in options.device:
        parser.error("a processor's clock says nothing about a GPU")

    try:
        table = Table(options.output, COLUMNS, KEY)
    except InputError as error:
        parser.error(str(error))
    sides = ["ours", *(side for side in options.against if side != "none")]
    choices = (
        [options.clock],
        options.device,
        options.mode,
        options.dtype,
        options.compile,
        options.batch,
        options.size,
    )
    cases = [Case(*chosen, name) for *chosen, name in itertools.product(*choices, dict.fromkeys(names))]
    for device in options.device:
        print(", ".join(f"{key} {value}" for key, value in measure.machine(torch.device(device)).items()))
    titles = ("batch", "size", "ms", "images/s", "MiB", "speed", "memory")
    columns = (("model", 15), ("side", 12), ("mode", 10), ("device", 7), ("dtype", 9), ("compile", 9))
    print("".join(f"{title:<{width}}" for title, width in columns) + "".join(f"{title:>9}" for title in titles))
    for case in cases:
        machine = measure.machine(torch.device(case.device))
        wanted = [dict(zip(SETTINGS, astuple(case))) | machine | dict(side=side) for side in sides]
        missing = [row["side"] for row in wanted if table.lacks(row)]
        if not missing:
            continue
        date = datetime.now().isoformat(timespec="seconds")
        rows = measure_case(case, list(dict.fromkeys(["ours", *missing])), options.rounds)
        new = [row | machine | dict(date=date) for row in rows if row["side"] in missing]
        table.add(new)
        for row in new:
            figures = [row["batch"], row["size"]] + [row.get(key) for key in MEASURED[:5]]
            cells = [f"{short(x) if x is not None else '–':>9}" for x in figures]
            print("".join(f"{row[title]:<{width}}" for title, width in columns) + "".join(cells), row["reason"] or "",
                  flush=True)  # fmt: skip
        gc.collect()
        torch.compiler.reset()
        torch.cuda.empty_cache()
    for side in sides[1:]:
        asked = {tuple(map(str, astuple(case))) for case in cases}
        found = [row for row in table.rows if row["side"] == side and tuple(str(row[k]) for k in SETTINGS) in asked]
        speeds = [float(row["speed_ratio"]) for row in found if row.get("speed_ratio")]
        if speeds:
            mean = math.prod(speeds) ** (1 / len(speeds))
            print(f"geometric mean of the speeds to {side}'s: {mean:.2f} ({len(speeds)} rows)")


if __name__ == "__main__":
    main()
