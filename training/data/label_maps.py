"""Maps of labels for every token of a training picture (token labelling, arXiv:2104.10858).

The published ones are files `CLASS/NAME.pt` for pictures `CLASS/NAME.JPEG`: half-precision tensors (2, k, h, w), the k
highest scores of each place of the whole picture and their classes.
"""

from pathlib import Path

import torch
from torch import Tensor

from backbones.errors import InputError, first_line


def label_map_of(name: str, folder: Path) -> Path:
    """The file of the picture that a source calls `name`, a path that ends with CLASS/NAME.JPEG, say."""
    return folder / Path(name).parent.name / f"{Path(name).stem}.pt"


def read_label_map(path: Path) -> Tensor:
    """The scores and classes of one picture, (2, k, h, w). Raises InputError where there is no such file."""
    try:
        label_map = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises a dozen kinds
        raise InputError(f"The label map {path} cannot be read ({first_line(error)}).") from error
    if not isinstance(label_map, Tensor) or label_map.dim() != 4 or len(label_map) != 2:
        raise InputError(f"The label map {path} is no tensor (2, k, h, w) of scores and classes.")
    return label_map
