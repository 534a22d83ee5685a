"""Compiles the Triton kernels ahead of time, without a GPU, and prints what each takes of it, a JSON line a kernel.

    python tests/compile_kernels.py sm_90 [operator …]

The operators' launches are caught on their way to the driver, so what is compiled is what they launch.
"""

import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.int64: "i64", torch.int32: "i32"}


def launches_of(call: Callable[[], object]) -> list[tuple[JITFunction, tuple, dict]]:
    """Kernel, arguments and options of each launch of `call`, none of which runs."""
    caught = []
    run = JITFunction.run
    JITFunction.run = lambda self, *args, grid, warmup, **options: caught.append((self, args, options))
    try:
        call()
    finally:
        JITFunction.run = run
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
