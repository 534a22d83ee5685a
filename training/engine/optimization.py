"""Arithmetic, optimizer and schedule."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from fnmatch import fnmatch

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from timm.utils import dispatch_clip_grad
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from backbones.errors import InputError

from .settings import OptimizerSettings, ScheduleSettings

SCHEDULES = (
    "cosine",
    "step",
    "multistep",
    "poly",
)  # the others of timm need settings that are not here, or a newer timm
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
        self,
        optimizer: Optimizer,
        parameters: list[nn.Parameter],
        clip_grad: float | None,
        clip_mode: str = "norm",
        wary: bool = False,
    ) -> Tensor:
        """Clip the gradient and update; fp16 steps with infinite gradients are left out.

        Args:
            wary: leave out a step whose gradient is not finite in any precision, for which it must be waited for.

        Returns:
            The gradient's norm before clipping, on the device.
        """
        self.scaler.unscale_(optimizer)
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if clip_grad is not None:
            if clip_mode == "norm":
                nn.utils.clip_grads_with_norm_(parameters, clip_grad, norm)
            else:
                dispatch_clip_grad(parameters, clip_grad, clip_mode)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        if self.scaler.is_enabled() or not wary or norm.isfinite():
            self.scaler.step(optimizer)
            self.scaler.update()
        optimizer.zero_grad(set_to_none=True)
        return norm


def scale_rates(
    optimizer: OptimizerSettings, schedule: ScheduleSettings, images_per_step: int, reference: int | None
) -> tuple[OptimizerSettings, ScheduleSettings]:
    """The settings with all their learning rates, given for `reference` pictures per step, for `images_per_step`.

    The rule is linear; with no reference, the rates are those given.
    """
    factor = 1.0 if reference is None else images_per_step / reference
    rates = dict(warmup_lr=schedule.warmup_lr * factor, min_lr=schedule.min_lr * factor)
    return replace(optimizer, lr=optimizer.lr * factor), replace(schedule, **rates)


def build_optimizer(model: nn.Module, settings: OptimizerSettings) -> Optimizer:
    """timm's optimizer with its rules for weight decay and layer decay."""
    extra = {} if settings.betas is None else {"betas": tuple(settings.betas)}
    extra |= {} if settings.eps is None else {"eps": settings.eps}
    try:
        optimizer = create_optimizer_v2(
            model,
            opt=settings.name,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            layer_decay=settings.layer_decay,
            **extra,
        )
    except (AssertionError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"timm cannot build the optimizer {settings.name!r} with recipe.optimizer: {error}") from error
    for pattern, factor in settings.lr_multipliers.items():
        _multiply_rate(optimizer, model, pattern, factor)
    return optimizer


def _multiply_rate(optimizer: Optimizer, model: nn.Module, pattern: str, factor: float) -> None:
    """Give the parameters whose names match a pattern groups of their own, with another peak learning rate."""
    chosen = {id(parameter) for name, parameter in model.named_parameters() if fnmatch(name, pattern)}
    if not chosen:
        raise InputError(
            f"recipe.optimizer.lr_multipliers has the pattern {pattern!r}, but no parameter of the model has such a "
            f"name; they are called {next(name for name, _ in model.named_parameters())!r} and the like."
        )
    for group in list(optimizer.param_groups):
        taken = [parameter for parameter in group["params"] if id(parameter) in chosen]
        if taken:
            group["params"] = [parameter for parameter in group["params"] if id(parameter) not in chosen]
            optimizer.param_groups.append({**group, "params": taken, "lr": group["lr"] * factor})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


class Schedule:
    """Learning rate by optimizer step; a function of the step alone, so there is no state to save.

    Args:
        scheduler: timm's, counting optimizer steps.
        stride: number of steps in which the rate stays the same.
    """

    def __init__(self, scheduler: Scheduler, stride: int):
        self._scheduler, self._stride = scheduler, stride

    def step_update(self, step: int) -> None:
        """Set the rate of a step, counted from 0."""
        self._scheduler.step_update(step // self._stride * self._stride)


def build_schedule(
    optimizer: Optimizer, settings: ScheduleSettings, total_steps: int, steps_per_epoch: int
) -> Schedule:
    """timm's scheduler over `total_steps` optimizer steps, warm-up and cool-down among them."""
    if settings.name not in SCHEDULES:
        raise InputError(f"recipe.schedule.name is {settings.name!r}, but must be one of {', '.join(SCHEDULES)}.")
    warmup = settings.warmup_steps
    if warmup is None:
        warmup = round(settings.warmup_epochs * steps_per_epoch)
    warmup = min(warmup, total_steps - 1)
    before = warmup if settings.warmup_prefix else 0
    cooldown = min(round(settings.cooldown_epochs * steps_per_epoch), total_steps - before - 1)
    scheduler, _ = create_scheduler_v2(
        optimizer,
        sched=settings.name,
        num_epochs=total_steps - before - cooldown,
        warmup_epochs=warmup,
        decay_epochs=max(1, round(settings.decay_epochs * steps_per_epoch)),
        # timm cuts the rate one step before a milestone, and counts from the end of a warm-up that stands before.
        decay_milestones=[round(epoch * steps_per_epoch) + 1 - before for epoch in settings.milestones],
        decay_rate=settings.decay_rate,
        min_lr=settings.min_lr,
        warmup_lr=settings.warmup_lr,
        warmup_prefix=settings.warmup_prefix,
        step_on_epochs=False,
        updates_per_epoch=1,  # so that everything above counts optimizer steps
    )
    return Schedule(scheduler, steps_per_epoch if settings.by_epoch else 1)
