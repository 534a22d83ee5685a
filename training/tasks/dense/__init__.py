"""Tasks that find where things are in a picture: heads, losses, metrics and pictures."""

from .detection import Detection, InstanceSegmentation
from .model import add_lora, freeze_stages
from .panoptic import PanopticSegmentation
from .semantic import SemanticSegmentation

__all__ = [
    "Detection",
    "InstanceSegmentation",
    "PanopticSegmentation",
    "SemanticSegmentation",
    "add_lora",
    "freeze_stages",
]
