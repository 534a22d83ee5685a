"""From names and files to a sheet on disk."""

from pathlib import Path

from ..subject import load_subject, view_of
from .sheet import check_format, draw_sheet, save


def explain(
    backbone: str,
    image: Path,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    output: Path | None = None,
    point: tuple[float, float] | None = None,
    label: str | None = None,
) -> str:
    """Write the sheet of a model and a picture; returns what to tell the person who asked for it.

    Args:
        checkpoint: a file of weights, or a run folder.
        output: the sheet; explain_NAME_IMAGE.png where it is None.
        point: of the query, x and y in pixels of the picture; None: the middle.
        label: name or number of the class that Grad-CAM is for; None: the likeliest.

    Raises:
        InputError: a name, file, point or class that is none; says which and why.
    """
    output = output or Path(f"explain_{backbone}_{image.stem}.png")
    check_format(output)
    subject = load_subject(backbone, checkpoint, pretrained)
    view = view_of(subject, image)
    query = view.point(*(point or (None, None)))
    chosen = None if label is None else subject.label(label)
    save(draw_sheet(subject, view, query, chosen, f"What {backbone} does with {image.name}"), output)
    return f"The sheet is {output} (weights: {subject.weights})."
