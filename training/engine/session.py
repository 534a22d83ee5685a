"""Everything of a run that changes, and how it is saved and restored."""

import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from timm.utils import ModelEmaV3
from torch import nn

from backbones.errors import InputError

from .files import write_atomically
from .optimization import Precision, build_optimizer, build_schedule
from .settings import EmaSettings, OptimizerSettings, ScheduleSettings, TrainerSettings


@dataclass
class Progress:
    """How far a run has come. Randomness is seeded from these numbers, so there is no generator to save."""

    epoch: int = 0
    step_in_epoch: int = 0  # optimizer steps done in this epoch
    step: int = 0  # optimizer steps done in all
    loss_sum: float = 0.0  # over the steps of this epoch
    best: float | None = None
    train_seconds: float = 0.0  # in steps, without evaluation and saving
    wall_seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)  # the rows of metrics.csv


class Session:
    """Model, optimizer, schedule, average and progress of one run."""

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        trainer: TrainerSettings,
        optimizer: OptimizerSettings,
        schedule: ScheduleSettings,
        ema: EmaSettings,
        steps_per_epoch: int,
    ):
        self.model = model
        self.steps_per_epoch = steps_per_epoch
        self.total_steps = trainer.epochs * steps_per_epoch
        if trainer.max_steps is not None:
            self.total_steps = min(self.total_steps, trainer.max_steps)
        self.clip_grad = optimizer.clip_grad
        self.precision = Precision(trainer.precision, device)
        self.optimizer = build_optimizer(model, optimizer)
        self.schedule = build_schedule(self.optimizer, schedule, self.total_steps, steps_per_epoch)
        self.ema = None if ema.decay is None else ModelEmaV3(model, decay=ema.decay, use_warmup=ema.warmup)
        self.progress = Progress()

    @property
    def done(self) -> bool:
        return self.progress.step >= self.total_steps

    @property
    def lr(self) -> float:
        """Learning rate of the last step; of the fastest group, where layers have their own."""
        return max(group["lr"] for group in self.optimizer.param_groups)

    def candidates(self) -> dict[str, nn.Module]:
        """What to evaluate, by the prefix of its metrics: the model, and its average if there is one."""
        return {"": self.model} if self.ema is None else {"": self.model, "ema_": self.ema.module}

    def save(self, path: Path) -> None:
        """Write all that `restore` needs; the file at `path` is the old or the new one, never half of either."""
        state = {
            "model": self.model.state_dict(),
            "ema": None if self.ema is None else self.ema.module.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.precision.scaler.state_dict(),
            "progress": asdict(self.progress),
        }
        write_atomically(path, lambda file: torch.save(state, file))

    def restore(self, path: Path) -> None:
        """Continue from a file of `save`."""
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            self.model.load_state_dict(state["model"])
            if self.ema is not None:
                self.ema.module.load_state_dict(state["ema"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.precision.scaler.load_state_dict(state["scaler"])
            self.progress = Progress(**state["progress"])
        except (RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"The run cannot be resumed from {path}: the file is damaged, or of another configuration ({reason}). "
                "Start a new run; the best weights so far are beside it."
            ) from error


def save_weights(path: Path, model: nn.Module, metadata: dict[str, str]) -> None:
    """Write a model's weights as safetensors, which `backbones.create_model(checkpoint_path=…)` loads."""
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_atomically(path, lambda file: file.write(save(tensors, metadata)))
