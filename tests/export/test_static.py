"""Integer arithmetic: what is put into int8, which layers stay, and what the bundle says about it."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

from onnx import TensorProto, helper, numpy_helper

from trrg_export.cli import main
from trrg_export.parity import LIMITS
from trrg_export.precision import static
from trrg_export.precision.static import ANYWHERE, DRIFT_LIMIT, to_static
from trrg_sdk.backends.ort_session import open_session
from trrg_sdk.bundle import Bundle

pytestmark = pytest.mark.torch
WIDTH = 64
SPREAD = np.geomspace(1e-3, 1.0, WIDTH)


def _model(*, outlier: float = 1.0) -> onnx.ModelProto:
    """x (batch, 4, 4, 4) → Conv, Relu → (batch, 16 · 16) → product, norm, product with a table's row → y (batch, 64).

    The first product's input holds one number that is ``outlier`` times as large as the others.
    """
    rng = np.random.default_rng(0)
    scale = np.ones(256)
    scale[0] = outlier
    arrays = {
        "conv": rng.normal(size=(16, 4, 3, 3)) * np.geomspace(0.1, 1, 16)[:, None, None, None],
        "bias": rng.normal(size=16),
        "scale": scale,
        "first": rng.normal(size=(256, WIDTH)) / scale[:, None] * SPREAD,
        "gain": np.ones(WIDTH),
        "shift": np.zeros(WIDTH),
        "second": rng.normal(size=(WIDTH, WIDTH)) / WIDTH**0.5,
        "table": rng.normal(size=(400, WIDTH)),
    }
    weights = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in arrays.items()]
    weights.append(numpy_helper.from_array(np.array([0, 256], np.int64), "flat"))
    nodes = [
        helper.make_node("Conv", ["x", "conv", "bias"], ["c"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu"),
        helper.make_node("Reshape", ["r", "flat"], ["f"], name="flatten"),
        helper.make_node("Mul", ["f", "scale"], ["s"], name="scale"),
        helper.make_node("MatMul", ["s", "first"], ["a"], name="first"),
        helper.make_node("LayerNormalization", ["a", "gain", "shift"], ["n"], name="norm"),
        helper.make_node("MatMul", ["n", "second"], ["b"], name="second"),
        helper.make_node("Gather", ["table", "ids"], ["e"], name="embed"),
        helper.make_node("Sub", ["b", "n"], ["m"], name="residual"),
        helper.make_node("Add", ["m", "e"], ["y"], name="add"),
    ]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4, 4, 4]),
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch"]),
    ]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", WIDTH])]
    graph = helper.make_graph(nodes, "test", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _feeds(batch: int = 2, count: int = 12) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    pixels = [rng.normal(size=(batch, 4, 4, 4)).astype(np.float32) for _ in range(count)]
    return [{"x": value, "ids": np.arange(batch, dtype=np.int64)} for value in pixels]


def _run(model: onnx.ModelProto, feed: dict[str, Any]) -> Any:
    return open_session(model.SerializeToString(), "test", "cpu", 1).run(None, feed)[0]


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def _computed(model: onnx.ModelProto, path: Path) -> list[str]:
    """Operators of the graph that ONNX Runtime makes of it."""
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(path)
    options.log_severity_level = 3
    runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def test_convolutions_and_products_compute_in_int8_with_a_scale_for_each_channel(tmp_path: Path) -> None:
    model = _model()
    found = to_static(model, _feeds(), label="test", limit=None)
    assert found.kept == ()
    assert 1e-3 < found.drift["y"] < DRIFT_LIMIT
    onnx.checker.check_model(found.model, full_check=True)
    scales = {t.name: list(t.dims) for t in found.model.graph.initializer if t.name.endswith("_scale")}
    assert scales["conv_scale"] == [16]
    assert scales["first_scale"] == scales["second_scale"] == [WIDTH]
    rounding = [node for node in found.model.graph.node if node.op_type == "QuantizeLinear"]
    kinds = {_kinds(found.model)[node.input[2]] for node in rounding}
    assert kinds == {TensorProto.UINT8}, "activations: ONNX Runtime is slower than in fp32 where they are int8"
    assert {"table.int8", "table.scale"} <= _kinds(found.model).keys(), "embedding tables are stored in eight bits"
    computed = _computed(found.model, tmp_path / "optimized.onnx")
    assert "QLinearConv" in computed
    assert computed.count("MatMulIntegerToFloat") == 2
    assert not {"Conv", "MatMul", "Relu"} & set(computed)


def test_products_compute_in_floats_where_that_is_asked_for() -> None:
    form = dataclasses.replace(ANYWHERE, floating=frozenset({"second"}), stored=False)
    found = to_static(_model(), _feeds(), label="test", limit=None, form=form)
    assert [(layer.name, layer.reason) for layer in found.kept] == [("second", "that was asked for")]
    assert found.drift["y"] < to_static(_model(), _feeds(), label="test", limit=None).drift["y"]
    kinds = _kinds(found.model)
    assert kinds["second"] == TensorProto.FLOAT
    assert "first" not in kinds


def test_weights_take_seven_bits_so_that_sums_of_two_products_fit_16_bits() -> None:
    stored = {t.name: t for t in to_static(_model(), _feeds(), label="test", limit=None).model.graph.initializer}
    for name in ("conv_quantized", "first_quantized", "second_quantized"):
        weight = numpy_helper.to_array(stored[name])
        assert weight.dtype == np.int8
        assert np.abs(weight.astype(int)).max() == 64
        assert 2 * 255 * 64 < 2**15


def test_what_else_reads_a_tensor_gets_it_as_it_was() -> None:
    """The residual sum reads the norm, not what was rounded for the product."""
    model = to_static(_model(), _feeds(), label="test", limit=None).model
    (residual,) = (node for node in model.graph.node if node.name == "residual")
    assert residual.input[1] == "n"


def test_free_axes_stay_free_and_inputs_and_outputs_as_they_were() -> None:
    model = _model()
    before = model.SerializeToString(deterministic=True)
    found = to_static(model, _feeds(), label="test", limit=None).model
    assert model.SerializeToString(deterministic=True) == before
    for ends in ("input", "output"):
        ours, theirs = (getattr(graph, ends) for graph in (found.graph, model.graph))
        assert [end.SerializeToString() for end in ours] == [end.SerializeToString() for end in theirs]
    assert [(o.domain, o.version) for o in found.opset_import if o.domain in ("", "ai.onnx")] == [("", 20)]
    for batch in (1, 5):
        (feed,) = _feeds(batch, 1)
        assert np.abs(_run(found, feed) - _run(model, feed)).max() < 0.2


def test_the_bytes_are_the_same_each_time_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with caplog.at_level(logging.DEBUG):
        first, second = (to_static(_model(), _feeds(), label="test", limit=None).model for _ in range(2))
    stored = first.SerializeToString(deterministic=True)
    assert stored == second.SerializeToString(deterministic=True)
    assert str(tmp_path).encode() not in stored
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


def test_the_layer_that_drifts_stays_in_fp32_with_weights_of_eight_bits(caplog: pytest.LogCaptureFixture) -> None:
    """An activation with one huge number leaves a step or two for all the others."""
    model = _model(outlier=1e3)
    loose = to_static(model, _feeds(), label="test", limit=10.0)
    assert loose.kept == ()
    assert loose.drift["y"] > 3 * DRIFT_LIMIT
    with caplog.at_level(logging.INFO, "trrg_export"):
        found = to_static(model, _feeds(), label="test", limit=DRIFT_LIMIT * 2)
    assert [layer.name for layer in found.kept] == ["first"]
    assert found.drift["y"] <= DRIFT_LIMIT * 2
    kinds = _kinds(found.model)
    assert kinds["first.int8"] == kinds["second_quantized"] == kinds["conv_quantized"] == TensorProto.INT8
    assert "first" not in kinds
    assert "test: first (MatMul) stays in fp32: alone in int8 it makes an output drift by" in caplog.text


def test_tighter_limits_measure_once_and_give_what_each_gives_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model, limits = _model(outlier=1e3), (10.0, DRIFT_LIMIT * 2, 1e-9, 1e-10)
    alone = [to_static(model, _feeds(), label="test", limit=limit) for limit in limits[:3]]
    calibrated, times = static._calibrated, list[int]()

    def counted(*arguments: Any) -> Any:
        times.append(1)
        return calibrated(*arguments)

    monkeypatch.setattr(static, "_calibrated", counted)
    found = list(static.tightened(model, _feeds(), label="test", limits=limits))
    assert len(times) == 1
    assert [len(graph.kept) for graph in found] == [0, 1, 3], "after one that computes in fp32 there is nothing tighter"
    for ours, theirs in zip(found, alone, strict=True):
        assert (ours.kept, ours.drift) == (theirs.kept, theirs.drift)
        assert ours.model.SerializeToString(deterministic=True) == theirs.model.SerializeToString(deterministic=True)


def test_a_graph_that_drifts_as_a_whole_computes_in_fp32_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trrg_export"):
        found = to_static(_model(), _feeds(), label="test", limit=1e-9)
    assert [layer.name for layer in found.kept] == ["conv", "first", "second"]
    (line,) = found.lines()
    assert line.startswith(
        "conv (Conv), first (MatMul), second (MatMul) stay in fp32: the graph drifts by more than 1e-09"
    )
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in found.model.graph.node}
    assert {"first.int8", "second.int8", "table.int8"} <= _kinds(found.model).keys()
    assert 0 < found.drift["y"] < DRIFT_LIMIT
    assert "test: y drifts by" in caplog.text
    assert "the limit is 1e-09" in caplog.text


def test_a_layer_that_meets_infinities_stays_in_fp32() -> None:
    model = _model()
    (norm,) = (node for node in model.graph.node if node.name == "norm")
    norm.output[0] = "finite"
    model.graph.initializer.append(numpy_helper.from_array(np.full(WIDTH, np.inf, np.float32), "infinity"))
    blown = helper.make_node("Max", ["finite", "infinity"], ["n"], name="blown")
    after = next(index for index, node in enumerate(model.graph.node) if node.name == "second")
    model.graph.node.insert(after, blown)
    found = to_static(model, _feeds(), label="test", limit=None)
    assert {layer.name: layer.reason for layer in found.kept} == {"second": "b holds infinities"}


def test_a_product_of_two_activations_stays_in_fp32(tmp_path: Path) -> None:
    model = _model()
    model.graph.node.append(helper.make_node("Transpose", ["y"], ["t"], name="turn", perm=[1, 0]))
    model.graph.node.append(helper.make_node("MatMul", ["y", "t"], ["z"], name="similarity"))
    model.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", "batch"]))
    found = to_static(model, _feeds(), label="test", limit=None)
    assert {"MatMul", "FusedMatMul"} & set(_computed(found.model, tmp_path / "optimized.onnx"))


def test_an_int8_bundle_computes_in_int8_and_says_how_far_it_is(
    tiny_checkpoint: Path, tmp_path: Path, traced: Callable[..., None], fp32_bundle: Path
) -> None:
    """Scores of random weights lie at their thresholds, so that some flip."""
    pytest.importorskip("onnxruntime_genai")
    from trrg_export import build

    out = tmp_path / "int8"
    limits = dataclasses.replace(LIMITS["int8"], clue_flips=1.0, label_agreement=0.0)
    manifest = build.export_bundle(tiny_checkpoint, out, build.ExportOptions("int8", limits=limits))
    figures: Any = manifest.parity["int8"]
    graphs = {"vision", "clue_encoder", "fusion"}
    assert figures["int8_drift"].keys() == figures["fp32_layers"].keys() == graphs
    assert "fp16_drift" not in figures
    assert all(value <= DRIFT_LIMIT for drift in figures["int8_drift"].values() for value in drift.values())
    operators = {node.op_type for node in onnx.load(str(out / "graphs" / "vision.onnx")).graph.node}
    assert "QuantizeLinear" in operators
    for name in graphs:  # biases are integers now, and still parameters
        ours, theirs = (_summary(folder)[name] for folder in (out, fp32_bundle))
        assert ours == theirs


def test_where_int8_arithmetic_flips_clues_the_bundle_only_stores_weights_in_int8_and_says_so(
    tiny_checkpoint: Path, tmp_path: Path, traced: Callable[..., None], caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("onnxruntime_genai")
    out = tmp_path / "int8"
    with caplog.at_level(logging.INFO, "trrg_export"):
        assert main([str(tiny_checkpoint), "--out", str(out), "--int8"]) == 0
    why = "clue scores change sides of their thresholds"
    assert f"{why}, the limit is 1%; so weights are only stored in int8" in caplog.text
    figures: Any = Bundle.load(out).manifest.parity["int8"]
    assert figures["clue_flips"] == 0
    assert figures["fp32_layers"].keys() == {"vision", "clue_encoder", "fusion"}
    assert all(lines and why in lines[0] for lines in figures["fp32_layers"].values())
    assert why in (out / "model_card.md").read_text()
    operators = {node.op_type for node in onnx.load(str(out / "graphs" / "vision.onnx")).graph.node}
    assert "QuantizeLinear" not in operators


def _summary(folder: Path) -> dict[str, Any]:
    from trrg_sdk.summary import read_summary

    summary = read_summary(Bundle.load(folder))
    assert summary is not None
    return {name: {"flops": part.flops, "parameters": part.parameters} for name, part in summary.components.items()}
