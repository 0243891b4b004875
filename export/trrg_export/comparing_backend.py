"""Where exported graphs run to be compared with PyTorch: ONNX Runtime's CPU, where fp16 takes time and not memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trrg_export.memory import few_half_runs
from trrg_sdk.backends import onnxruntime as backend
from trrg_sdk.backends.ort_session import open_session


def comparing_backend(precision: str) -> backend.OrtBackend:
    """Open the backend for graphs of one precision.

    Args:
        precision: Of the graphs. All are opened as the runtime opens them, but for those in fp16, which are made for
            GPUs: see :func:`trrg_export.memory.few_half_runs`.
    """
    opened = backend.open_backend(device="cpu", threads=None)
    return _HalfBackend(opened.device, opened.threads) if precision == "fp16" else opened


class _HalfBackend(backend.OrtBackend):
    """Opens graphs in fp16."""

    def session(self, path: Path, threads: int) -> Any:
        return open_session(str(path), path.name, self.device, threads, few_half_runs())
