"""What a model keeps for its backward pass, counted without computing anything."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

import backbones
from backbones.backbone import Stage

from .estimate import Footprint

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def footprint(
    name: str,
    checkpointing: bool = False,
    precision: str = "fp32",
    device: str = "cuda",
    input_size: tuple[int, int, int] = (3, 224, 224),
    **keywords,
) -> Footprint:
    """Parameters of a model, and the bytes that a training step keeps for the backward pass.

    The forward pass and the loss run on tensors without content, at batches of one and two, so a GPU's figures need no
    GPU: with device="cuda" it takes the operators that it takes there, the Triton kernels among them.

    Args:
        precision: fp32, or of autocast: bf16 or fp16.
        device: cpu or cuda.
        input_size: of an image, (channels, H, W), in pixels.
        keywords: of `backbones.create_model`.
    """
    # Outside of the mode: initialisation reads numbers off tensors.
    model = backbones.create_model(name, device="meta", in_chans=input_size[0], **keywords).train()
    block_modules = [block for stage in model.modules() if isinstance(stage, Stage) for block in stage.blocks]
    with FakeTensorMode(allow_non_fake_inputs=True), _autocast(device, DTYPES[precision]):
        model.to_empty(device=device)

        def at_batches() -> list[tuple[int, list[int]]]:
            return [kept(model, torch.empty(n, *input_size, device=device), block_modules) for n in (1, 2)]

        (one, one_by_block), (two, two_by_block) = at_batches()
        if checkpointing:
            model.set_grad_checkpointing()
            (one, _), (two, _) = at_batches()
    return Footprint(
        parameters=_size(model),
        largest_block=max(map(_size, block_modules)),
        blocks=len(block_modules),
        image_bytes=two - one,
        fixed_bytes=2 * one - two,
        block_bytes=max(b - a for a, b in zip(one_by_block, two_by_block)) if checkpointing else 0,
    )


def kept(model: nn.Module, images: Tensor, blocks: list[nn.Module]) -> tuple[int, list[int]]:
    """Bytes that a step keeps besides parameters and buffers, in all and by each block; a storage counts once."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}
    by_block = []

    def total() -> int:
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    def keep(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage()._cdata
        if key not in own:
            kept.setdefault(key, tensor)  # which keeps the storage alive, and its key from being used again
        return tensor

    hooks = []
    for block in blocks:
        hooks.append(block.register_forward_pre_hook(lambda *_: by_block.append(-total())))
        hooks.append(block.register_forward_hook(lambda *_: by_block.append(by_block.pop() + total())))
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(images)
        F.cross_entropy(logits.float(), torch.zeros(len(images), dtype=torch.long, device=images.device))
    for hook in hooks:
        hook.remove()
    torch.clear_autocast_cache()
    return total(), by_block


@contextmanager
def _autocast(device: str, dtype: torch.dtype | None) -> Iterator[None]:
    """`torch.autocast`, which would refuse the type of a device that is not there."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
    torch.set_autocast_enabled(device, True)
    torch.set_autocast_dtype(device, dtype)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device, before[0])
        torch.set_autocast_dtype(device, before[1])


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
