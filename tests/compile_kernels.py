"""Compiles the Triton kernels ahead of time, without a GPU, and prints what each takes of it, a JSON line a kernel.

    TRITON_INTERPRET=0 python -m tests.compile_kernels sm_90 [--dtype float32] [--cases "window 7" "outlook 3"]

The operators' launches are caught on their way to the driver, so what is compiled is what they launch.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction

from backbones.kernels import dispatch

from .kernel_cases import Case, aggregate_case, neighborhood_case, outlook_case, routed_case, window_case

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32"}


def cases() -> dict[str, Case]:
    """The operators as the models call them."""
    return {
        "window 7": window_case(2, 56, 56, 3, 32, (7, 7)),
        "window 7, shifted": window_case(2, 50, 50, 3, 32, (7, 7), (3, 3)),
        "window 7, one query": window_case(2, 14, 14, 3, 32, (7, 7), shared=True),
        "window 2": window_case(2, 56, 56, 2, 32, (2, 2), bias=False, pad=False),
        "window 12, shifted": window_case(2, 50, 50, 3, 32, (12, 12), (6, 6)),
        "window 14, one query": window_case(2, 28, 28, 3, 32, (14, 14), shared=True),
        "neighbourhood 7": neighborhood_case(2, 56, 56, 2, 32, 7),
        "neighbourhood 7, dilated": neighborhood_case(2, 56, 56, 2, 32, 7, 8),
        "neighbourhood 13": neighborhood_case(2, 28, 28, 2, 32, 13),
        "aggregate 13": aggregate_case(2, 14, 14, 8, 16, 13),
        "aggregate 13, softmax": aggregate_case(2, 14, 14, 8, 16, 13, softmax=True),
        "outlook 3": outlook_case(2, 28, 28, 6, 32),
        "routed, 64 tokens": routed_case(2, (7, 7), (8, 8), 2, 32, 1),
        "routed, 4 tokens": routed_case(2, (7, 7), (2, 2), 8, 32, 16),
    }


def launches_of(case: Case, dtype: torch.dtype) -> list[tuple[JITFunction, tuple, dict]]:
    """Kernel, arguments and options of each launch of an operator and its gradient, none of which runs."""
    caught = []
    run, obstacle = JITFunction.run, dispatch._obstacle
    JITFunction.run = lambda self, *args, grid, warmup, **options: caught.append((self, args, options))
    dispatch._obstacle = lambda x: None  # not even that there is no GPU
    try:
        with dispatch.use("triton"):
            case.run(dtype)
    finally:
        JITFunction.run, dispatch._obstacle = run, obstacle
    return caught


def describe(value, path: tuple[int, ...], constants: dict, attributes: dict):
    """Type of an argument for the compiler; what it may assume of the value goes into the two dictionaries."""
    if isinstance(value, tuple):
        return tuple(describe(v, (*path, i), constants, attributes) for i, v in enumerate(value))
    if isinstance(value, torch.Tensor):
        attributes[path] = [["tt.divisibility", 16]]
        return "*" + TYPES[value.dtype]
    if value is None or (value == 1 and isinstance(value, int)):
        constants[path] = value
        return "constexpr"
    if isinstance(value, float):
        return "fp32"
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i64" if abs(value) >= 2**31 else "i32"


def compile_launch(kernel: JITFunction, args: tuple, options: dict, target: GPUTarget):
    """The compiled kernel of one launch."""
    options = dict(options)
    signature, constants, attributes = {}, {}, {}
    values = dict(zip(kernel.arg_names, args)) | {n: options.pop(n) for n in kernel.arg_names if n in options}
    for i, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        if parameter.is_constexpr:
            signature[parameter.name], constants[(i,)] = "constexpr", value
        else:
            signature[parameter.name] = describe(value, (i,), constants, attributes)
    options = make_backend(target).parse_options(options).__dict__
    return triton.compile(ASTSource(kernel, signature, constants, attributes), target=target, options=options)


def resources(compiled, target: GPUTarget) -> dict[str, int]:
    """Registers and spilled bytes of a thread, shared memory of a program in bytes."""
    if target.backend == "hip":
        text = compiled.asm["amdgcn"]
        number = {n: int(re.search(rf"\.{n}:\s+(\d+)", text)[1]) for n in ("vgpr_count", "private_segment_fixed_size")}
        spilled = number["private_segment_fixed_size"]
        return dict(registers=number["vgpr_count"], spills=spilled, shared=compiled.metadata.shared)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        text = subprocess.check_output([tool, "--dump-resource-usage", file.name], text=True)
    number = {n: int(re.search(rf"{n}:(\d+)", text)[1]) for n in ("REG", "STACK", "LOCAL")}
    spilled = number["STACK"] + number["LOCAL"]
    return dict(registers=number["REG"], spills=spilled, shared=compiled.metadata.shared)


def main() -> None:
    known = cases()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--cases", nargs="+", choices=known, default=list(known))
    arguments = parser.parse_args()
    target = TARGETS[arguments.target]
    for name in arguments.cases:
        for kernel, args, options in launches_of(known[name], getattr(torch, arguments.dtype)):
            compiled = compile_launch(kernel, args, options, target)
            row = dict(case=name, kernel=kernel.__name__.removesuffix("_kernel"))
            print(json.dumps(row | resources(compiled, target)), flush=True)


if __name__ == "__main__":
    main()
