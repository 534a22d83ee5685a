"""What runs a task: the loop, optimisation, checkpoints, the run folder, and what is said meanwhile."""

from .loggers import LOGGERS
from .loop import evaluate, fit
from .optimization import OptimizerSettings, ScheduleSettings, choose_device
from .reporter import Reporter
from .run_folder import RunFolder, find_unfinished
from .settings import EmaSettings, TrainerSettings
from .stopping import Interrupted

__all__ = [
    "LOGGERS",
    "EmaSettings",
    "Interrupted",
    "OptimizerSettings",
    "Reporter",
    "RunFolder",
    "ScheduleSettings",
    "TrainerSettings",
    "choose_device",
    "evaluate",
    "find_unfinished",
    "fit",
]
