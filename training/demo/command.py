"""From names and folders to a page that is served."""

import socket
from functools import partial
from pathlib import Path

from backbones import InputError
from backbones.errors import first_line

from .networks import load_backbone, networks_of_runs


def demo(
    runs: list[Path] | None,
    backbone: str | None,
    checkpoint: Path | None,
    pretrained: bool,
    host: str,
    port: int,
) -> None:
    """Serve the page until Ctrl-C, for the networks of runs, or for a backbone.

    Args:
        runs: run folders, or folders of such.
        checkpoint, pretrained: the weights of the backbone, as in `backbones.explain`; without them it has random ones.

    Raises:
        InputError: Gradio is not installed, there is no such network, or there can be no server at this address.
    """
    if runs and (checkpoint or pretrained):
        raise InputError("A run has its own weights; --checkpoint and --pretrained go with --backbone.")
    networks = networks_of_runs(runs) if runs else {backbone: partial(load_backbone, backbone, checkpoint, pretrained)}
    check_address(host, port)
    try:
        from .page import serve
    except ImportError as error:
        raise InputError("The demo needs Gradio: python -m pip install -r requirements-demo.txt.") from error
    serve(networks, host, port)


def check_address(host: str, port: int) -> None:
    """Raise InputError where nothing can be served: the port is taken, say."""
    try:
        socket.create_server((host, port)).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"The demo cannot be served at {host}:{port} ({first_line(error)}). Choose another --port or --host."
        ) from error
