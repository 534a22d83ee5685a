"""To which size a picture is resized before a network sees it, in training and in evaluation alike."""


def resized_size(
    height: int, width: int, short_side: int, max_size: int | None = None, factor: float = 1.0
) -> tuple[int, int]:
    """(height, width) whose short side is `short_side` or whose long side is `max_size`, the smaller, times `factor`.

    Rounded to the nearest, and up in between, as by detectron2 and mmdetection; never below 1.
    """
    scale = short_side / min(height, width)
    if max_size is not None:
        scale = min(scale, max_size / max(height, width))
    return max(1, int(height * scale * factor + 0.5)), max(1, int(width * scale * factor + 0.5))
