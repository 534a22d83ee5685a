"""What all operators ask of their tensors."""

from torch import Tensor


def check_tensors(operator: str, alike: dict[str, Tensor], others: dict[str, Tensor | None] | None = None) -> None:
    """Raise ValueError unless all are floating-point tensors on one device, and those of `alike` of one type."""
    others = {name: x for name, x in (others or {}).items() if x is not None}
    every = alike | others
    types = ", ".join(f"{name} {x.dtype} on {x.device}" for name, x in every.items())
    if not all(x.is_floating_point() for x in every.values()):
        raise ValueError(f"{operator} expects tensors of floating-point numbers, but got {types}.")
    if len({x.dtype for x in alike.values()}) > 1:
        raise ValueError(
            f"{operator} expects {', '.join(alike)} of one type, but got {types}. Convert them with .to()."
        )
    if len({x.device for x in every.values()}) > 1:
        raise ValueError(f"{operator} expects all tensors on one device, but got {types}. Move them with .to().")
