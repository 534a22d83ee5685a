"""Batches to the device while it computes."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only

Batch = TypeVar("Batch")  # tensors in tuples, lists or dictionaries


def prefetched(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """The batches, on the device; a GPU gets each while it works on the one before.

    On a GPU, one batch more than was asked for is taken from `batches`, so cut those to length first. Its tensors are
    ready on the stream that is current when it is asked for. On the CPU the batches are handed through.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def copied(x: Tensor) -> Tensor:
        return x.pin_memory().to(device, non_blocking=True)  # from memory that is not pinned, a copy waits for the GPU

    def handed_over(batch: Batch, copied_at: torch.cuda.Event) -> Batch:
        current = torch.cuda.current_stream(device)
        current.wait_event(copied_at)
        for x in tree_iter(batch):
            if isinstance(x, Tensor):
                x.record_stream(current)  # or a later copy could take its memory while it is still read
        return batch

    ahead = None
    for batch in batches:
        with torch.cuda.stream(stream):
            batch = tree_map_only(Tensor, copied, batch)
            copied_at = stream.record_event()
        if ahead is not None:
            yield handed_over(*ahead)
        ahead = batch, copied_at
    if ahead is not None:
        yield handed_over(*ahead)
