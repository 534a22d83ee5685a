"""What is learned: heads, losses, metrics and pictures of one problem."""

from .classification import Classification
from .probes import AttentiveProbing, LinearProbing, NearestNeighbours
from .scoring import Scoring
from .settings import DistillSettings, LossSettings, ProgressiveSettings, RegularizeSettings, TeachingSettings

TASKS = {
    "classification": Classification,
    "linear_probe": LinearProbing,
    "attentive_probe": AttentiveProbing,
    "knn": NearestNeighbours,
}

__all__ = [
    "TASKS",
    "AttentiveProbing",
    "Classification",
    "DistillSettings",
    "LinearProbing",
    "LossSettings",
    "NearestNeighbours",
    "ProgressiveSettings",
    "RegularizeSettings",
    "Scoring",
    "TeachingSettings",
]
