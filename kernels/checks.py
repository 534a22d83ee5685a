"""What all operators ask of their tensors."""

from torch import Tensor


def check_tensors(operator: str, alike: dict[str, Tensor], others: dict[str, Tensor | None] | None = None) -> None:
    """Raise ValueError unless all are floating-point tensors on one device, and those of `alike` of one type."""
    others = {name: x for name, x in (others or {}).items() if x is not None}
    every = alike | others
    if not all(x.is_floating_point() for x in every.values()):
        raise ValueError(f"{operator} expects tensors of floating-point numbers, but got {_describe(every)}.")
    if len({x.dtype for x in alike.values()}) > 1:
        names = ", ".join(alike)
        raise ValueError(
            f"{operator} expects {names} of one type, but got {_describe(every)}. Convert them with .to()."
        )
    if len({x.device for x in every.values()}) > 1:
        raise ValueError(
            f"{operator} expects all tensors on one device, but got {_describe(every)}. Move them with .to()."
        )


def _describe(tensors: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} {x.dtype} on {x.device}" for name, x in tensors.items())
