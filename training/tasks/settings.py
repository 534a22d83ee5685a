"""What can be set about teaching a classifier, apart from optimizer and schedule."""

from dataclasses import dataclass, field

from backbones.errors import InputError


@dataclass
class RegularizeSettings:
    """What makes the targets softer and mixes the pictures, batch by batch.

    Args:
        label_smoothing: share of the target spread over all classes.
        mixup, cutmix: parameter of the Beta distribution of the mixing; 0 is off.
        mix_prob: probability that a batch is mixed at all.
        switch_prob: probability of cutmix where both are on.
        mix_off_epochs: the last epochs, in which nothing is mixed.
    """

    label_smoothing: float = 0.1
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    switch_prob: float = 0.5
    mix_off_epochs: int = 0

    def __post_init__(self):
        for name in ("label_smoothing", "mix_prob", "switch_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"recipe.regularize.{name} is {getattr(self, name)}, but must be between 0 and 1.")
        for name in ("mixup", "cutmix", "mix_off_epochs"):
            if getattr(self, name) < 0:
                raise InputError(f"recipe.regularize.{name} is {getattr(self, name)}, but must not be negative.")


@dataclass
class LossSettings:
    """What is minimised.

    Args:
        name: cross_entropy, or bce: binary cross entropy of each class by itself.
        bce_threshold: targets above it count as 1, all others as 0; None leaves them soft.
        aux_weight: weight of the loss of an auxiliary head, in networks that return its logits.
        dense_weight: weight of the loss of the tokens, in networks that return logits for each.
        ground_truth: with label maps, share the class token's target between the map's label and the true one.
    """

    name: str = "cross_entropy"
    bce_threshold: float | None = None
    aux_weight: float = 0.4
    dense_weight: float = 0.5
    ground_truth: bool = False

    def __post_init__(self):
        if self.name not in ("cross_entropy", "bce"):
            raise InputError(f"recipe.loss.name is {self.name!r}, but must be cross_entropy or bce.")
        if min(self.aux_weight, self.dense_weight) < 0:
            raise InputError("recipe.loss.aux_weight and dense_weight must not be negative.")


@dataclass
class DistillSettings:
    """A teacher whose predictions are learned beside the labels.

    Args:
        teacher: any model name of timm or of the zoo, with a `.tag` or without; None is no teacher.
        checkpoint_path: its weights, trained on the same classes and colours as here; None: its published ones.
        mode: soft, the teacher's probabilities, or hard, its likeliest class.
        weight: share of the teacher in the loss, the labels have the rest.
        temperature: divides both networks' logits in soft mode.
    """

    teacher: str | None = None
    checkpoint_path: str | None = None
    mode: str = "soft"
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self):
        if self.mode not in ("soft", "hard"):
            raise InputError(f"recipe.distill.mode is {self.mode!r}, but must be soft or hard.")
        if not 0 <= self.weight <= 1 or self.temperature <= 0:
            raise InputError(
                "recipe.distill.weight must be between 0 and 1 and temperature above 0, but they are "
                f"{self.weight} and {self.temperature}."
            )


@dataclass
class ProgressiveSettings:
    """Smaller pictures in the first epochs (EfficientNetV2, arXiv:2104.00298); resized where the network runs.

    Args:
        start_size: side of the pictures of the first epoch, in pixels; None: all have their full size.
        full_epochs: the last epochs, with pictures of full size.
        multiple: sizes on the way are multiples of it, in pixels.
    """

    start_size: int | None = None
    full_epochs: int = 1
    multiple: int = 32

    def __post_init__(self):
        sizes = [size for size in (self.start_size, self.full_epochs, self.multiple) if size is not None]
        if min(sizes) < 1:
            raise InputError(f"Sizes and epochs of recipe.progressive must be at least 1, but they are {self}.")


@dataclass
class TeachingSettings:
    """The part of a recipe that tasks read."""

    regularize: RegularizeSettings = field(default_factory=RegularizeSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    distill: DistillSettings = field(default_factory=DistillSettings)
    progressive: ProgressiveSettings = field(default_factory=ProgressiveSettings)
