"""A zoo of vision backbones that equal their official releases.

    >>> import backbones
    >>> model = backbones.create_model("swin_t", num_classes=10)

Importing this package also registers every name in timm.
"""

from . import attention, families
from .errors import InputError
from .registry import create_model, list_families, list_models, model_info
from .sharing import push_to_hub, save_pretrained

__all__ = [
    "InputError",
    "attention",
    "create_model",
    "families",
    "list_families",
    "list_models",
    "model_info",
    "push_to_hub",
    "save_pretrained",
]
