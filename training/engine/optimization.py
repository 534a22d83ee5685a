"""Arithmetic, optimizer and schedule."""

from contextlib import AbstractContextManager, nullcontext

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from backbones.errors import InputError

from .settings import OptimizerSettings, ScheduleSettings

SCHEDULES = ("cosine", "step", "poly")  # the others of timm need settings that are not here, or a newer timm
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class Precision:
    """Mixed-precision arithmetic: the autocast context, and loss scaling where fp16 needs it."""

    def __init__(self, name: str, device: torch.device):
        if name not in PRECISIONS:
            raise InputError(f"trainer.precision is {name!r}, but must be one of {', '.join(PRECISIONS)}.")
        self._dtype, self._device = PRECISIONS[name], device
        self.scaler = torch.amp.GradScaler(device.type, enabled=name == "fp16")

    def autocast(self) -> AbstractContextManager:
        return torch.autocast(self._device.type, self._dtype) if self._dtype else nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def step(
        self, optimizer: Optimizer, parameters: list[nn.Parameter], clip_grad: float | None, wary: bool = False
    ) -> Tensor:
        """Clip the gradient's norm and update; fp16 steps with infinite gradients are left out.

        Args:
            wary: leave out a step whose gradient is not finite in any precision, for which it must be waited for.

        Returns:
            The norm before clipping, on the device.
        """
        self.scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip_grad is not None:
            nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self.scaler.is_enabled() or not wary or norm.isfinite():
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """timm's optimizer with its rules for weight decay and layer decay."""
    extra = {} if settings.betas is None else {"betas": tuple(settings.betas)}
    try:
        return create_optimizer_v2(
            model,
            opt=settings.name,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
            **extra,
        )
    except (AssertionError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"timm cannot build the optimizer {settings.name!r} with recipe.optimizer: {error}") from error


def build_schedule(
    optimizer: Optimizer, settings: ScheduleSettings, total_steps: int, steps_per_epoch: int
) -> Scheduler:
    """timm's scheduler over `total_steps` optimizer steps; `step_update(step)` sets the rate of a step.

    The rate is a function of the step alone, so a schedule has no state to save.
    """
    if settings.name not in SCHEDULES:
        raise InputError(f"recipe.schedule.name is {settings.name!r}, but must be one of {', '.join(SCHEDULES)}.")
    warmup = min(round(settings.warmup_epochs * steps_per_epoch), total_steps - 1)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=settings.name,
        num_epochs=total_steps - warmup,
        warmup_epochs=warmup,
        decay_epochs=max(1, round(settings.decay_epochs * steps_per_epoch)),
        decay_rate=settings.decay_rate,
        min_lr=settings.min_lr,
        warmup_lr=settings.warmup_lr,
        warmup_prefix=True,
        step_on_epochs=False,
        updates_per_epoch=1,  # so that everything above counts optimizer steps
    )
    return schedule
