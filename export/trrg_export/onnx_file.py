"""Files of ONNX, written and read one weight at a time: whole, a message is in memory once more than its file is large.

A protocol buffer is a list of fields: a number and a kind, then a number, or a size and as many bytes. ONNX's libraries
read and write the whole message only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import onnx
from onnx import external_data_helper, helper

from trrg_export.hollow import ANY_KIND, copy_fields, is_large, loaded, take_inside
from trrg_sdk.manifest import Axes, TensorSpec

INLINE_LIMIT = 2**31 - 2**20  # protobuf's limit of 2 GiB, and room for the graph itself
_EXTERNAL_FROM = 1024  # bytes; smaller tensors stay inside also when the rest is external

_VARINT, _EIGHT_BYTES, _SIZED, _FOUR_BYTES = 0, 1, 2, 5  # kinds of fields
_DATA = 1024  # bytes; a field of a tensor that is larger are its numbers
_FIXED = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}


def pieces(model: onnx.ModelProto, outside: Path | None) -> Iterator[bytes]:
    """A message as it is written.

    Args:
        model: Its weights are inside, or external.
        outside: Folder of external data that goes inside; None leaves it external.

    Yields:
        What follows each other in the file.
    """

    def tensors() -> Iterator[onnx.TensorProto]:
        for tensor in model.graph.initializer:
            yield tensor if outside is None else loaded(tensor, outside)

    whole, graph = onnx.ModelProto(), onnx.GraphProto()
    copy_fields(model, whole, but="graph")
    copy_fields(model.graph, graph, but="initializer")
    head = graph.SerializeToString(deterministic=True)
    sizes = [tensor.ByteSize() for tensor in tensors()]
    marks = [_begins(onnx.GraphProto.INITIALIZER_FIELD_NUMBER, size) for size in sizes]
    yield whole.SerializeToString(deterministic=True)
    yield _begins(onnx.ModelProto.GRAPH_FIELD_NUMBER, len(head) + sum(sizes) + sum(map(len, marks)))
    yield head
    for mark, tensor in zip(marks, tensors(), strict=True):
        yield mark
        yield tensor.SerializeToString(deterministic=True)


def read_hollow(path: Path) -> onnx.ModelProto:
    """Read a graph and no contents of its large weights, whatever their type.

    Args:
        path: A ``.onnx`` file; external data lies beside it.

    Raises:
        ValueError: It ends before its message does.
    """
    model = onnx.ModelProto()
    with path.open("rb") as file:
        for field in _fields(file, path.stat().st_size):
            if field.number == onnx.ModelProto.GRAPH_FIELD_NUMBER:
                _read_graph(file, field, model.graph)
            else:
                model.MergeFromString(field.whole(file))
    for tensor in model.graph.initializer:
        take_inside(tensor, path.parent)
    return model


def add_outputs(path: Path, outputs: list[onnx.ValueInfoProto]) -> None:
    """Let a graph give more tensors: what is written twice is merged when it is read.

    Args:
        path: A ``.onnx`` file, changed in place.
        outputs: Of tensors that are none of its outputs.
    """
    with path.open("ab") as file:
        file.write(onnx.ModelProto(graph=onnx.GraphProto(output=outputs)).SerializeToString(deterministic=True))


def save(model: onnx.ModelProto, path: Path, outside: Path | None = None) -> None:
    """Write a model: one file below 2 GiB, else with ``<name>.data`` beside it.

    Args:
        model: Its weights are inside, or external.
        path: A ``.onnx`` file.
        outside: Folder of external data that goes inside; None leaves it external.
    """
    if weight_bytes(model, outside=outside is not None) < INLINE_LIMIT:
        with path.open("wb") as file:
            file.writelines(pieces(model, outside))
        return
    if outside is not None:
        for tensor in model.graph.initializer:
            take_inside(tensor, outside)
    onnx.save_model(
        model,
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=f"{path.name}.data",
        size_threshold=_EXTERNAL_FROM,
    )


def weight_bytes(model: onnx.ModelProto, *, outside: bool) -> int:
    """Sum up the weights; ``ByteSize`` fails above 2 GiB.

    Args:
        model: With or without external data.
        outside: Whether that counts too.
    """
    counted = (t for t in model.graph.initializer if outside or not external_data_helper.uses_external_data(t))
    return sum(math.prod(t.dims) * helper.tensor_dtype_to_np_dtype(t.data_type).itemsize for t in counted)


def clean(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop doc strings, metadata and inferred shapes in place; names of people's folders are among them.

    Args:
        model: As an exporter wrote it.

    Returns:
        The same model.
    """
    # Inferred shapes hold symbols that are numbered anew in each run; every runtime infers them itself.
    del model.graph.value_info[:]
    del model.metadata_props[:]
    model.doc_string = ""
    graph = model.graph
    holders: list[Any] = [graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *model.functions]
    for holder in holders:
        holder.ClearField("doc_string")
        holder.ClearField("metadata_props")
    return model


def tensor_specs(path: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Read what a graph declares.

    Args:
        path: A ``.onnx`` file.

    Returns:
        Inputs and outputs, in the graph's order.
    """
    graph = read_hollow(path).graph
    return tuple(map(_spec, graph.input)), tuple(map(_spec, graph.output))


def _spec(value: onnx.ValueInfoProto) -> TensorSpec:
    kind = value.type.tensor_type
    axes: Axes = tuple(axis.dim_param or int(axis.dim_value) for axis in kind.shape.dim)
    return TensorSpec(value.name, str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), axes)


class _Field(NamedTuple):
    """Where a field lies in a file: its number, its beginning, that of its contents, and its end."""

    number: int
    start: int
    inner: int
    end: int

    def whole(self, file: BinaryIO) -> bytes:
        file.seek(self.start)
        return file.read(self.end - self.start)

    def contents(self, file: BinaryIO) -> bytes:
        file.seek(self.inner)
        return file.read(self.end - self.inner)


def _read_graph(file: BinaryIO, field: _Field, graph: onnx.GraphProto) -> None:
    for inner in _fields(file, field.end, field.inner):
        if inner.number != onnx.GraphProto.INITIALIZER_FIELD_NUMBER:
            graph.MergeFromString(inner.whole(file))
            continue
        said = (part.whole(file) for part in _fields(file, inner.end, inner.inner) if part.end - part.inner <= _DATA)
        tensor = onnx.TensorProto.FromString(b"".join(said))
        if is_large(tensor, ANY_KIND):
            graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
        else:
            graph.initializer.append(onnx.TensorProto.FromString(inner.contents(file)))


def _fields(file: BinaryIO, end: int, start: int = 0) -> Iterator[_Field]:
    """The fields of a message that lies at some place of a file."""
    while start < end:
        file.seek(start)
        number, kind = divmod(_read_varint(file), 8)
        size = _read_varint(file) if kind in (_VARINT, _SIZED) else _FIXED.get(kind, end)
        inner = file.tell()
        stop = inner + (0 if kind == _VARINT else size)
        if stop > end:
            raise ValueError(f"{file.name}: expected a field that ends at byte {end} or before, got one up to {stop}")
        yield _Field(number, start, inner, stop)
        start = stop


def _read_varint(file: BinaryIO) -> int:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    value = shift = 0
    while byte := file.read(1):
        value |= (byte[0] & 127) << shift
        if byte[0] < 128:
            return value
        shift += 7
    raise ValueError(f"{file.name}: expected a number, got the file's end")


def _begins(field: int, size: int) -> bytes:
    """What stands before a message inside another one: its field and kind, and its size."""
    return b"".join(map(_varint, (field << 3 | _SIZED, size)))


def _varint(value: int) -> bytes:
    septets = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(septet | 128 for septet in septets[:-1]), septets[-1]])
