"""Eight-bit weights: right, and folded by the runtime."""

from __future__ import annotations

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper

from trrg_export.precision.int8 import quantize, quantize_weights


def _model() -> onnx.ModelProto:
    """x (1, 4, 8, 8) → Conv → Reshape (64, 64) → MatMul → Gemm with a transposed weight; a bias, and a small weight."""
    rng = np.random.default_rng(0)
    weights = {
        "conv": rng.normal(size=(64, 4, 3, 3)),
        "matmul": rng.normal(size=(64, 96)) * np.linspace(0.01, 10, 96),
        "gemm": rng.normal(size=(48, 96)),
        "bias": rng.normal(size=(48,)),
        "small": rng.normal(size=(48, 8)),
    }
    arrays = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()]
    arrays.append(numpy_helper.from_array(np.array([64, 64], np.int64), "shape"))
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Reshape", ["a", "shape"], ["b"]),
        helper.make_node("MatMul", ["b", "matmul"], ["c"]),
        helper.make_node("Gemm", ["c", "gemm", "bias"], ["d"], transB=1),
        helper.make_node("MatMul", ["d", "small"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 8, 8])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [64, 8])]
    graph = helper.make_graph(nodes, "test", inputs, outputs, arrays)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def test_quantize_is_right_to_half_a_step_in_every_channel() -> None:
    weight = np.random.default_rng(1).normal(size=(6, 5, 3)).astype(np.float32) * np.geomspace(1e-3, 1e3, 5)[:, None]
    weight[:, 2] = 0
    quantized, scale = quantize(weight.astype(np.float32), axis=1)
    assert quantized.dtype == np.int8
    assert scale.shape == (1, 5, 1)
    assert (np.abs(quantized * scale - weight) <= scale * 0.5001).all()
    assert np.abs(quantized).max(axis=(0, 2)).tolist() == [127, 127, 0, 127, 127]


def test_large_weights_become_int8_and_the_rest_stays() -> None:
    model = quantize_weights(_model())
    onnx.checker.check_model(model, full_check=True)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert {name for name, kind in kinds.items() if kind == TensorProto.INT8} == {
        "conv.int8",
        "matmul.int8",
        "gemm.int8",
    }
    assert kinds["bias"] == kinds["small"] == TensorProto.FLOAT
    scales = {t.name: tuple(t.dims) for t in model.graph.initializer if t.name.endswith(".scale")}
    assert scales == {"conv.scale": (64, 1, 1, 1), "matmul.scale": (1, 96), "gemm.scale": (48, 1)}


def test_a_weight_that_is_used_in_two_ways_stays_as_it_is() -> None:
    model = _model()
    model.graph.node.append(helper.make_node("Transpose", ["matmul"], ["unused"]))
    quantize_weights(model)
    assert "matmul" in {tensor.name for tensor in model.graph.initializer}


def test_the_runtime_computes_nearly_the_same_and_folds_the_weights(tmp_path: pytest.TempPathFactory) -> None:
    runtime = pytest.importorskip("onnxruntime")
    x = {"x": np.random.default_rng(2).normal(size=(1, 4, 8, 8)).astype(np.float32)}
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")  # type: ignore[operator]
    options.log_severity_level = 3
    expected, got = (
        runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, x)[0]
        for model in (_model(), quantize_weights(_model()))
    )
    assert 0 < np.abs(got - expected).max() < 0.02 * np.abs(expected).max()
    left = {node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node}
    assert not left & {"Cast", "Mul"}, "the weights would be computed anew in every run"
