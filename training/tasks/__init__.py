"""What is learned: heads, losses, metrics and pictures of one problem."""

from .classification import Classification
from .dense import Detection, InstanceSegmentation, PanopticSegmentation, SemanticSegmentation
from .probes import AttentiveProbing, LinearProbing, NearestNeighbours
from .scoring import Scoring
from .settings import DistillSettings, LossSettings, ProgressiveSettings, RegularizeSettings, TeachingSettings

TASKS = {
    "classification": Classification,
    "linear_probe": LinearProbing,
    "attentive_probe": AttentiveProbing,
    "knn": NearestNeighbours,
    "detection": Detection,
    "instance": InstanceSegmentation,
    "semantic": SemanticSegmentation,
    "panoptic": PanopticSegmentation,
}

__all__ = [
    "TASKS",
    "AttentiveProbing",
    "Classification",
    "Detection",
    "DistillSettings",
    "InstanceSegmentation",
    "LinearProbing",
    "LossSettings",
    "NearestNeighbours",
    "PanopticSegmentation",
    "ProgressiveSettings",
    "RegularizeSettings",
    "Scoring",
    "SemanticSegmentation",
    "TeachingSettings",
]
