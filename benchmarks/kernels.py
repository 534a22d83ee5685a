"""Speed and memory of the attention operators: Triton beside PyTorch, in one process, and beside the machine's limits.

    python benchmarks/kernels.py                       every workload, bf16, batch 64; needs a GPU
    python benchmarks/kernels.py --match neighborhood
    python benchmarks/kernels.py --smoke               tiny maps on any machine, by Triton's interpreter without a GPU

A line per workload and direction (forward; forward and backward): ms of the Triton kernels; the least time that the
bytes need at the copy bandwidth, and that the multiply-adds need at the matrix rate, both measured here first; the
ratio to the larger of these; ms of the reference eager and compiled, and of FlexAttention where it can express the
operator; the ratio to the best of these; peak memory of the kernels and of the leanest of the others, in MiB. The
figures go into a JSON file as well.
"""

import argparse
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

if not torch.cuda.is_available():  # Triton reads this when it is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

import measure
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from backbones.kernels import workloads
from backbones.kernels.dispatch import use
from backbones.kernels.workloads import Workload

Call = Callable[[dict[str, Tensor]], Tensor]

SMOKE = [
    workloads.window(9, 1, 3, shift=1),
    workloads.window(8, 2, 4, shared=True),
    workloads.neighborhood(10, 1, 3),
    workloads.aggregate(7, 1, 3, softmax=True),
    workloads.outlook(8, 1),
    workloads.routed(8, 1, 2, 2),
]


def with_choice(workload: Workload, choice: str) -> Call:
    def call(tensors: dict[str, Tensor]) -> Tensor:
        with use(choice):
            return workload.call(**tensors)

    return call


def compiled_reference(workload: Workload) -> Call:
    compiled = torch.compile(workload.call, dynamic=False)

    def call(tensors: dict[str, Tensor]) -> Tensor:
        with use("reference"):
            return compiled(**tensors)

    return call


def flex(workload: Workload, device: torch.device) -> Call | None:
    """The operator by FlexAttention: its mask, and its bias as a change of the logits; None where it has no words."""
    side = workload.maps["v"][0]
    position = torch.arange(side * side, device=device)
    row, column = position // side, position % side
    options = workload.options
    if workload.operator == "window_attention" and not options["shared"] and side % options["window_size"] == 0:
        window, shift = options["window_size"], options["shift"]
        at_r, at_c = (row - shift) % side, (column - shift) % side
        # Where the shift joins opposite borders, tokens do not attend to each other.
        region = 3 * ((at_r >= side - window).int() + (at_r >= side - shift).int())
        region += (at_c >= side - window).int() + (at_c >= side - shift).int()
        group = (at_r // window * side + at_c // window) * 9 + region * (shift > 0)
        token = at_r % window * window + at_c % window

        def mask(b, h, q, k):
            return group[q] == group[k]

        def place(bias, h, q, k):
            return bias[h, token[q], token[k]]

    elif workload.operator == "neighborhood_attention":
        size, dilation = options["kernel_size"], options["dilation"]

        def start(x: Tensor) -> Tensor:
            """First position of the window along an axis, among the members of its class."""
            members = (side - x % dilation + dilation - 1) // dilation
            return torch.minimum((x // dilation - size // 2).clamp(min=0), members - size)

        start_r, start_c = start(row), start(column)

        def mask(b, h, q, k):
            inside_r = (row[k] // dilation >= start_r[q]) & (row[k] // dilation < start_r[q] + size)
            inside_c = (column[k] // dilation >= start_c[q]) & (column[k] // dilation < start_c[q] + size)
            same = (row[k] % dilation == row[q] % dilation) & (column[k] % dilation == column[q] % dilation)
            return inside_r & inside_c & same

        def place(bias, h, q, k):
            relative_r = row[k] // dilation - row[q] // dilation + size - 1
            relative_c = column[k] // dilation - column[q] // dilation + size - 1
            limit = 2 * size - 2
            return bias[h, relative_r.clamp(0, limit), relative_c.clamp(0, limit)]

    else:
        return None
    block_mask = create_block_mask(mask, None, None, side * side, side * side, device=str(device))
    attend = torch.compile(_flex, dynamic=False) if device.type == "cuda" else _flex

    def call(tensors: dict[str, Tensor]) -> Tensor:
        bias = tensors.get("bias")
        change = None if bias is None else lambda score, b, h, q, k: score + place(bias, h, q, k)
        return attend(tensors["q"], tensors["k"], tensors["v"], change, block_mask)

    return call


def _flex(q: Tensor, k: Tensor, v: Tensor, change: Callable | None, block_mask: BlockMask) -> Tensor:
    shape = q.shape
    q, k, v = (x.flatten(1, 2).transpose(1, 2) for x in (q, k, v))
    return flex_attention(q, k, v, change, block_mask).transpose(1, 2).reshape(shape)


def runs_of(call: Call, sets: list[dict[str, Tensor]], backward: bool) -> measure.Run:
    """A run of the call, each time on the next of several sets of inputs, so that no cache holds them."""
    turn = itertools.cycle(sets)
    cotangent = None

    def run() -> None:
        nonlocal cotangent
        tensors = next(turn)
        if not backward:
            with torch.no_grad():
                call(tensors)
            return
        out = call(tensors)
        if cotangent is None:
            cotangent = torch.randn_like(out)
        torch.autograd.grad(out, [x for x in tensors.values() if x.requires_grad], cotangent)

    return run


def milliseconds(run: measure.Run, rounds: int) -> float:
    if measure.device().type == "cuda":
        from triton.testing import do_bench

        return do_bench(run, warmup=50, rep=200, return_mode="median")
    run()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def limits(dtype: torch.dtype, smoke: bool) -> tuple[float, float]:
    """Bytes per second of a large copy, read and written; multiply-adds per second of a large matrix product."""
    source = torch.randn(2**12 if smoke else 2**29, device=measure.device()).to(dtype)
    target = torch.empty_like(source)
    copied = milliseconds(lambda: target.copy_(source), 5) / 1e3
    side = 128 if smoke else 8192
    a, b = torch.randn(2, side, side, device=measure.device()).to(dtype)
    multiplied = milliseconds(lambda: a @ b, 5) / 1e3
    return 2 * source.numel() * source.element_size() / copied, side**3 / multiplied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--match", default="", help="only workloads with this in their name or operator")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--json", type=Path, default=Path("kernels.json"), help="where the figures go")
    parser.add_argument("--smoke", action="store_true", help="tiny maps and few runs; the figures mean nothing")
    options = parser.parse_args()
    device = measure.device()
    if device.type != "cuda" and not options.smoke:
        sys.exit("The Triton kernels need a GPU, and PyTorch sees none. Give --smoke to try the script without one.")
    dtype = getattr(torch, "float32" if device.type != "cuda" else options.dtype)
    batch = 1 if options.smoke else options.batch
    bandwidth, rate = limits(dtype, options.smoke)
    print(f"{measure.headline(str(dtype))}, batch {batch}")
    print(f"copy {bandwidth / 1e9:.0f} GB/s read and written, matrix product {rate / 1e12:.2f} T multiply-adds/s")
    columns = ("ours, ms", "bytes, ms", "adds, ms", "to floor", "eager", "compiled", "flex", "to best", "MiB", "others")
    print(f"{'':62}" + "".join(f"{title:>10}" for title in columns))
    results = []
    for workload in SMOKE if options.smoke else workloads.WORKLOADS:
        if options.match not in f"{workload.operator} {workload.name}":
            continue
        for backward in (False, True):
            row = time_workload(workload, batch, dtype, backward, bandwidth, rate, options.smoke)
            results.append(row)
            shown = [row[key] for key in ("triton", "bytes_floor", "products_floor", "to_floor")]
            shown += [row[key] for key in ("eager", "compiled", "flex", "to_best", "memory", "memory_of_others")]
            title = f"{workload.operator.removesuffix('_attention')}: {workload.name}"
            title += ", and backward" if backward else ""
            print(f"{title:62}" + "".join(f"{'-' if x is None else format(x, '.3f'):>10}" for x in shown), flush=True)
    options.json.parent.mkdir(parents=True, exist_ok=True)
    about = dict(machine=measure.headline(str(dtype)), batch=batch, copy_bytes_per_second=bandwidth, rate=rate)
    options.json.write_text(json.dumps(about | dict(results=results), indent=1))
    print(f"Figures in ms and MiB: {options.json}")


def time_workload(
    workload: Workload, batch: int, dtype: torch.dtype, backward: bool, bandwidth: float, rate: float, smoke: bool
) -> dict:
    device = measure.device()
    size = batch * sum(torch.Size(s).numel() for s in workload.maps.values()) * dtype.itemsize
    count = 1 if smoke else max(2, min(16, -(-(256 * 2**20) // size)))  # more than a cache holds
    sets = [
        {n: x.detach().requires_grad_(backward) for n, x in workload.tensors(batch, dtype, device).items()}
        for _ in range(count)
    ]
    others = dict(eager=with_choice(workload, "reference"), compiled=compiled_reference(workload))
    if smoke:
        del others["compiled"]
    by_flex = flex(workload, device)
    if by_flex is not None:
        others["flex"] = by_flex
    rounds = 1 if smoke else 10
    check_agreement(workload, others, {n: x.detach() for n, x in sets[0].items()})
    ours = runs_of(with_choice(workload, "triton"), sets, backward)
    row = dict(operator=workload.operator, name=workload.name, backward=backward, triton=milliseconds(ours, rounds))
    row |= dict(eager=None, compiled=None, flex=None, memory=measure.peak_memory(ours) / 2**20)
    memories = []
    for name, call in others.items():
        try:
            run = runs_of(call, sets, backward)
            row[name] = milliseconds(run, rounds)
            memories.append(measure.peak_memory(run) / 2**20)
        except (RuntimeError, torch._dynamo.exc.TorchDynamoException) as error:  # such as no memory
            print(f"  {name}: {str(error).splitlines()[0]}")
            torch.cuda.empty_cache()
    # Backward: inputs and the gradient of the output are read once more, the inputs' gradients written.
    elements = workload.elements(batch) * (2 if backward else 1) + (size // dtype.itemsize if backward else 0)
    row["bytes_floor"] = 1e3 * elements * dtype.itemsize / bandwidth
    # Backward: the products of the forward pass again, and two for each of them.
    row["products_floor"] = 1e3 * batch * workload.products * (4 if backward else 1) / rate
    row["to_floor"] = row["triton"] / max(row["bytes_floor"], row["products_floor"])
    best = min(row[name] for name in others if row[name] is not None)
    row["to_best"] = best / row["triton"]
    row["memory_of_others"] = min(memories)
    return row


def check_agreement(workload: Workload, others: dict[str, Call], tensors: dict[str, Tensor]) -> None:
    """Exit unless all compute the same function."""
    ours = with_choice(workload, "triton")(tensors).float()
    for name, call in others.items():
        mismatch = float((call(tensors).float() - ours).norm() / ours.norm())
        if not mismatch < 2e-2:
            sys.exit(f"{workload.operator}, {workload.name}: {name} and the kernels differ by {mismatch:.1e}.")


if __name__ == "__main__":
    main()
