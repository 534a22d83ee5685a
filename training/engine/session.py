"""Everything of a run that changes, and how it is saved and restored."""

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.utils import ModelEmaV3
from torch import nn

from backbones.checkpoints import read_file
from backbones.errors import InputError, first_line

from .files import write_atomically
from .optimization import Precision, build_optimizer, build_schedule
from .settings import EmaSettings, OptimizerSettings, ScheduleSettings, TrainerSettings


@dataclass
class Progress:
    """How far a run has come. Randomness is seeded from these numbers, so there is no generator to save."""

    steps_per_epoch: int
    epoch: int = 0
    step_in_epoch: int = 0  # optimizer steps done in this epoch
    step: int = 0  # optimizer steps done in all
    loss_sum: float = 0.0  # over the steps of this epoch
    best: float | None = None
    train_seconds: float = 0.0  # in steps, without evaluation and saving
    wall_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)  # the rows of metrics.csv


class Session:
    """Model, optimizer, schedule, average and progress of one run.

    Args:
        model: what is trained, on the device where it is trained.
        batches: of the training loader in an epoch.
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
        self.progress = Progress(steps_per_epoch=batches // trainer.accumulation_steps)
        self.total_steps = trainer.epochs * self.progress.steps_per_epoch
        if trainer.max_steps is not None:
            self.total_steps = min(self.total_steps, trainer.max_steps)
        self.clip_grad, self.clip_mode = optimizer.clip_grad, optimizer.clip_mode
        self.precision = Precision(trainer.precision, device)
        self.optimizer = build_optimizer(model, optimizer)
        self.schedule = build_schedule(self.optimizer, schedule, self.total_steps, self.progress.steps_per_epoch)
        self.ema = None if ema.decay is None else ModelEmaV3(model, decay=ema.decay, use_warmup=ema.warmup)

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
        return self.trainer.batch_size * self.trainer.accumulation_steps

    def candidates(self) -> dict[str, nn.Module]:
        """What to evaluate, by the prefix of its metrics: the model, and its average if there is one."""
        return {"": self.model} if self.ema is None else {"": self.model, "ema_": self.ema.module}

    def save(self, path: Path) -> None:
        """Write all that `restore` needs; the file at `path` is the old or the new one, never half of either."""
        content = io.BytesIO()
        state = {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "progress": asdict(self.progress),
        }
        torch.save(state, content)
        write_atomically(path, content.getbuffer())

    def restore(self, path: Path) -> None:
        """Continue from a file of `save`, with the optimizer's settings as they are now.

        Raises:
            InputError: the file is damaged, or cannot be continued with these settings.
        """
        steps_per_epoch = self.progress.steps_per_epoch
        settings = [{k: v for k, v in g.items() if k not in ("params", "lr")} for g in self.optimizer.param_groups]
        state = read_file(path)
        try:
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.precision.scaler.load_state_dict(state["scaler"])
            self.progress = Progress(**state["progress"])
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"The run cannot be resumed from {path}, which is of another configuration ({first_line(error)}). "
                "Resume it as it was configured, or start a new run."
            ) from error
        for group, values in zip(self.optimizer.param_groups, settings, strict=True):
            group.update(values)
        if self.progress.steps_per_epoch != steps_per_epoch:
            raise InputError(
                f"The run has epochs of {self.progress.steps_per_epoch} steps and cannot go on with {steps_per_epoch}. "
                "Resume it with its own data, trainer.batch_size and trainer.accumulation_steps."
            )


def save_weights(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Write a model's weights as safetensors, which `backbones.create_model(checkpoint_path=…)` loads."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, save(tensors, metadata))
