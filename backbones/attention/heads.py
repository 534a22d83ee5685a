"""What every multi-head block checks."""

from ..errors import InputError


def check_heads(dim: int, num_heads: int) -> None:
    """Raise InputError where heads of equal size cannot make up the width."""
    if num_heads < 1 or dim % num_heads:
        raise InputError(
            f"A width of {dim} channels cannot be split into {num_heads} heads of equal size; "
            "choose num_heads that divides dim."
        )
