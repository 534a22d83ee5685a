"""Which implementation of an operator runs: the reference in PyTorch, or the Triton kernels.

By itself, an operator takes Triton on a GPU (CUDA or ROCm) for what its kernels support, and the reference for all
else. The choice can be forced, `use("reference")` or `use("triton")`, and by the environment variable
`BACKBONES_KERNELS` for a whole process. Forced, what Triton cannot do is an error that says why.
"""

import importlib.util
import os

import torch
from torch import Tensor

CHOICES = ("auto", "reference", "triton")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_HEAD_DIM = 128
HAS_TRITON = importlib.util.find_spec("triton") is not None
DEBUG = os.environ.get("BACKBONES_KERNELS_DEBUG", "0") == "1"  # checks for which a GPU has to be waited for
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")  # on any device


def _checked(choice: str, source: str) -> str:
    if choice not in CHOICES:
        raise ValueError(f"{source} is one of {', '.join(CHOICES)}, but got {choice!r}.")
    return choice


_choice = _checked(os.environ.get("BACKBONES_KERNELS") or "auto", "The environment variable BACKBONES_KERNELS")


class use:
    """Choose "reference", "triton" or "auto" for all operators from here on; in a `with`, until its end.

    The choice is the process's, for all its threads.
    """

    def __init__(self, choice: str):
        global _choice
        self.before, _choice = _choice, _checked(choice, "The implementation of the kernels")

    def __enter__(self) -> "use":
        return self

    def __exit__(self, *_) -> None:
        global _choice
        _choice = self.before


def choose_triton(operator: str, x: Tensor) -> bool:
    """Whether Triton runs an operator, by its name for messages, on tensors like `x`, (…, head_dim).

    Raises:
        ValueError: Triton is asked for and cannot run this; says why.
    """
    if _choice == "reference" or (_choice == "auto" and not x.is_cuda):
        return False
    if x.is_meta:  # where the reference says what an operator costs
        return False
    # Exported programs hold operators of PyTorch only, and transformations such as vmap know only those.
    if torch.compiler.is_exporting() or torch.jit.is_tracing() or is_transformed(x):
        return False
    reason = _obstacle(x)
    if reason and _choice == "triton":
        raise ValueError(
            f"The Triton kernels of {operator} were asked for, but {reason}. Leave the choice to the operator with "
            'backbones.kernels.dispatch.use("auto"), or unset BACKBONES_KERNELS.'
        )
    return reason is None


def is_transformed(x: Tensor) -> bool:
    """Whether `x` stands for others, in torch.func's transformations."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)


def _obstacle(x: Tensor) -> str | None:
    """What keeps Triton from running any operator on `x`, or None."""
    if not HAS_TRITON:
        return "Triton is not installed (pip install triton)"
    if x.dtype not in DTYPES:
        return f"they compute in float32, float16 or bfloat16, and these tensors are of {x.dtype}"
    if x.shape[-1] > MAX_HEAD_DIM:
        return f"they take heads of at most {MAX_HEAD_DIM} channels, and these have {x.shape[-1]}"
    if INTERPRETED and x.dtype == torch.bfloat16:
        return "Triton's interpreter, which TRITON_INTERPRET=1 asks for, has no products of bfloat16"
    if not (x.is_cuda or INTERPRETED):
        return (
            f"the tensors are on {x.device}, and Triton runs on GPUs. To try the kernels on a CPU, set "
            "TRITON_INTERPRET=1 before Python starts"
        )
    return None


def refuse_double_backward(backward: torch.library.CustomOpDef) -> None:
    """Give an operator that computes gradients an error of its own where its gradient is asked for."""

    def refuse(ctx, *_):
        raise NotImplementedError(
            f"The Triton kernels have no second derivatives ({backward._qualname}). For these, compute the first ones "
            'inside `with backbones.kernels.dispatch.use("reference")`, forward pass included.'
        )

    backward.register_autograd(refuse, setup_context=lambda ctx, inputs, output: None)
