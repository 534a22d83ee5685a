"""What runs a task: the loop, optimisation, checkpoints, the run folder, and what is said meanwhile."""

from .loggers import LOGGERS
from .loop import evaluate, fit
from .optimization import Precision, choose_device, scale_rates
from .reporter import Reporter
from .run_folder import RunFolder, find_unfinished
from .session import Session
from .settings import EmaSettings, OptimizerSettings, ScheduleSettings, TrainerSettings
from .stopping import Interrupted

__all__ = [
    "LOGGERS",
    "EmaSettings",
    "Interrupted",
    "OptimizerSettings",
    "Precision",
    "Reporter",
    "RunFolder",
    "ScheduleSettings",
    "Session",
    "TrainerSettings",
    "choose_device",
    "evaluate",
    "find_unfinished",
    "fit",
    "scale_rates",
]
