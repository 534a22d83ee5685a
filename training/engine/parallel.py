"""One model in many processes, by PyTorch's own means: replicated (DDP) or sharded (FSDP2)."""

import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ..distributed import world_size
from .settings import TrainerSettings

FULL = StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_sharded(trainer: TrainerSettings) -> bool:
    """Whether each process has a part of the model; one process alone has it whole in any case."""
    return trainer.strategy == "fsdp" and world_size() > 1


def images_per_step(trainer: TrainerSettings) -> int:
    """Pictures of one optimizer step, by all processes together."""
    return trainer.batch_size * trainer.accumulation_steps * world_size()


def shard(model: nn.Module, device: torch.device, trainer: TrainerSettings, dtype: torch.dtype | None) -> None:
    """Shard a model in place over all processes, each block of its own, so that one block at a time is whole.

    Args:
        dtype: of the parameters while a block is whole; the shards, their gradients' sums and the updates are float32.
    """
    options: dict[str, Any] = dict(
        mesh=init_device_mesh(device.type, (world_size(),)),
        mp_policy=MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False),
    )
    if trainer.cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type == "cuda")
    for module in model.modules():
        for block in getattr(module, "blocks", ()):
            fully_shard(block, **options)
    fully_shard(model, **options)


def replicate(model: nn.Module, trainer: TrainerSettings) -> nn.Module:
    """What trains a copy of the model in each process: its forward is the model's, its backward adds up gradients."""
    if world_size() == 1:
        return model
    if trainer.sync_batchnorm and next(model.parameters()).is_cuda:  # PyTorch has it for GPUs alone
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    # In their first layers, pictures that lie channels last meet weights that do not, of which DDP warns at length.
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=trainer.accumulation_steps == 1)
    if trainer.bf16_gradients:
        replica.register_comm_hook(None, bf16_compress_hook)
    return replica


def unsynchronised(model: nn.Module, wait: bool) -> AbstractContextManager:
    """The gradients of a backward pass in this context stay in their process if `wait`: there are more to come."""
    if isinstance(model, DistributedDataParallel) and wait:
        return model.no_sync()
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(not wait)
    return nullcontext()


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every process the first one's running statistics, as DDP does by itself before each forward pass."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if world_size() == 1 or not buffers:
        return
    flat = torch.cat([buffer.flatten().double() for buffer in buffers])
    dist.broadcast(flat, src=0)
    for buffer, values in zip(buffers, flat.split([buffer.numel() for buffer in buffers])):
        buffer.copy_(values.view_as(buffer))


def full_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """The whole state dict on the CPU, of a sharded model too; every process must call it."""
    return get_model_state_dict(model, options=FULL)


def load_full_weights(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    """Load a whole state dict strictly, into a sharded model too."""
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))
