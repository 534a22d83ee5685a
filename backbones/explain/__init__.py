"""What a model does with a picture, in numbers; `python -m backbones explain` draws them as one sheet.

All take a `Backbone` in evaluation mode and normalised images, (B, channels, H, W), and leave the model as it was.
"""

from .attention import Attention, attention_of, attention_weights
from .maps import feature_norms, grad_cam, receptive_field

__all__ = ["Attention", "attention_of", "attention_weights", "feature_norms", "grad_cam", "receptive_field"]
