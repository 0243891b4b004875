"""Four-bit weights of the language model, through the quantizers of ONNX Runtime and of Intel's Neural Compressor.

Each matrix product of the decoder becomes one ``MatMulNBits``: 16 levels, and a scale for each block of weights along
the input. The quantizers take one matrix at a time and read it from the builder's file when its turn comes, so that
there is no second copy of the model in memory.

``rtn`` rounds to the nearest level. ``k-quant`` (llama.cpp's) searches scale and offset of each block for the least
weighted error, ``hqq`` moves the offset by half-quadratic optimization: both know nothing but the weights. ``gptq``
knows what the decoder reads when it writes reports, see :mod:`trrg_export.precision.gptq`.

The encoders of an int4 bundle have int8 weights (:mod:`trrg_export.precision.int8`): four bits are for what is large.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
from onnx import helper

from trrg_export.precision.decoder_products import Quantizer, Replacement, products_of, replace_products
from trrg_export.precision.gptq import Calibration, activations, gptq_quantizer
from trrg_sdk.errors import UsageError

BLOCK_SIZES = (16, 32, 64, 128, 256)
ALGORITHMS = ("rtn", "k-quant", "hqq", "gptq")


@dataclass(frozen=True)
class Int4:
    """How the four bits are chosen.

    Attributes:
        block_size: Weights that share a scale, one of ``BLOCK_SIZES``.
        algorithm: One of ``ALGORITHMS``.
    """

    block_size: int = 32
    algorithm: str = "rtn"

    def __post_init__(self) -> None:
        """Refuse what no quantizer here can do."""
        if self.block_size not in BLOCK_SIZES:
            raise UsageError(f"block size: expected one of {', '.join(map(str, BLOCK_SIZES))}, got {self.block_size}")
        if self.algorithm not in ALGORITHMS:
            raise UsageError(f"int4 algorithm: expected one of {', '.join(ALGORITHMS)}, got {self.algorithm!r}")
        if self.algorithm == "gptq" and importlib.util.find_spec("neural_compressor") is None:
            raise UsageError("int4 algorithm gptq needs neural-compressor-pt: pip install 'trrg-sdk[gptq]'")

    @property
    def packages(self) -> tuple[str, ...]:
        """Distributions that choose the bits, beside those of every export."""
        return ("neural-compressor-pt",) if self.algorithm == "gptq" else ()


def quantize_decoder(source: Path, int4: Int4, calibration: Calibration) -> onnx.ModelProto:
    """Quantize the matrix products of a decoder.

    Args:
        source: The decoder in fp32 or fp16 with its weights in external data.
        int4: How.
        calibration: What the decoder reads; only ``gptq`` looks at it.

    Returns:
        The decoder in four bits with all weights inside.
    """
    model = onnx.load(str(source), load_external_data=False)
    return replace_products(model, source.parent, _quantizer(source, products_of(model), int4, calibration))


def _quantizer(source: Path, products: Sequence[onnx.NodeProto], int4: Int4, calibration: Calibration) -> Quantizer:
    if int4.algorithm == "gptq":
        return gptq_quantizer(source, products, block_size=int4.block_size, calibration=calibration)
    return partial(_by_weights, int4=int4)


def _by_weights(node: onnx.NodeProto, weight: onnx.TensorProto, *, int4: Int4) -> Replacement:
    """Let ONNX Runtime's quantizer work on a model of one product."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    if int4.algorithm == "k-quant":
        _check_even(node, weight, int4)
    read, written = ([helper.make_empty_tensor_value_info(name)] for name in (node.input[0], node.output[0]))
    graph = helper.make_graph([node], "product", read, written, [weight])
    level = activations(weight.data_type)
    quantizer = MatMulNBitsQuantizer(
        helper.make_model(graph),
        bits=4,
        block_size=int4.block_size,
        is_symmetric=True,
        accuracy_level=level,
        algo_config=_library_config(int4),
    )
    quantizer.process()
    made = quantizer.model.model.graph
    (product,) = made.node
    if int4.algorithm == "hqq":  # the only quantizer that does not pass the level on
        product.attribute.append(helper.make_attribute("accuracy_level", level))
    # Copies: a message holds the memory of all that it was made with, here the fp32 weight.
    return [_own(product)], [_own(tensor) for tensor in made.initializer if tensor.name in product.input]


def _own(message: Any) -> Any:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _check_even(node: onnx.NodeProto, weight: onnx.TensorProto, int4: Int4) -> None:
    """ONNX Runtime 1.32 packs the offsets of neighbouring blocks in pairs and forgets where a row ends."""
    inputs = weight.dims[0]
    if -(-inputs // int4.block_size) % 2:
        raise UsageError(
            f"int4 algorithm k-quant: expected an even number of blocks in a row, got {inputs} weights in blocks of "
            f"{int4.block_size} ({node.name}): choose a smaller block size, or another algorithm"
        )


def _library_config(int4: Int4) -> Any:
    """The library's settings; None is its rounding to nearest, which is compiled code."""
    from onnxruntime.quantization import matmul_nbits_quantizer as library

    if int4.algorithm == "hqq":
        return library.HQQWeightOnlyQuantConfig(block_size=int4.block_size)
    return library.KQuantWeightOnlyQuantConfig() if int4.algorithm == "k-quant" else None
