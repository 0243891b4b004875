"""Where exported graphs run to be compared with PyTorch: ONNX Runtime's CPU, in little memory where that takes time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trrg_export.memory import few_half_runs, few_stored_runs
from trrg_export.precision import HALF
from trrg_sdk.backends import onnxruntime as backend


def comparing_backend(precision: str) -> backend.OrtBackend:
    """Open the backend for graphs of one precision.

    Args:
        precision: Of the graphs. All are opened as the runtime opens them, but for those in fp16, which are made for
            GPUs (:func:`trrg_export.memory.few_half_runs`), and for the weights that an int4 bundle stores in eight
            bits (:func:`trrg_export.memory.few_stored_runs`).
    """
    opened = backend.open_backend(device="cpu", threads=None)
    if precision in HALF:
        return _SparingBackend(opened, few_half_runs)
    return _SparingBackend(opened, few_stored_runs) if precision == "int4" else opened


class _SparingBackend(backend.OrtBackend):
    """Opens graphs with options of their own."""

    def __init__(self, like: backend.OrtBackend, options: Callable[[], Any]) -> None:
        super().__init__(like.device, like.threads)
        self._options = options

    def options(self) -> Any:
        return self._options()
