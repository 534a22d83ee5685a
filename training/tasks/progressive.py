"""Smaller pictures in the first epochs."""

from .settings import ProgressiveSettings


def epoch_size(settings: ProgressiveSettings, epoch: int, epochs: int, full_size: int) -> int:
    """Side of the pictures of an epoch, in pixels: rises linearly from `start_size` to `full_size`, in multiples."""
    rising = epochs - settings.full_epochs
    if settings.start_size is None or epoch >= rising:
        return full_size
    size = settings.start_size + (full_size - settings.start_size) * epoch / rising
    return max(settings.start_size, min(full_size, round(size / settings.multiple) * settings.multiple))
