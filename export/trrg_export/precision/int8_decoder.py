"""Eight-bit arithmetic of the language model: each position is rounded on a scale of its own.

Before a matrix product the largest number of a position becomes 127, and the product is one of integers. A weight has
a scale for each output channel. Nothing is calibrated, no position changes what another is rounded to, and sums of
integers have no order: so a product gives a position the same, bit for bit, however many positions a pass reads.

Why not ``MatMulNBits`` with eight bits, which onnxruntime-genai's builder writes: its kernels take the rows of a pass
one after the other. A pass over 2 · 4 · 8 · 16 positions cost 1.0 · 1.6 · 2.7 · 5.1 of one with it, and costs 1.0 · 1.1
· 1.5 · 2.3 now (``tests/benchmarks/decode.py iu``, AVX-512 with VNNI). So here a draft of several tokens costs little
more than one token. How far rounded activations move what a product writes (the decoder of ``iu_decoder.py``, root
mean square, by a script that was not kept): .2 to .5 %, behind the activation of the feed-forward layer 1.7 %. One
scale for all positions, measured once, would be .5 to .9 % and 4 to 6 %; scales of 32 numbers, as MatMulNBits has, .1
to .5 %.

Weights use all of their eight bits. With seven, as in :mod:`trrg_export.precision.static`, they were the larger part of
what rounding costs: of what that decoder writes about 224 conditions 196 texts were those of fp32 and .991 of their
labels, with eight 206 and .997. Processors without VNNI hold the sum of two products in 16 bits, which is too little
then, so there the runtime asks ONNX Runtime for exact sums (:data:`trrg_sdk.backends.ort_session.EXACT_SUMS`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from trrg_export.precision.decoder_products import CONTRIB, Replacement, replace_products
from trrg_export.precision.int8 import STORED, quantize

_LEVELS = 127
_MIDDLE = 128  # activations are uint8: ONNX Runtime's kernels for AVX2 are slow with int8
_PREFIX = "int8/"
_STEP, _ZERO, _AXIS = (f"{_PREFIX}{name}" for name in ("step", "zero", "axis"))


def quantize_decoder(source: Path) -> onnx.ModelProto:
    """Put the matrix products of a decoder into int8.

    Args:
        source: The fp32 decoder with its weights in external data.

    Returns:
        The decoder with all weights inside.
    """
    model = onnx.load(str(source), load_external_data=False)
    rounded: set[str] = set()
    replace_products(model, source.parent, lambda node, weight: _in_int8(node, weight, rounded))
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1 / _LEVELS, np.float32), _STEP),
            numpy_helper.from_array(np.array(_MIDDLE, np.uint8), _ZERO),
            numpy_helper.from_array(np.array([-1], np.int64), _AXIS),
        ]
    )
    return model


def _in_int8(node: NodeProto, weight: TensorProto, rounded: set[str]) -> Replacement:
    """One product; what it reads is rounded once, however many products read it."""
    read, written = node.input[0], node.output[0]
    nodes = [] if read in rounded else _rounding(read)
    rounded.add(read)
    levels, scale = quantize(numpy_helper.to_array(weight), axis=1)
    tensors = [
        numpy_helper.from_array(levels, f"{weight.name}{STORED}"),
        numpy_helper.from_array(scale[0], f"{weight.name}.scale"),
    ]
    nodes += [
        helper.make_node(
            "MatMulIntegerToFloat",
            [f"{_PREFIX}{read}", tensors[0].name, _STEP, tensors[1].name, _ZERO],
            [f"{_PREFIX}{written}"],
            name=node.name,
            domain=CONTRIB,
        ),
        helper.make_node(
            "Mul", [f"{_PREFIX}{written}", f"{_PREFIX}{read}.peak"], [written], name=f"{node.name}.scaled"
        ),
    ]
    return nodes, tensors


def _rounding(read: str) -> list[NodeProto]:
    """Round to 127 levels on each side of zero; what comes of a position of zeros, its peak makes 0 again."""
    name = f"{_PREFIX}{read}"
    return [
        helper.make_node("Abs", [read], [f"{name}.size"], name=f"{name}.size"),
        helper.make_node("ReduceMax", [f"{name}.size", _AXIS], [f"{name}.peak"], name=f"{name}.peak", keepdims=1),
        helper.make_node("Div", [read, f"{name}.peak"], [f"{name}.share"], name=f"{name}.share"),
        helper.make_node("QuantizeLinear", [f"{name}.share", _STEP, _ZERO], [name], name=name),
    ]
