"""What runs a task: the loop, optimisation, checkpoints, the run folder, and what is said meanwhile."""

from .checkpoints import Checkpoints, weights_of
from .loggers import LOGGERS
from .loop import evaluate, fit
from .optimization import Precision, scale_rates
from .parallel import images_per_step, is_sharded
from .reporter import Reporter
from .run_folder import RunFolder, find_unfinished
from .session import Session
from .settings import EmaSettings, OptimizerSettings, ScheduleSettings, TrainerSettings
from .stopping import Interrupted

__all__ = [
    "LOGGERS",
    "Checkpoints",
    "EmaSettings",
    "Interrupted",
    "OptimizerSettings",
    "Precision",
    "Reporter",
    "RunFolder",
    "ScheduleSettings",
    "Session",
    "TrainerSettings",
    "evaluate",
    "find_unfinished",
    "fit",
    "images_per_step",
    "is_sharded",
    "scale_rates",
    "weights_of",
]
