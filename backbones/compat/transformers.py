"""Repairs of transformers' models that this project knows to be needed."""

from torch import Tensor, nn

from ..errors import InputError
from .natten import natten2dav, natten2dqkrpb


def repair_dinat() -> None:
    """Make the attention of transformers' DiNAT right, in all its models of this process.

    It swaps rows and columns where it should move the heads before them (seen in 5.23 and 5.24), and so gives NATTEN
    (B, W, H, heads, head_dim) for (B, heads, H, W, head_dim). This fails or, on a map that is as wide as there are
    heads, attends along the heads. The weights are not concerned.
    """
    try:
        from transformers.models.dinat.modeling_dinat import NeighborhoodAttention
    except ModuleNotFoundError as error:
        raise InputError("There is no transformers to repair: pip install 'backbones[mask2former]'.") from error
    NeighborhoodAttention.forward = _attend


def _attend(self: nn.Module, hidden_states: Tensor, output_attentions: bool | None = False) -> tuple[Tensor, ...]:
    """A map (B, H, W, C) to the same shape, and with `output_attentions` the weights."""
    query, key, value = (
        layer(hidden_states).unflatten(3, (-1, self.attention_head_size)).permute(0, 3, 1, 2, 4)
        for layer in (self.query, self.key, self.value)
    )
    query = query * self.attention_head_size**-0.5
    weights = natten2dqkrpb(query, key, self.rpb, self.kernel_size, self.dilation).softmax(-1)
    weights = self.dropout(weights)
    out = natten2dav(weights, value, self.kernel_size, self.dilation).permute(0, 2, 3, 1, 4).flatten(3)
    return (out, weights) if output_attentions else (out,)
