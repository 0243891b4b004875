"""A graph in a lower precision, except for the layers that measurements say cannot stand it.

What fp16 and int8 share: convert, compare with the original on calibration feeds, and while an output drifts further
than the limit, leave the nodes in fp32 that do the most harm, until the limit holds, or so many weights would be fp32
that the lower precision is only a name. How harm is measured is each precision's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

FP32_SHARE = 0.5
"""Of the weights: with more of them kept because of drift, fp32 is the honest name."""


@dataclass(frozen=True)
class KeptLayer:
    """A node that computes in fp32.

    Attributes:
        name: Of the node.
        op_type: Its operator.
        reason: With the number that was measured.
    """

    name: str
    op_type: str
    reason: str


@dataclass(frozen=True, eq=False)
class LoweredGraph:
    """A graph in a lower precision with the inputs and outputs of its original.

    Attributes:
        precision: As the option names it.
        model: The graph.
        kept: What computes in fp32, in the graph's order.
        drift: Output → largest difference from fp32, divided by the largest number where that is above 1.
        worst: The node in the lower precision that does the most harm, with its operator; empty when that was not
            measured.
    """

    precision: str
    model: onnx.ModelProto
    kept: tuple[KeptLayer, ...]
    drift: Mapping[str, float]
    worst: str

    def lines(self) -> list[str]:
        """One line for each reason, with the layers in fp32 that it holds for."""
        reasons: dict[str, list[str]] = {}
        for layer in self.kept:
            reasons.setdefault(layer.reason, []).append(f"{layer.name} ({layer.op_type})")
        return [
            f"{', '.join(names)} {'stays' if len(names) == 1 else 'stay'} in fp32: {reason}"
            for reason, names in reasons.items()
        ]


@dataclass(frozen=True, eq=False)
class Hopeless:
    """A graph that has no form within the limit.

    Attributes:
        output: The one that drifts furthest.
        drift: How far, as in :class:`LoweredGraph`, with ``kept`` in fp32.
        worst: The node that did the most harm when all that could be was in the lower precision.
        kept: Node → why it would have to stay in fp32.
    """

    output: str
    drift: float
    worst: str
    kept: Mapping[str, str]


@dataclass(frozen=True)
class Lowering:
    """One way to a lower precision.

    Attributes:
        precision: As the option names it.
        convert: Takes the nodes that must stay in fp32, and makes the graph in which the others do not.
        judge: Takes such a graph and the same nodes. Gives the drift of each output as in :class:`LoweredGraph`, and
            the harm that nodes do, by name; no harm needs to be measured where the drift holds the bound.
        bound: How far an output may drift.
        as_bad: Nodes that do this share of the largest harm go to fp32 in the same round.
        reason: Says the harm, a number to be formatted in.
    """

    precision: str
    convert: Callable[[Mapping[str, str]], onnx.ModelProto]
    judge: Callable[[onnx.ModelProto, Mapping[str, str]], tuple[Mapping[str, float], Mapping[str, float]]]
    bound: float
    as_bad: float
    reason: str


def settle(source: onnx.ModelProto, kept: Mapping[str, str], lowering: Lowering) -> LoweredGraph | Hopeless:
    """Keep more layers in fp32 until the drift holds the bound.

    Args:
        source: fp32; every node has a name of its own.
        kept: Node → why it stays in fp32 from the start.
        lowering: How, and how far.

    Returns:
        The first graph that holds, or why there is none.
    """
    kept = dict(kept)
    drifting, blamed = set[str](), ""
    while True:
        model = lowering.convert(kept)
        drift, harm = lowering.judge(model, kept)
        worst = max(harm, key=lambda name: harm[name], default="")
        blamed = blamed or worst
        if all(math.isfinite(value) and value <= lowering.bound for value in drift.values()):
            return LoweredGraph(lowering.precision, model, kept_layers(source, kept), drift, _shown(source, worst))
        added = [name for name in harm if harm[name] >= lowering.as_bad * harm[worst]]
        drifting.update(added)
        kept |= {name: lowering.reason.format(harm[name]) for name in added}
        if not added or _share(source, drifting) > FP32_SHARE:
            furthest = max(drift, key=lambda name: drift[name])
            return Hopeless(furthest, drift[furthest], _shown(source, blamed), kept)
        del model  # it is not in memory while the next one is made


def drift_table(graphs: Mapping[str, LoweredGraph]) -> dict[str, Any]:
    """Say for the manifest what was measured.

    Args:
        graphs: Graph → what was made of it, all in one precision.

    Returns:
        The drift of each output and the layers in fp32, of each graph; empty when there is none.
    """
    drift = {name: {k: float(f"{v:.3g}") for k, v in graph.drift.items()} for name, graph in graphs.items()}
    lines = {name: graph.lines() for name, graph in graphs.items()}
    names = sorted({graph.precision for graph in graphs.values()})
    return {**{f"{name}_drift": drift for name in names}, "fp32_layers": lines} if graphs else {}


def named(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph so that every node has a name of its own: converters know nodes by name.

    Args:
        model: Left as it is.

    Returns:
        A copy.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    seen: set[str] = set()
    for index, node in enumerate(copy.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.name or node.op_type}_at_{index}"
        seen.add(node.name)
    return copy


def kept_layers(model: onnx.ModelProto, kept: Mapping[str, str]) -> tuple[KeptLayer, ...]:
    """List nodes with their reasons.

    Args:
        model: Holds them.
        kept: Node → why it stays in fp32.

    Returns:
        In the graph's order.
    """
    return tuple(KeptLayer(n.name, n.op_type, kept[n.name]) for n in model.graph.node if n.name in kept)


def _shown(model: onnx.ModelProto, name: str) -> str:
    return next((f"{node.name} ({node.op_type})" for node in model.graph.node if node.name == name), "")


def _share(model: onnx.ModelProto, names: set[str]) -> float:
    """How much of the weights the named nodes hold."""
    sizes = {t.name: int(np.prod(t.dims)) for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    held = {name for node in model.graph.node if node.name in names for name in node.input if name in sizes}
    return sum(sizes[name] for name in held) / max(1, sum(sizes.values()))
