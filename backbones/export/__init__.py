"""Models as files for other programs; `python -m backbones export` writes, checks and times one."""

from .graph import capture, write_onnx

__all__ = ["capture", "write_onnx"]
