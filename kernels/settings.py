"""How the Triton kernels are launched, per class of GPU: what `python -m backbones tune` measures and prints.

Of each kernel: the warps of a program, the stages of its software pipeline, the tile that it works on, in tokens, and
`programs`, the number that a launch aims at where one program may do the work of several.
"""

import functools

import torch
from torch import Tensor

TILE = 64  # tokens of a full tile, which `num_warps` is for

DEFAULT = {
    "window_forward": dict(num_warps=8, num_stages=1, programs=4096),
    "window_backward": dict(num_warps=8, num_stages=1, programs=1024),
    "window_backward_q": dict(num_warps=8, num_stages=1, programs=1024),
    "window_backward_kv": dict(num_warps=8, num_stages=1),
    "window_backward_bias": dict(num_warps=8, num_stages=1, programs=1024),
    "neighborhood_forward": dict(num_warps=8, num_stages=1),
    "aggregate_forward": dict(num_warps=4, num_stages=1),  # without a softmax
    "neighborhood_backward_q": dict(num_warps=8, num_stages=1),
    "neighborhood_backward_kv": dict(num_warps=8, num_stages=1),
    "neighborhood_backward_bias": dict(num_warps=8, num_stages=1, programs=1024),
    "outlook_forward": dict(num_warps=4, num_stages=1, SIZE=64),
    "outlook_backward_v": dict(num_warps=4, num_stages=1, SIZE=64),
    "outlook_backward_logits": dict(num_warps=4, num_stages=1, SIZE=64),
    "routed_forward": dict(num_warps=8, num_stages=2),
    "routed_backward_q": dict(num_warps=8, num_stages=2),
    "routed_backward_kv": dict(num_warps=8, num_stages=2),
}
# What differs from the default, by compute capability ("sm_90") or architecture ("gfx942").
TUNED: dict[str, dict[str, dict[str, int]]] = {}


def settings(kernel: str, x: Tensor, size: int = TILE) -> dict[str, int]:
    """Launch settings of a kernel for tensors like `x` and tiles of `size` tokens."""
    chosen = DEFAULT[kernel] | TUNED.get(gpu_class(x.device), {}).get(kernel, {})
    if x.dtype == torch.float32:  # exact products keep whole tiles in registers
        chosen["num_warps"] *= 2
    chosen["num_warps"] = max(1, chosen["num_warps"] * size // TILE)
    return chosen


@functools.cache
def gpu_class(device: torch.device) -> str:
    """ "sm_90" for an NVIDIA GPU, "gfx942" for one of AMD, "cpu" elsewhere."""
    if device.type != "cuda":
        return device.type
    properties = torch.cuda.get_device_properties(device)
    if torch.version.hip:
        return properties.gcnArchName.partition(":")[0]
    return f"sm_{properties.major}{properties.minor}"
