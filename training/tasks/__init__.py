"""What is learned: heads, losses, metrics and pictures of one problem."""

from .classification import Classification, RegularizeSettings
from .scoring import Scoring

TASKS = {"classification": Classification}

__all__ = ["TASKS", "Classification", "RegularizeSettings", "Scoring"]
