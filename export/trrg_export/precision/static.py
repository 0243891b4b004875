"""Eight-bit arithmetic: products read weights and activations in int8, on scales measured once on real studies.

ONNX Runtime's quantizer writes ``QuantizeLinear`` and ``DequantizeLinear`` (QDQ) around convolutions and products with
weights, which ONNX Runtime and OpenVINO turn into integer kernels. Weights have a scale for each output channel.
A product of two activations, as in attention, stays in fp32, and so does what a matrix product writes: norms,
softmax and residual sums read it.

While an output drifts further than the limit, each product is tried alone in int8, and the one that makes the outputs
drift furthest computes in fp32 again, with weights that are only stored in eight bits
(:mod:`trrg_export.precision.int8`); then the next, until the limit holds. Where more than half of the weights would
have to, the whole graph does: eight bits would be hardly faster, and further off.

Tried on the graphs of the mini checkpoint, 64 studies, one AVX2 core, runs taking turns, CPU time in ms a run (the
clue encoder reads 28 prompts at once):

- fp32 vision 8.6, clue encoder 14.5, fusion 3.4; weights alone in int8 take as long; this form 4.8, 10.9 and 2.2.
- Its outputs are .036, .005 and .031 off, those of weights alone .009, .001 and .007.
- Activations are uint8: in int8 ONNX Runtime's AVX2 kernels took longer than fp32 (vision 10.9, clue encoder 17.5).
- Weights use seven of their eight bits: with all of them the 16-bit sums of processors without VNNI saturate, and the
  vision encoder drifted by .36 in place of .04. Where VNNI is certain, as on every processor with bf16, all are used.
- The range of an activation is the smallest to the largest number that was seen. Without the rarest .01 % the vision
  encoder drifted by .22; entropy chose the same ranges.
- TensorRT reads another form: activations are int8 around zero, weights use all their bits, and a bias stays a float.
  It refuses a zero point, and eight-bit weights that no product in int8 reads, so what is not in int8 stays as it is.
- The product that drifts is found by trying each alone, not by where the error grows as in fp16: in the fusion graph
  one of 34 products makes .037 of a drift of .043, and growth blamed five others before it.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from trrg_export.precision.int8 import quantize_weights
from trrg_export.precision.layers import relative_gap
from trrg_export.precision.lowered import (
    FP32_SHARE,
    Hopeless,
    LoweredGraph,
    Lowering,
    kept_layers,
    named,
    settle,
)
from trrg_export.precision.sections import Array, Feed
from trrg_export.to_onnx import INLINE_LIMIT, clean, quiet, weight_bytes
from trrg_sdk.backends.ort_session import open_session

DRIFT_LIMIT = 0.04
"""Twenty roundings (half of 1/255 of the range each) one after the other, as many as ``parity.LIMITS`` gives fp16."""
_TRIED = 8  # feeds, spread over all, on which products are tried alone
_REASON = "alone in int8 it makes an output drift by {:.2g}"
_PRODUCTS = ("Conv", "MatMul", "Gemm")
_OPERATORS = [*_PRODUCTS, "Relu", "MaxPool"]  # the last two where what they read is in eight bits anyway
_FLOAT_OUTPUTS = ["MatMul", "Gemm"]  # a convolution that writes floats has no integer kernel in ONNX Runtime

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Form:
    """A way to write eight bits; by default the one that ONNX Runtime computes on any processor.

    Attributes:
        symmetric: Activations are int8 around zero and a bias stays a float.
        all_bits: Weights use all their bits, which a processor without VNNI answers with sums that saturate.
    """

    symmetric: bool = False
    all_bits: bool = False


ANYWHERE = Form()
TENSORRT = Form(symmetric=True, all_bits=True)
VNNI = Form(all_bits=True)


def to_static(
    model: onnx.ModelProto, feeds: Sequence[Feed], *, label: str, limit: float | None, form: Form = ANYWHERE
) -> LoweredGraph:
    """Turn a graph into int8.

    Args:
        model: fp32, of standard operators; left as it is.
        feeds: Inputs of one run each, to calibrate and to measure with.
        label: The graph's name, for messages.
        limit: How far an output may drift, see :class:`LoweredGraph`; None takes :data:`DRIFT_LIMIT`.
        form: Which of the ways to write eight bits.

    Returns:
        A checked graph, the same for the same input. One that cannot hold the limit computes in fp32, with weights
        stored in int8 unless the form is symmetric, and says so.
    """
    source, bound = named(model), DRIFT_LIMIT if limit is None else limit
    if weight_bytes(source) >= INLINE_LIMIT:
        return _reported(label, _left(source, (), "a graph above 2 GiB is not calibrated", form))
    trial = _Trial(source, feeds, bound, form)
    lowering = Lowering("int8", trial.convert, trial.judge, bound, as_bad=1.0, reason=_REASON)
    found = settle(source, trial.blind, lowering)
    if isinstance(found, Hopeless):
        _LOG.info(
            "%s: %s drifts by %.3g in int8, the limit is %g, and more than %d %% of the weights would have to stay in "
            "fp32; the whole graph does%s",
            *(label, found.output, found.drift, bound, 100 * FP32_SHARE),
            "" if form.symmetric else ", its weights are only stored in int8",
        )
        why = f"the graph drifts by more than {bound:g} unless most of it does"
        found = _left(source, feeds, why, form)
    return _reported(label, found)


def store_weights(model: onnx.ModelProto, feeds: Sequence[Feed], *, why: str) -> LoweredGraph:
    """Store the weights of a graph in int8, and let it compute in fp32.

    Args:
        model: fp32; left as it is.
        feeds: Inputs to measure the drift with; where there are none it is not measured.
        why: Nothing is put into int8 arithmetic.

    Returns:
        A checked graph.
    """
    return _left(named(model), feeds, why, ANYWHERE)


def _left(source: onnx.ModelProto, feeds: Sequence[Feed], why: str, form: Form) -> LoweredGraph:
    """Put nothing into int8 arithmetic."""
    stored = _finished(source, form)
    drift = _Drift(source, feeds).of(stored) if feeds else {}
    return LoweredGraph("int8", stored, kept_layers(source, dict.fromkeys(_products(source), why)), drift, "")


class _Trial:
    """A graph whose products can be put into int8, some or all.

    Attributes:
        blind: Product → why it has no range to quantize with.
    """

    def __init__(self, source: onnx.ModelProto, feeds: Sequence[Feed], bound: float, form: Form) -> None:
        self._source, self._feeds, self._bound, self._form = source, feeds, bound, form
        self._products = _products(source)
        self._ranges = _calibrated(source, feeds)
        self.blind = _without_range(self._products, self._ranges)
        self._drift = _Drift(source, feeds)
        self._alone: dict[str, float] = {}

    def convert(self, kept: Mapping[str, str]) -> onnx.ModelProto:
        return self._quantized(self._products.keys() - kept.keys())

    def judge(self, model: onnx.ModelProto, kept: Mapping[str, str]) -> tuple[dict[str, float], dict[str, float]]:
        """Drift, and where it is too large what each product does alone; that is measured once, on a few feeds."""
        drift = self._drift.of(model)
        if all(value <= self._bound for value in drift.values()):
            return drift, {}
        if not self._alone:
            few = _Drift(self._source, self._feeds[:: -(-len(self._feeds) // _TRIED)])
            for name in self._products.keys() - self.blind.keys():
                one = self._quantized({name})
                self._alone[name] = max(few.of(one).values())
        return drift, {name: value for name, value in sorted(self._alone.items()) if name not in kept}

    def _quantized(self, products: Collection[str]) -> onnx.ModelProto:
        return _quantized(self._source, products, self._ranges, self._form)


class _Drift:
    """How far the outputs of other graphs are from those of an original."""

    def __init__(self, source: onnx.ModelProto, feeds: Sequence[Feed]) -> None:
        self._names = [output.name for output in source.graph.output]
        self._feeds = feeds
        self._wanted = list(self._outputs(source))

    def of(self, model: onnx.ModelProto) -> dict[str, float]:
        """Output → its largest difference over all feeds, as :class:`LoweredGraph` has it."""
        found = dict.fromkeys(self._names, 0.0)
        for wanted, got in zip(self._wanted, self._outputs(model), strict=True):
            for name, expected, value in zip(self._names, wanted, got, strict=True):
                found[name] = max(found[name], relative_gap(expected, value))
        return found

    def _outputs(self, model: onnx.ModelProto) -> Iterator[list[Array]]:
        session = open_session(model.SerializeToString(), model.graph.name, "cpu", 0)
        for feed in self._feeds:
            yield session.run(self._names, dict(feed))


def _reported(label: str, graph: LoweredGraph) -> LoweredGraph:
    for line in graph.lines():
        _LOG.info("%s: %s", label, line)
    return graph


def _products(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Name → convolution or product with float weights: what follows the first input are initializers."""
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    return {
        node.name: node
        for node in model.graph.node
        if node.op_type in _PRODUCTS and set(node.input[1:]) - {""} <= weights and node.input[0] not in weights
    }


def _calibrated(model: onnx.ModelProto, feeds: Sequence[Feed]) -> Any:
    """Run the feeds; the library's ranges of all tensors around its operators."""
    from onnxruntime.quantization import CalibrationMethod, create_calibrator

    with quiet(), tempfile.TemporaryDirectory(prefix="trrg-int8-") as folder:
        path = Path(folder, "graph.onnx")
        onnx.save_model(model, str(path))
        calibrator = create_calibrator(
            path,
            _OPERATORS,
            augmented_model_path=str(Path(folder, "augmented.onnx")),
            calibrate_method=CalibrationMethod.MinMax,
        )
        calibrator.collect_data(_Reader(feeds))
        return calibrator.compute_data()


class _Reader:
    """Feeds, as the library's ``CalibrationDataReader`` gives them."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds: Iterator[Feed] = iter(feeds)

    def get_next(self) -> dict[str, Any] | None:
        feed = next(self._feeds, None)
        return None if feed is None else dict(feed)


def _without_range(products: Mapping[str, onnx.NodeProto], ranges: Any) -> dict[str, str]:
    """Take ranges away that are none, and say which products read or write such a tensor."""
    lost = {name for name, data in ranges.items() if not all(np.isfinite(end).all() for end in data.range_value)}
    for name in lost:
        del ranges.data[name]
    return {
        name: f"{tensor} holds infinities"
        for name, node in products.items()
        for tensor in (*node.input, *node.output)
        if tensor in lost
    }


def _quantized(model: onnx.ModelProto, products: Collection[str], ranges: Any, form: Form) -> onnx.ModelProto:
    """Put the named products into int8, and finish what is left."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.transformers.onnx_model import OnnxModel

    left = [n.name for n in model.graph.node if n.op_type in _PRODUCTS and n.name not in products]
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with quiet():
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=not form.all_bits,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if form.symmetric else QuantType.QUInt8,
            tensors_range=ranges,
            nodes_to_quantize=[],
            nodes_to_exclude=left,
            op_types_to_quantize=_OPERATORS,
            extra_options={
                "OpTypesToExcludeOutputQuantization": _FLOAT_OUTPUTS,
                "ActivationSymmetric": form.symmetric,
                "QuantizeBias": not form.symmetric,
            },
        )
        quantized: onnx.ModelProto = quantizer.quantize_model()
    _read_unrounded(quantized.graph, products)
    OnnxModel.graph_topological_sort(quantized.graph)
    return _finished(quantized, form)


def _read_unrounded(graph: onnx.GraphProto, products: Collection[str]) -> None:
    """Let sums, norms and layers in fp32 read a float tensor itself, and not what was rounded for a product.

    What an integer convolution writes is left rounded: its kernel gives nothing else.
    """
    made = {name: node for node in graph.node for name in node.output}
    rounded = {node.output[0]: made[node.input[0]].input[0] for node in graph.node if _undoes_rounding(node, made)}
    free = {name: source for name, source in rounded.items() if not _is_integer(made.get(source), rounded)}
    for node in graph.node:
        if node.name not in products:
            for index, name in enumerate(node.input):
                node.input[index] = free.get(name, name)


def _undoes_rounding(node: onnx.NodeProto, made: Mapping[str, onnx.NodeProto]) -> bool:
    maker = made.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    return maker is not None and maker.op_type == "QuantizeLinear"


def _is_integer(node: onnx.NodeProto | None, rounded: Collection[str]) -> bool:
    """True for a node that reads what was rounded: ONNX Runtime makes an integer kernel of it."""
    return node is not None and node.op_type in ("Conv", "MaxPool", "Relu") and node.input[0] in rounded


def _finished(model: onnx.ModelProto, form: Form) -> onnx.ModelProto:
    """A checked copy; but for TensorRT the weights that are still floats are in eight bits, embedding tables too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = clean(copy if form.symmetric else quantize_weights(copy))
    onnx.checker.check_model(stored, full_check=True)
    return stored
