"""The decoder's attention, so that a position comes out the same, bit for bit, however many a pass reads.

In ONNX Runtime's CPU provider matrix products give each row what it is alone (MatMul and MatMulNBits over 1 to 24
rows, AVX-512). GroupQueryAttention does not: over one position it takes another kernel than over several, about 1e-6
off, and activations that are rounded to eight bits make of it .02 to .05 in the logits. So a pass with a draft and one
without would now and then choose different tokens, and every near tie had to be decided again one position a pass.
Nor could a first draft be read with the prompt, whose keys and values all of a text rests on.

Here attention is given a second, empty position whenever a pass reads one. What it computes for that is cut off again,
and its key and value lie behind the text, where the next pass writes. Passes over several positions, and those of a
batch (the operator refuses several positions of several sequences), go through unchanged. Behind a text that has all of
the model's positions the empty one needs a place in the tables of the rotary embedding too: they get one row more.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from trrg_export.hollow import loaded
from trrg_export.precision.int8 import replace_all

WIDE = 512
"""Width from which on drafts pay; below, 10 us for the empty position would be 8 % of a pass in 4 and 8 bits."""

_ATTENTION = "GroupQueryAttention"
_READ = (0, 1, 2)  # its inputs query, key and value; with all three packed in the first the others are left out
_LENGTHS = (5, 6)  # seqlens_k and total_sequence_length
_ROTARY = slice(7, 9)  # tables of cosines and sines by position
_PREFIX = "alike/"


def make_rows_alike(model: onnx.ModelProto, folder: Path) -> None:
    """Rewrite the attention of a decoder in place.

    Args:
        model: As the builder of onnxruntime-genai writes it.
        folder: Of weights that are not inside.
    """
    graph = model.graph
    constants = {"one": [1], "first": [0], "axis": [1], "sides": [0, 0, 0, 0, 1, 0]}
    graph.initializer.extend(
        numpy_helper.from_array(np.array(values, np.int64), f"{_PREFIX}{name}") for name, values in constants.items()
    )
    nodes, longer, tables = _spare(), set[str](), set[str]()
    for node in graph.node:
        if node.op_type == _ATTENTION:
            tables |= set(node.input[_ROTARY])
            lengths = {node.input[place] for place in _LENGTHS} - longer
            nodes += [
                helper.make_node("Add", [name, f"{_PREFIX}spare32"], [_PREFIX + name]) for name in sorted(lengths)
            ]
            longer |= lengths
            nodes += _padded(node)
        else:
            nodes.append(node)
    replace_all(graph.node, nodes)
    for tensor in graph.initializer:
        if tensor.name in tables:
            rows = numpy_helper.to_array(loaded(tensor, folder))
            tensor.CopyFrom(numpy_helper.from_array(np.concatenate([rows, rows[-1:]]), tensor.name))


def _spare() -> list[NodeProto]:
    """How many empty positions a pass gets: one if it reads one of one sequence, else none."""
    return [
        helper.make_node("Shape", ["inputs_embeds"], [f"{_PREFIX}shape"], start=0, end=2),
        helper.make_node("Shape", ["inputs_embeds"], [f"{_PREFIX}read"], start=1, end=2),
        helper.make_node("ReduceProd", [f"{_PREFIX}shape"], [f"{_PREFIX}count"], keepdims=1),
        helper.make_node("Equal", [f"{_PREFIX}count", f"{_PREFIX}one"], [f"{_PREFIX}single"]),
        helper.make_node("Cast", [f"{_PREFIX}single"], [f"{_PREFIX}spare"], to=TensorProto.INT64),
        helper.make_node("Squeeze", [f"{_PREFIX}spare"], [f"{_PREFIX}scalar"]),
        helper.make_node("Cast", [f"{_PREFIX}scalar"], [f"{_PREFIX}spare32"], to=TensorProto.INT32),
        helper.make_node("Mul", [f"{_PREFIX}sides", f"{_PREFIX}spare"], [f"{_PREFIX}pads"]),
    ]


def _padded(node: NodeProto) -> list[NodeProto]:
    attention = NodeProto()
    attention.CopyFrom(node)
    read = [(place, node.input[place]) for place in _READ if node.input[place]]
    for place, name in (*read, *((place, node.input[place]) for place in _LENGTHS)):
        attention.input[place] = _PREFIX + name
    output = node.output[0]
    attention.output[0] = _PREFIX + output
    cut = [_PREFIX + output, f"{_PREFIX}first", f"{_PREFIX}read", f"{_PREFIX}axis"]
    pads = [helper.make_node("Pad", [name, f"{_PREFIX}pads"], [_PREFIX + name]) for _, name in read]
    return [*pads, attention, helper.make_node("Slice", cut, [output])]
