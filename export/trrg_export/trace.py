"""A graph as PyTorch traced it: a file without its large weights, and those in a file beside it."""

from __future__ import annotations

from pathlib import Path

import onnx

from trrg_export.hollow import take_inside

GRAPH = "graph.onnx"


def read_trace(folder: Path) -> onnx.ModelProto:
    """Read a traced graph; its large weights stay in their file.

    Args:
        folder: Of this graph.
    """
    model: onnx.ModelProto = onnx.load(str(folder / GRAPH), load_external_data=False)
    return model


def whole_trace(folder: Path) -> onnx.ModelProto:
    """Read a traced graph with all of its weights.

    Args:
        folder: Of this graph.
    """
    model = read_trace(folder)
    for tensor in model.graph.initializer:
        take_inside(tensor, folder)
    return model
