"""One module a target runtime, all with the same names: see ``base``."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from trrg_export.targets import openvino, ort, tensorrt, tensorrt_rtx, trtllm

TARGETS: Mapping[str, ModuleType] = {module.NAME: module for module in (ort, openvino, tensorrt, tensorrt_rtx, trtllm)}
"""By the name that ``--target`` takes."""
