"""Graphs whose large weights are hollow: names, shapes and types without contents, so that copies of a graph are small.

The contents lie in one place, whatever is made of the graph: a mapping of names to tensors, which goes with it.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import external_data_helper, helper, numpy_helper

_LARGE = 1024  # elements; what shapes are computed from is smaller
_FLOATING = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
_BYTES = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
ANY_KIND = frozenset(onnx.TensorProto.DataType.values())


class Contents(Mapping[str, onnx.TensorProto]):
    """The initializers of a graph by name; those that lie outside are read each time one is asked for, and not kept."""

    def __init__(self, model: onnx.ModelProto, outside: Path | None = None) -> None:
        """Look at a graph.

        Args:
            model: Its weights are inside, or external.
            outside: Folder of external data.
        """
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._outside = outside

    def __getitem__(self, name: str) -> onnx.TensorProto:
        """Read an initializer."""
        tensor = self._tensors[name]
        return loaded(tensor, self._outside) if self._outside else tensor

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Count the initializers."""
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        """Look for a name, and read nothing."""
        return name in self._tensors

    def array(self, name: str) -> NDArray[Any]:
        """Return a weight to be read only, mapped from its file where it lies outside."""
        tensor = self._tensors[name]
        if self._outside is None or not external_data_helper.uses_external_data(tensor):
            return numpy_helper.to_array(tensor)
        place = {entry.key: entry.value for entry in tensor.external_data}
        return np.memmap(
            self._outside / place["location"],
            dtype=helper.tensor_dtype_to_np_dtype(tensor.data_type),
            mode="r",
            offset=int(place.get("offset", 0)),
            shape=tuple(tensor.dims),
        )


def loaded(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    """Return a copy of a tensor with its data inside.

    Args:
        tensor: May point to external data.
        folder: Where that lies.
    """
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return take_inside(copy, folder)


def take_inside(tensor: onnx.TensorProto, folder: Path) -> onnx.TensorProto:
    """Give a tensor in place its data, and return it.

    Args:
        tensor: May point to external data.
        folder: Where that lies.
    """
    if external_data_helper.uses_external_data(tensor):
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    return tensor


def check(model: onnx.ModelProto) -> None:
    """Check a graph with its types and shapes; ONNX's checker copies what it gets several times, so without weights.

    Args:
        model: Its weights are inside, or external.

    Raises:
        onnx.checker.ValidationError: It breaks the standard.
    """
    onnx.checker.check_model(with_weights_outside(without_weights(model, _FLOATING + _BYTES)), full_check=True)


def without_weights(model: onnx.ModelProto, kinds: Collection[int] = _FLOATING) -> onnx.ModelProto:
    """Copy a graph, but for the contents of its large weights.

    Args:
        model: Left as it is.
        kinds: Data types of weights; by default floating-point ones.

    Returns:
        A graph for whoever needs names, types and shapes; its large initializers are hollow.
    """
    light = onnx.ModelProto()
    copy_fields(model, light, but="graph")
    copy_fields(model.graph, light.graph, but="initializer")
    for tensor in model.graph.initializer:
        if is_large(tensor, kinds):
            light.graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        else:
            light.graph.initializer.append(tensor)
    return light


def with_weights_outside(model: onnx.ModelProto) -> onnx.ModelProto:
    """Copy a graph, with its hollow weights as further inputs.

    Args:
        model: Left as it is.

    Returns:
        A graph that can be checked, and run by whoever feeds the weights.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    declared = {value.name for value in copy.graph.input}
    hollow = [t for t in copy.graph.initializer if is_hollow(t)]
    inputs = [helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in hollow if t.name not in declared]
    copy.graph.input.extend(inputs)
    kept = [t for t in copy.graph.initializer if not is_hollow(t)]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    return copy


def is_large(tensor: onnx.TensorProto, kinds: Collection[int] = _FLOATING) -> bool:
    """Tell whether a tensor is a large weight, by default a floating-point one: shapes are computed from other ones."""
    return tensor.data_type in kinds and math.prod(tensor.dims) >= _LARGE


def is_hollow(tensor: onnx.TensorProto) -> bool:
    """Tell whether a weight has no contents, see :func:`without_weights`."""
    return {kind.name for kind, _ in tensor.ListFields()} == {"name", "dims", "data_type"} and 0 not in tensor.dims


def copy_fields(message: Any, copy: Any, *, but: str) -> None:
    """Copy the fields of a protocol buffer, whatever they are.

    Args:
        message: What is copied.
        copy: An empty one of the same kind.
        but: The one field that is left out.
    """
    for kind, value in message.ListFields():
        if kind.name == but:
            continue
        if kind.is_repeated:
            getattr(copy, kind.name).extend(value)
        elif kind.message_type is not None:
            getattr(copy, kind.name).CopyFrom(value)
        else:
            setattr(copy, kind.name, value)
