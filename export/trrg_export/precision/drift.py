"""How far the outputs of a changed graph are from those of its original, whose weights are in memory once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import onnx

from trrg_export.hollow import Contents, is_hollow, with_weights_outside, without_weights
from trrg_export.precision.layers import relative_gap
from trrg_export.precision.lowered import named
from trrg_export.precision.sections import Array, Feed
from trrg_sdk.backends.ort_session import open_session


class Source(NamedTuple):
    """A graph that is in memory once, whatever is made of it.

    Attributes:
        light: Its nodes have names of their own, its large weights are hollow.
        weights: All initializers by name, with their contents.
    """

    light: onnx.ModelProto
    weights: Contents

    @classmethod
    def of(cls, model: onnx.ModelProto, outside: Path | None) -> Source:
        """Take a graph apart.

        Args:
            model: Left as it is.
            outside: Folder of its external data.
        """
        return cls(named(without_weights(model)), Contents(model, outside))

    def inputs(self) -> dict[str, Array]:
        """The large weights, to feed a graph ``with_weights_outside``: ONNX Runtime does not copy what it is fed."""
        names = [tensor.name for tensor in self.light.graph.initializer if is_hollow(tensor)]
        return {name: self.weights.array(name) for name in names}


class Drift:
    """How far the outputs of other graphs are from those of an original."""

    def __init__(self, source: Source, feeds: Sequence[Feed]) -> None:
        """Run the original on feeds, and keep what it gives."""
        self._names = [output.name for output in source.light.graph.output]
        self._feeds = feeds
        self._wanted = list(self._outputs(source.light, source.inputs()))

    def of(self, model: onnx.ModelProto, weights: Feed = MappingProxyType({})) -> dict[str, float]:
        """Output → its largest difference over all feeds, as :class:`LoweredGraph` has it.

        Args:
            model: Some of its weights may be hollow.
            weights: Those, and others.
        """
        found = dict.fromkeys(self._names, 0.0)
        for wanted, got in zip(self._wanted, self._outputs(model, weights), strict=True):
            for name, expected, value in zip(self._names, wanted, got, strict=True):
                found[name] = max(found[name], relative_gap(expected, value))
        return found

    def _outputs(self, model: onnx.ModelProto, weights: Feed) -> Iterator[list[Array]]:
        outside = with_weights_outside(model)
        hollow = {value.name: weights[value.name] for value in outside.graph.input if value.name in weights}
        written = outside.SerializeToString()
        del outside  # the weights that are in it: ONNX Runtime holds them a few times while it opens a graph
        session = open_session(written, model.graph.name, "cpu", 0)
        del written
        for feed in self._feeds:
            yield session.run(self._names, {**feed, **hollow})
