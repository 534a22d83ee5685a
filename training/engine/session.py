"""Everything of a run that changes, and how it is saved and restored."""

from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from backbones.errors import InputError, first_line

from ..distributed import rank
from .checkpoints import Checkpoints, load_shards
from .files import write_atomically
from .optimization import PRECISIONS, Precision, build_optimizer, build_schedule
from .parallel import full_weights, images_per_step, is_sharded, replicate, shard, share_buffers, unsynchronised
from .settings import EmaSettings, OptimizerSettings, ScheduleSettings, TrainerSettings


@dataclass
class Progress:
    """How far a run has come. Randomness is seeded from these numbers, so there is no generator to save."""

    steps_per_epoch: int
    epoch: int = 0
    step_in_epoch: int = 0  # optimizer steps done in this epoch
    step: int = 0  # optimizer steps done in all
    loss_sum: float = 0.0  # over the good steps of this epoch
    norm_sum: float = 0.0  # of the gradient, likewise
    bad_in_epoch: int = 0  # steps left out in this epoch
    bad_steps: int = 0  # steps left out in all
    best: float | None = None
    train_seconds: float = 0.0  # in steps, without evaluation and saving
    wall_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)  # the rows of metrics.csv


class Session:
    """Model, optimizer, schedule, average and progress of one run, in as many processes as train it.

    Args:
        model: what is trained, on the device where it is trained.
        batches: of the training loader in an epoch, in each process.
        seed: of everything random in the run.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        batches: int,
        seed: int,
        trainer: TrainerSettings,
        optimizer: OptimizerSettings,
        schedule: ScheduleSettings,
        ema: EmaSettings,
    ):
        if trainer.accumulation_steps > batches:
            raise InputError(
                f"trainer.accumulation_steps is {trainer.accumulation_steps}, but an epoch has {batches} batches."
            )
        self.model, self.device, self.seed, self.trainer = model, device, seed, trainer
        self.sharded = is_sharded(trainer)
        self.progress = Progress(steps_per_epoch=batches // trainer.accumulation_steps)
        self.total_steps = trainer.epochs * self.progress.steps_per_epoch
        if trainer.max_steps is not None:
            self.total_steps = min(self.total_steps, trainer.max_steps)
        self.clip_grad, self.clip_mode = optimizer.clip_grad, optimizer.clip_mode
        self.precision = Precision(trainer.precision, device)
        self.ema = None
        if ema.decay is not None:
            self.ema = ModelEmaV3(model, decay=ema.decay, use_warmup=ema.warmup, foreach=not self.sharded)
        if self.sharded:
            for each in self.candidates().values():
                shard(each, device, trainer, PRECISIONS[trainer.precision])
        self.trained = model if self.sharded else replicate(model, trainer)  # what the training steps call
        self.optimizer = build_optimizer(model, optimizer)
        self.schedule = build_schedule(self.optimizer, schedule, self.total_steps, self.progress.steps_per_epoch)

    @property
    def done(self) -> bool:
        """Whether the last epoch is trained and on record."""
        return self.progress.step >= self.total_steps and self.progress.step_in_epoch == 0

    @property
    def lr(self) -> float:
        """Learning rate of the last step; of the fastest group, where layers have their own."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    @property
    def images_per_step(self) -> int:
        """By all processes together."""
        return images_per_step(self.trainer)

    def candidates(self) -> dict[str, nn.Module]:
        """What to evaluate, by the prefix of its metrics: the model, and its average if there is one."""
        return {"": self.model} if self.ema is None else {"": self.model, "ema_": self.ema.module}

    def gathering(self, part: int) -> AbstractContextManager:
        """The context of a part of a step: with the last one, the processes add up their gradients."""
        if self.sharded:
            share_buffers(self.model)
        return unsynchronised(self.trained, wait=part < self.trainer.accumulation_steps - 1)

    def save(self, checkpoints: Checkpoints) -> None:
        """Write all that `restore` needs; every process calls it."""
        plain = {"scaler": self.precision.scaler.state_dict(), "progress": asdict(self.progress)}
        if self.sharded:
            checkpoints.save_shards(
                self._tensors(), plain | {"counts": [g.get("step") for g in self.optimizer.param_groups]}
            )
            return
        checkpoints.save(
            {
                "model": self.model.state_dict(),
                "ema": None if self.ema is None else self.ema.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                **plain,
            }
        )

    def restore(self, checkpoints: Checkpoints) -> None:
        """Continue from the last whole checkpoint, with the optimizer's settings as they are now.

        Raises:
            InputError: there is none that is whole, or it cannot be continued with these settings.
        """
        steps_per_epoch = self.progress.steps_per_epoch
        settings = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in self.optimizer.param_groups]
        if self.sharded:
            folder, state = checkpoints.load_plain()
        else:
            folder, state = checkpoints.folder, checkpoints.load()
        try:
            if self.sharded:
                self._make_optimizer_state()
                load_shards(folder, self._tensors())
                for group, count in zip(self.optimizer.param_groups, state["counts"], strict=True):
                    group |= {} if count is None else {"step": count}
            else:
                self.model.load_state_dict(state["model"])
                if self.ema is not None:
                    self.ema.module.load_state_dict(state["ema"])
                self.optimizer.load_state_dict(state["optimizer"])
            self.precision.scaler.load_state_dict(state["scaler"])
            self.progress = Progress(**state["progress"])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"The run cannot be resumed from {folder}, which is of another configuration ({first_line(error)}). "
                "Resume it as it was configured, or start a new run."
            ) from error
        for group, values in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(values)
        if self.progress.steps_per_epoch != steps_per_epoch:
            raise InputError(
                f"The run has epochs of {self.progress.steps_per_epoch} steps and cannot go on with {steps_per_epoch}. "
                "Resume it with its own data, and with as many pictures in a step: trainer.batch_size times "
                "trainer.accumulation_steps times the number of processes."
            )

    def _tensors(self) -> dict[str, Tensor]:
        """This process's shards of everything that is saved, by name."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": value for name, value in self.ema.module.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if not isinstance(value, Tensor):
                    raise InputError(
                        "trainer.strategy=fsdp can save optimizers whose state is tensors alone, and the "
                        f"{key} of {type(self.optimizer).__name__} is not. Use recipe.optimizer.name=adamw."
                    )
                tensors[f"optimizer.{name}.{key}"] = value
        return tensors

    def _make_optimizer_state(self) -> None:
        """Let the optimizer make its state, for the saved one to fill: a step of gradient and rate zero."""
        for parameter in self.model.parameters():
            parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def save_weights(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Write a model's weights as safetensors, which `backbones.create_model(checkpoint_path=…)` loads.

    Every process calls it, and the first one writes.
    """
    tensors = full_weights(model)
    if rank() == 0:
        tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        write_atomically(path, save(tensors, metadata))
