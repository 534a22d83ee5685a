"""What can be set about a run, apart from data and task."""

from dataclasses import dataclass, field

from backbones.errors import InputError


@dataclass
class TrainerSettings:
    """How long, on what, and in which arithmetic.

    Args:
        epochs: passes over the training set.
        batch_size: pictures of one forward pass.
        accumulation_steps: batches whose gradients are averaged for one optimizer step.
        max_steps: optimizer steps after which training ends early.
        device: cuda, cpu, or auto: cuda where there is one.
        precision: fp32, or mixed with bf16 or fp16.
        compile: run the model through torch.compile.
        strategy: of several processes: ddp, a copy of the model in each, or fsdp, a part of it in each.
        bf16_gradients: of ddp: add gradients up in bfloat16, for half of the traffic.
        sync_batchnorm: of ddp on GPUs: batch norms see the pictures of all of them, which they need where each has few.
        cpu_offload: of fsdp: keep the parts in main memory.
        timeout: seconds to wait for a batch, or for another process, before the run ends with an error.
        save_minutes: time between two checkpoints within an epoch; there is always one at its end.
        max_bad_steps: steps that may be left out because their loss or gradient is no number, before the run stops;
            with 0 the first one stops it, and no step waits to see its own outcome.
        profile: write a trace of a few steps, profile.json, for chrome://tracing or Perfetto.
        rehearse: run every phase of the recipe in minutes, with a nano backbone, few pictures and few epochs.
    """

    epochs: int = 60
    batch_size: int = 128
    accumulation_steps: int = 1
    max_steps: int | None = None
    device: str = "auto"
    precision: str = "fp32"
    compile: bool = False
    strategy: str = "ddp"
    bf16_gradients: bool = False
    sync_batchnorm: bool = False
    cpu_offload: bool = False
    timeout: float = 1800
    save_minutes: float = 15
    max_bad_steps: int = 10
    profile: bool = False
    rehearse: bool = False

    def __post_init__(self):
        for name in ("epochs", "batch_size", "accumulation_steps", "max_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"trainer.{name} is {value}, but must be at least 1.")
        if self.strategy not in ("ddp", "fsdp"):
            raise InputError(f"trainer.strategy is {self.strategy!r}, but must be ddp or fsdp.")
        if min(self.timeout, self.save_minutes) <= 0 or self.max_bad_steps < 0:
            raise InputError(
                "trainer.timeout and trainer.save_minutes must be above 0 and trainer.max_bad_steps not negative, but "
                f"are {self.timeout}, {self.save_minutes} and {self.max_bad_steps}."
            )
        if self.cpu_offload and self.strategy != "fsdp":
            raise InputError("trainer.cpu_offload keeps shards in main memory, so it needs trainer.strategy=fsdp.")
        if self.sync_batchnorm and self.strategy != "ddp":
            raise InputError("trainer.sync_batchnorm is of trainer.strategy=ddp. Leave it out.")
        if self.bf16_gradients and self.strategy != "ddp":
            raise InputError(
                "trainer.bf16_gradients is of trainer.strategy=ddp; fsdp adds gradients up in float32. Leave it out."
            )


@dataclass
class OptimizerSettings:
    """Passed to timm's optimizer factory.

    Args:
        name: any of timm's: adamw, lamb, lion, muon, sgd, …
        lr: peak learning rate.
        weight_decay: not applied to biases, norms, and what the model's `no_weight_decay` names.
        betas, eps: of the running moments; None leaves the optimizer's own.
        momentum: of optimizers that have one.
        layer_decay: factor of the learning rate from each layer to the one below; None is none.
        lr_multipliers: factors of the peak learning rate by pattern of parameter names, such as `*.bias`. The rates
            that warm-up begins with and the schedule ends at are those of all parameters.
        clip_grad: limit of the gradient; None is no limit.
        clip_mode: what it limits: the `norm` of the whole gradient, each single `value`, or (`agc`) each unit's norm,
            as a share of the norm of its weights.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.05
    betas: list[float] | None = None
    eps: float | None = None
    momentum: float = 0.9
    layer_decay: float | None = None
    lr_multipliers: dict[str, float] = field(default_factory=dict)
    clip_grad: float | None = None
    clip_mode: str = "norm"

    def __post_init__(self):
        if self.clip_mode not in ("norm", "value", "agc"):
            raise InputError(f"recipe.optimizer.clip_mode is {self.clip_mode!r}, but must be norm, value or agc.")


@dataclass
class ScheduleSettings:
    """Learning rate by optimizer step, through timm's scheduler factory.

    Args:
        name: cosine, step, multistep or poly.
        warmup_epochs: linear rise from `warmup_lr` to the peak.
        warmup_steps: its length in optimizer steps, in place of `warmup_epochs`.
        warmup_prefix: begin the schedule proper after the warm-up; otherwise the warm-up hides its beginning.
        min_lr: where `cosine` and `poly` end.
        cooldown_epochs: the last epochs, all at `min_lr`.
        decay_epochs, decay_rate: of `step`: how often, and the factor; the rate is also the power of `poly`.
        milestones: of `multistep`: the numbers of epochs after each of which the rate is multiplied by `decay_rate`.
            They count from the first step, warm-up included.
        by_epoch: change the rate between epochs alone, not at every step.
    """

    name: str = "cosine"
    warmup_epochs: float = 5
    warmup_steps: int | None = None
    warmup_lr: float = 1e-6
    warmup_prefix: bool = True
    min_lr: float = 1e-5
    cooldown_epochs: float = 0
    decay_epochs: float = 30
    decay_rate: float = 0.1
    milestones: list[float] = field(default_factory=list)
    by_epoch: bool = False

    def __post_init__(self):
        for name in ("warmup_epochs", "warmup_steps", "cooldown_epochs", "warmup_lr", "min_lr"):
            if (getattr(self, name) or 0) < 0:
                raise InputError(f"recipe.schedule.{name} is {getattr(self, name)}, but must not be negative.")
        if self.milestones != sorted(self.milestones) or min(self.milestones, default=1) <= 0:
            raise InputError(f"recipe.schedule.milestones is {self.milestones}, but must rise, from above 0.")
        if bool(self.milestones) != (self.name == "multistep"):
            raise InputError(
                f"recipe.schedule.name is {self.name!r} and milestones is {self.milestones}: give epochs, [8, 11] say, "
                "with multistep, and [] with others."
            )


@dataclass
class EmaSettings:
    """A moving average of the weights, evaluated beside them.

    Args:
        decay: share of the average that stays at each step; None keeps no average.
        warmup: let the decay rise from 0 in the first steps.
    """

    decay: float | None = None
    warmup: bool = True

    def __post_init__(self):
        if self.decay is not None and not 0 <= self.decay < 1:
            raise InputError(f"recipe.ema.decay is {self.decay}, but must be below 1 (or null for no average).")
