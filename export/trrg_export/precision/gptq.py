"""GPTQ of the decoder: what one rounded weight spoils, the weights after it make good, as real inputs weigh it.

The algorithm (Frantar et al., https://arxiv.org/abs/2210.17323) is that of Intel's Neural Compressor for PyTorch. What
it is calibrated on are the inputs of the decoder's own matrix products while it reads the prompts of the parity
studies and the reports that PyTorch wrote for them.

The GPTQ inside ONNX Runtime 1.32 (``GPTQWeightOnlyQuantConfig``) is of no use: in
``neural_compressor/weight_only.py`` it spreads the error of a row along a column of the upper triangular factor
(``Hinv1[i:, i]`` where the algorithm has ``Hinv1[i, i:]``), which is zero below the diagonal. So it rounds to nearest,
and then quantizes the rounded weights once more with new scales.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from trrg_export.precision.decoder_products import Quantizer, Replacement

if TYPE_CHECKING:
    import torch

_INT8_ACTIVATIONS = 4  # accuracy level of MatMulNBits: the fastest on a CPU, which genai's builder chooses there too
_AS_THEY_ARE = 0
_LEVELS = 15
_SCHEME = {
    "bits": 4,
    "sym": True,
    "dtype": "int",
    "perchannel": True,
    "mse": False,
    "use_double_quant": False,
    "double_quant_sym": True,
}

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Calibration:
    """What the decoder reads.

    Attributes:
        reports: Embedded prompts with their reports behind, float32 (positions, width) each.
        past: Shape of an empty past, (1, heads of keys and values, 0, size of a head).
    """

    reports: Iterable[Array]
    past: tuple[int, int, int, int]

    def feeds(self, names: Iterable[str], dtype: np.dtype[Any]) -> Iterator[dict[str, NDArray[Any]]]:
        """Inputs of a decoder that computes in a dtype by name, one report at a time."""
        keys = {name: np.zeros(self.past, dtype) for name in names if name.startswith("past_key_values.")}
        for report in self.reports:
            embeds = report[None].astype(dtype, copy=False)
            yield {"inputs_embeds": embeds, "attention_mask": np.ones((1, len(report)), np.int64), **keys}


def activations(weights: int) -> int:
    """In what ``MatMulNBits`` reads its input: in fp32 graphs int8, in fp16 ones, which are for GPUs, as they are.

    Args:
        weights: ``TensorProto`` type of what is quantized.

    Returns:
        The operator's ``accuracy_level``.
    """
    return _AS_THEY_ARE if weights == onnx.TensorProto.FLOAT16 else _INT8_ACTIVATIONS


def embedded_reports(prompts: Array, reports: Sequence[Sequence[int]], table: Array) -> Iterator[Array]:
    """Put the reports behind their prompts, as the decoder reads them.

    Args:
        prompts: float32 (K, P, Dl).
        reports: Token ids of each study's report.
        table: float32 (V, Dl), the token embeddings.

    Yields:
        float32 (P + T, Dl) for each study.
    """
    for prompt, ids in zip(prompts, reports, strict=True):
        yield np.concatenate([prompt, table[list(ids)]])


def gptq_quantizer(
    source: Path, products: Sequence[onnx.NodeProto], *, block_size: int, calibration: Calibration
) -> Quantizer:
    """Calibrate.

    Args:
        source: The decoder in fp32 or fp16 with its weights in external data.
        products: Its matrix products.
        block_size: Weights that share a scale.
        calibration: What the decoder reads.

    Returns:
        A function that quantizes one product.
    """
    hessians = _hessians(source, list(dict.fromkeys(node.input[0] for node in products)), calibration)

    def quantize(node: onnx.NodeProto, weight: onnx.TensorProto) -> Replacement:
        values = numpy_helper.to_array(weight)
        levels, scale = _rounded(values.astype(np.float32, copy=False), hessians[node.input[0]], block_size)
        return _packed(node, weight, levels, scale.astype(values.dtype, copy=False))

    return quantize


def _hessians(source: Path, names: list[str], calibration: Calibration) -> Mapping[str, torch.Tensor]:
    """Sum up the outer products of what each matrix product reads: float32 (inputs, inputs) by the input's name."""
    import onnxruntime
    import torch

    model = onnx.load(str(source), load_external_data=False)
    inputs = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    seen = source.with_name("calibration.onnx")  # beside the weights, where they are looked for
    onnx.save_model(model, str(seen))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(seen), options, providers=["CPUExecutionProvider"])
    solvers: dict[str, Any] = {}
    for feed in calibration.feeds(inputs, helper.tensor_dtype_to_np_dtype(inputs["inputs_embeds"])):
        for name, value in zip(names, session.run(names, feed), strict=True):
            if name not in solvers:
                solvers[name] = _solver(value.shape[-1])
            solvers[name].add_batch(torch.from_numpy(value.astype(np.float32, copy=False)), None)
    return {name: solver.H for name, solver in solvers.items()}


def _rounded(weight: Array, hessian: torch.Tensor, block_size: int) -> tuple[NDArray[np.uint8], Array]:
    """Quantize (inputs, outputs): levels uint8 (outputs, blocks, block_size) and scales (outputs, blocks)."""
    import torch

    rows = torch.from_numpy(weight.T.copy())
    solver = _solver(rows.shape[1])
    solver.H = hessian.clone()
    solver.quantizer.configure(_SCHEME)
    # One step a block: else the library takes a block's scale from weights that do not hold the errors before it yet.
    scale, _, zero, rounded = solver.fasterquant(rows, blocksize=block_size, groupsize=block_size)
    blocks = torch.nn.functional.pad(rounded, (0, -rows.shape[1] % block_size)).unflatten(1, (-1, block_size))
    levels = torch.round(blocks / scale[..., None] + zero[..., None]).clamp(0, _LEVELS)
    return levels.to(torch.uint8).numpy(), scale.numpy()


def _packed(
    node: onnx.NodeProto, weight: onnx.TensorProto, levels: NDArray[np.uint8], scale: NDArray[Any]
) -> Replacement:
    from onnxruntime.quantization.neural_compressor.weight_only import make_matmul_weight_only_node

    block_size, level = levels.shape[2], activations(weight.data_type)
    made, tensors = make_matmul_weight_only_node(
        node, tuple(weight.dims), 4, block_size, levels.shape[1], levels.reshape(-1, block_size), scale, None, level
    )
    return [made], tensors


def _solver(inputs: int) -> Any:
    import torch
    from neural_compressor.torch.algorithms.weight_only.gptq import GPTQ

    logging.getLogger("neural_compressor").setLevel(logging.ERROR)  # its import sets INFO: a line for each matrix
    return GPTQ(torch.nn.Linear(1, 1), torch.empty(1, inputs))  # looks at the layer's type and the weight's shape
