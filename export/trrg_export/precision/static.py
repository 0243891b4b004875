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
- Weights that are only stored in eight bits are half of what is lost: with all 18 products of the mini encoder in bf16
  they were .011 off, and .006 without. So a form that is made to be fast, and not small, leaves them as they are.
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
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, shape_inference

from trrg_export.hollow import check, is_hollow, with_weights_outside
from trrg_export.memory import few_runs, released
from trrg_export.onnx_file import INLINE_LIMIT, clean, weight_bytes
from trrg_export.precision.drift import Drift, Source
from trrg_export.precision.int8 import quantize_weights
from trrg_export.precision.lowered import (
    FP32_SHARE,
    Hopeless,
    LoweredGraph,
    Lowering,
    kept_layers,
    settle,
)
from trrg_export.precision.sections import Feed
from trrg_export.quiet import quiet

DRIFT_LIMIT = 0.04
"""Twenty roundings (half of 1/255 of the range each) one after the other, as many as ``parity.LIMITS`` gives fp16."""
_TRIED = 8  # feeds, spread over all, on which products are tried alone
_REASON = "alone in int8 it makes an output drift by {:.2g}"
_ASKED = "that was asked for"
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
        stored: Weights of what computes in floats are in eight bits too, for a small file; else they are as they were.
        floating: Names of products that compute in floats from the start.
    """

    symmetric: bool = False
    all_bits: bool = False
    stored: bool = True
    floating: frozenset[str] = frozenset()


ANYWHERE = Form()
TENSORRT = Form(symmetric=True, all_bits=True, stored=False)
VNNI = Form(all_bits=True, stored=False)


def to_static(
    model: onnx.ModelProto,
    feeds: Sequence[Feed],
    *,
    label: str,
    limit: float | None,
    form: Form = ANYWHERE,
    outside: Path | None = None,
) -> LoweredGraph:
    """Turn a graph into int8.

    Args:
        model: fp32, of standard operators; left as it is.
        feeds: Inputs of one run each, to calibrate and to measure with.
        label: The graph's name, for messages.
        limit: How far an output may drift, see :class:`LoweredGraph`; None takes :data:`DRIFT_LIMIT`.
        form: Which of the ways to write eight bits.
        outside: Folder of external data of the model.

    Returns:
        A checked graph, the same for the same input. One that cannot hold the limit computes in fp32 and says so.
    """
    bound = DRIFT_LIMIT if limit is None else limit
    return next(tightened(model, feeds, label=label, limits=(bound,), form=form, outside=outside))


def tightened(
    model: onnx.ModelProto,
    feeds: Sequence[Feed],
    *,
    label: str,
    limits: Sequence[float],
    form: Form = ANYWHERE,
    outside: Path | None = None,
) -> Iterator[LoweredGraph]:
    """Turn a graph into int8 within one limit after another; what was measured for one serves the next.

    Args:
        model: As in :func:`to_static`.
        feeds: As there.
        label: As there.
        limits: Falling; at least one.
        form: As there.
        outside: As there.

    Yields:
        What :func:`to_static` gives for each limit, and nothing after a graph that computes in fp32.
    """
    source = Source.of(model, outside)
    if weight_bytes(model, outside=True) >= INLINE_LIMIT:
        yield _reported(label, _left(source, (), "a graph above 2 GiB is not calibrated", form))
        return
    trial = _Trial(source, feeds, form)
    kept = {**dict.fromkeys(form.floating, _ASKED), **trial.blind}
    for limit in limits:
        judge = partial(trial.judge, bound=limit)
        found = settle(source.light, kept, Lowering("int8", trial.convert, judge, limit, as_bad=1.0, reason=_REASON))
        if isinstance(found, Hopeless):
            yield _reported(label, _floating(found, source, feeds, label=label, limit=limit, form=form))
            return
        kept = {layer.name: layer.reason for layer in found.kept}
        made = [_reported(label, found)]
        del found  # who takes it may let it go before the next one is made
        yield made.pop()


def _floating(
    found: Hopeless, source: Source, feeds: Sequence[Feed], *, label: str, limit: float, form: Form
) -> LoweredGraph:
    """Say that a graph cannot hold a limit, and let it compute in fp32."""
    _LOG.info(
        "%s: %s drifts by %.3g in int8, the limit is %g, and more than %d %% of the weights would have to stay in "
        "fp32; the whole graph does%s",
        *(label, found.output, found.drift, limit, 100 * FP32_SHARE),
        ", its weights are only stored in int8" if form.stored else "",
    )
    return _left(source, feeds, f"the graph drifts by more than {limit:g} unless most of it does", form)


def store_weights(
    model: onnx.ModelProto, feeds: Sequence[Feed], *, why: str, outside: Path | None = None
) -> LoweredGraph:
    """Store the weights of a graph in int8, and let it compute in fp32.

    Args:
        model: fp32; left as it is.
        feeds: Inputs to measure the drift with; where there are none it is not measured.
        why: Nothing is put into int8 arithmetic.
        outside: Folder of external data of the model.

    Returns:
        A checked graph.
    """
    return _left(Source.of(model, outside), feeds, why, ANYWHERE)


def _left(source: Source, feeds: Sequence[Feed], why: str, form: Form) -> LoweredGraph:
    """Put nothing into int8 arithmetic."""
    drift = Drift(source, feeds) if feeds else None
    stored = _finished(_own(source.light), source.weights, form)
    kept = kept_layers(source.light, dict.fromkeys(_products(source.light), why))
    return LoweredGraph("int8", stored, kept, drift.of(stored) if drift else {}, "")


class _Trial:
    """A graph whose products can be put into int8, some or all.

    Attributes:
        blind: Product → why it has no range to quantize with.
    """

    def __init__(self, source: Source, feeds: Sequence[Feed], form: Form) -> None:
        self._source, self._feeds, self._form = source, feeds, form
        self._products = _products(source.light)
        with released():
            self._ranges = _calibrated(source, feeds)
        self.blind = _without_range(self._products, self._ranges)
        self._drift = Drift(source, feeds)
        self._alone: dict[str, float] = {}

    def convert(self, kept: Mapping[str, str]) -> onnx.ModelProto:
        with released():  # the library's quantizer lies in cycles, with the weights that it read
            quantized = _own(self._quantized(self._products.keys() - kept.keys()))
        with released():
            return _own(_finished(quantized, self._source.weights, self._form))

    def judge(
        self, model: onnx.ModelProto, kept: Mapping[str, str], bound: float
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Drift, and where it is too large what each product does alone; that is measured once, on a few feeds."""
        drift = self._drift.of(model)
        if all(value <= bound for value in drift.values()):
            return drift, {}
        if not self._alone:
            few = Drift(self._source, self._feeds[:: -(-len(self._feeds) // _TRIED)])
            weights = self._source.inputs()
            for name in self._products.keys() - self.blind.keys():
                self._alone[name] = max(few.of(self._quantized({name}), weights).values())
        return drift, {name: value for name, value in sorted(self._alone.items()) if name not in kept}

    def _quantized(self, products: Collection[str]) -> onnx.ModelProto:
        return _quantized(self._source, products, self._ranges, self._form)


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


def _calibrated(source: Source, feeds: Sequence[Feed]) -> Any:
    """Run the feeds; the library's ranges of all tensors around its operators."""
    from onnxruntime import InferenceSession
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    weights = source.inputs()
    names = frozenset(weights)  # a class lies in cycles, and may hold no weights

    class Calibrater(MinMaxCalibrater):  # type: ignore[misc]  # the library has no types
        def select_tensors_to_calibrate(self, model: onnx.ModelProto) -> tuple[set[str], dict[str, Any]]:
            tensors, infos = super().select_tensors_to_calibrate(model)
            return tensors - names, infos

        def create_inference_session(self) -> None:
            path, providers = self.augmented_model_path, self.execution_providers
            self.infer_session = InferenceSession(path, few_runs(), providers=providers)

    with quiet(), tempfile.TemporaryDirectory(prefix="trrg-int8-") as folder:
        path = Path(folder, "graph.onnx")
        onnx.save_model(with_weights_outside(source.light), str(path))
        calibrator = Calibrater(path, _OPERATORS, augmented_model_path=str(Path(folder, "augmented.onnx")))
        calibrator.augment_graph()
        calibrator.create_inference_session()
        calibrator.collect_data(_Reader(feeds, weights))
        return calibrator.compute_data()


class _Reader:
    """Feeds with the weights, as the library's ``CalibrationDataReader`` gives them."""

    def __init__(self, feeds: Sequence[Feed], weights: Feed) -> None:
        self._feeds, self._weights = iter(feeds), weights

    def get_next(self) -> dict[str, Any] | None:
        feed = next(self._feeds, None)
        return None if feed is None else {**feed, **self._weights}


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


def _quantized(source: Source, products: Collection[str], ranges: Any, form: Form) -> onnx.ModelProto:
    """Put the named products into int8; the large weights that they do not read stay hollow."""
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer
    from onnxruntime.quantization.quant_utils import add_infer_metadata
    from onnxruntime.transformers.onnx_model import OnnxModel

    nodes = source.light.graph.node
    left = [n.name for n in nodes if n.op_type in _PRODUCTS and n.name not in products]
    read = {name for node in nodes if node.name in products for name in node.input}
    copy = shape_inference.infer_shapes(source.light)
    add_infer_metadata(copy)  # or the library copies the graph, writes it and reads it to do the same
    for tensor in copy.graph.initializer:
        if tensor.name in read:
            tensor.CopyFrom(source.weights[tensor.name])
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
    return quantized


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


def _finished(model: onnx.ModelProto, weights: Mapping[str, TensorProto], form: Form) -> onnx.ModelProto:
    """Fill in the weights that are still floats, or put them into eight bits, embedding tables too; checked."""
    if not form.stored:
        for tensor in model.graph.initializer:
            if is_hollow(tensor):
                tensor.CopyFrom(weights[tensor.name])
    else:
        quantize_weights(model, weights)
    check(clean(model))
    return model


def _own(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy: a message holds the memory of all that it was made with, here weights in fp32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy
