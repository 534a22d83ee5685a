"""What frozen features are worth: a linear classifier on them, one with attention pooling, and nearest neighbours."""

from collections.abc import Iterable
from typing import Any

import torch
from timm.layers import AttentionPoolLatent
from torch import Tensor, nn

from backbones.errors import InputError

from .classification import Classification
from .settings import TeachingSettings


class Probe(nn.Module):
    """A frozen backbone, never in training mode, and a head that learns: pictures (B, channels, H, W) to logits."""

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.frozen, self.head = backbone.requires_grad_(False), head

    def train(self, mode: bool = True):
        super().train(mode)
        self.frozen.eval()
        return self

    def features(self, images: Tensor) -> Tensor:
        """What the head takes: the pooled features (B, num_features)."""
        return self.frozen(images)

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = self.features(images)
        return self.head(features)

    def get_classifier(self) -> nn.Module:
        return self.head


class AttentiveProbe(Probe):
    """A probe of the last map (B, C, H, W) before pooling."""

    def features(self, images: Tensor) -> Tensor:
        return self.frozen.forward_features(images)

    def get_classifier(self) -> nn.Module:
        return self.head.fc


class AttentivePooling(nn.Module):
    """A learned query gathers the places of a map (B, C, H, W), then a linear classifier."""

    def __init__(self, dim: int, num_heads: int, classes: int):
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            raise InputError(f"task.num_heads is {num_heads}, but must divide the backbone's {dim} channels.")
        self.norm = nn.LayerNorm(dim)
        self.pool = AttentionPoolLatent(dim, num_heads=num_heads, norm_layer=nn.LayerNorm)
        self.fc = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.pool(self.norm(x.flatten(2).transpose(1, 2))))


class LinearProbing(Classification):
    """A linear classifier on the pooled features of a frozen backbone.

    Args:
        model: the backbone without a classifier.
    """

    whole_checkpoint = True

    def __init__(
        self, model: nn.Module, classes: list[str], mean: list[float], std: list[float], settings: TeachingSettings
    ):
        super().__init__(self.make_probe(model, len(classes)), classes, mean, std, settings)

    @staticmethod
    def backbone_keywords(classes: list[str]) -> dict[str, Any]:
        return {"num_classes": 0}

    def make_probe(self, backbone: nn.Module, classes: int) -> Probe:
        return Probe(backbone, nn.Linear(backbone.head_hidden_size, classes))

    def load_weights(self, state: dict[str, Tensor]) -> None:
        try:
            self.model.load_state_dict(state)
        except RuntimeError as error:
            raise InputError(
                "The checkpoint is not of a probe of this backbone. A backbone's own weights are evaluated with "
                "task=knn or task=classification."
            ) from error


class AttentiveProbing(LinearProbing):
    """A probe with an attention pooling that is learned, on the last map of a frozen backbone.

    Args:
        num_heads: of the attention.
    """

    def __init__(self, *args: Any, num_heads: int = 8):
        self.num_heads = num_heads
        super().__init__(*args)

    def make_probe(self, backbone: nn.Module, classes: int) -> Probe:
        return AttentiveProbe(backbone, AttentivePooling(backbone.num_features, self.num_heads, classes))


class NearestNeighbours(Classification):
    """Labels by a vote of the k nearest training pictures, without any training (Wu et al., arXiv:1805.01978).

    Args:
        model: the backbone without a classifier.
        k: pictures that vote.
        temperature: a vote counts exp(cosine similarity / temperature).
    """

    trains = False

    def __init__(self, *args: Any, k: int = 20, temperature: float = 0.07):
        super().__init__(*args)
        if k < 1 or temperature <= 0:
            raise InputError(f"task.k must be at least 1 and task.temperature above 0, but are {k} and {temperature}.")
        self.k, self.temperature = k, temperature

    @staticmethod
    def backbone_keywords(classes: list[str]) -> dict[str, Any]:
        return {"num_classes": 0}

    @torch.inference_mode()
    def memorise(self, batches: Iterable) -> None:
        """Keep the features and labels of the pictures that vote."""
        seen = [(self._features(images), labels) for images, labels in map(self._prepare, batches)]
        self.memory, self.labels = (torch.cat(parts) for parts in zip(*seen))

    def logits(self, images: Tensor) -> Tensor:
        """The logarithm of each class's share of the votes, (B, classes)."""
        similarity, nearest = (self._features(images) @ self.memory.T).topk(min(self.k, len(self.memory)))
        votes = (similarity.float() / self.temperature).softmax(1)
        shares = votes.new_zeros(len(images), len(self.classes)).scatter_add_(1, self.labels[nearest], votes)
        return shares.clamp(min=1e-6).log()

    def check_weights(self) -> None:
        """Every backbone has features."""

    def _features(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.model(images).float(), dim=1)
