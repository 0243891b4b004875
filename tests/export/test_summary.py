"""Parameters and FLOPs, held against counting by hand and against PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper

from trrg_export.summary import parameters, summarize
from trrg_sdk.bundle import Bundle
from trrg_sdk.summary import Component, read_summary

pytestmark = pytest.mark.torch


def save(
    path: Path, nodes: list[onnx.NodeProto], weights: dict[str, tuple[int, ...]], *, shape: list[int | str]
) -> Path:
    arrays = [numpy_helper.from_array(np.ones(size, np.float32), name) for name, size in weights.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "test", inputs, outputs, arrays)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString())
    return path


def counted(path: Path, **sizes: int) -> Component:
    return summarize({"it": path}, sizes).components["it"]


def test_a_convolution_by_hand(tmp_path: Path) -> None:
    """6 x 4 x 4 outputs, each a sum over one group's 2 channels x 3 x 3."""
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], group=2, pads=[1, 1, 1, 1], strides=[2, 2])
    path = save(tmp_path / "conv.onnx", [node], {"w": (6, 2, 3, 3), "b": (6,)}, shape=["batch", 4, 8, 8])
    found = counted(path, batch=1)
    assert found.flops == 2 * (6 * 4 * 4) * (2 * 3 * 3) == 3456
    assert found.parameters == 6 * 2 * 3 * 3 + 6 == 114
    assert found.operators == {"Conv": 1}
    assert found.sizes == {"batch": 1}
    assert found.bytes == path.stat().st_size
    assert counted(path, batch=3).flops == 3 * 3456


def test_matrix_products_by_hand(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Gemm", ["v", "b", "c"], ["y"], transA=1, transB=1),
    ]
    weights = {"w": (5, 7), "v": (7, 4), "c": (3,)}
    path = save(tmp_path / "matmul.onnx", nodes, weights, shape=["length", 5])
    found = counted(path, length=3)
    assert found.flops == 2 * (3 * 7) * 5 + 2 * (4 * 3) * 7 == 378
    assert found.parameters == 35 + 28 + 3
    assert found.operators == {"Gemm": 1, "MatMul": 1, "Relu": 1}


def test_attention_by_hand(tmp_path: Path) -> None:
    """One sequence of 6 positions and width 8: 6 x 6 scores of width 8, and as much for the values."""
    node = helper.make_node("MultiHeadAttention", ["x", "x", "x"], ["y"], domain="com.microsoft", num_heads=2)
    path = save(tmp_path / "attention.onnx", [node], {}, shape=[1, "length", 8])
    found = counted(path, length=6)
    assert found.flops == 2 * (2 * 6 * 6 * 8) == 1152
    assert found.operators == {"com.microsoft.MultiHeadAttention": 1}


def test_fused_operators_by_hand(tmp_path: Path) -> None:
    """Attention that projects first, 6 positions of width 8; then a product with a transposed factor."""
    nodes = [
        helper.make_node("Attention", ["x", "w", "b"], ["a"], domain="com.microsoft", num_heads=2),
        helper.make_node("FusedMatMul", ["a", "v"], ["y"], domain="com.microsoft", transB=1),
    ]
    path = save(tmp_path / "fused.onnx", nodes, {"w": (8, 24), "b": (24,), "v": (5, 8)}, shape=[1, "length", 8])
    assert counted(path, length=6).flops == 2 * 6 * 8 * 24 + 2 * (2 * 6 * 6 * 8) + 2 * (6 * 5) * 8


def test_a_product_without_a_rule_is_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Einsum", ["x", "w"], ["a"], equation="ij,jk->ik"),
        helper.make_node("Relu", ["a"], ["y"]),
    ]
    path = save(tmp_path / "einsum.onnx", nodes, {"w": (5, 7)}, shape=[3, 5])
    assert summarize({"it": path}, {}).counted.endswith(" Not counted: Einsum.")


def test_a_length_that_the_graph_computes_is_followed(tmp_path: Path) -> None:
    """Shape inference of ONNX stops here: the sum of the input says how long the range is."""
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "seven"], ["limit"]),
        helper.make_node("Range", ["zero", "limit", "one"], ["range"]),
        helper.make_node("Reshape", ["range", "shape"], ["column"]),
        helper.make_node("MatMul", ["column", "w"], ["y"]),
    ]
    path = save(tmp_path / "range.onnx", nodes, {"w": (1, 5)}, shape=[2])
    model = onnx.load(str(path))
    for name, value in {"zero": 0.0, "one": 1.0, "seven": 7.0}.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(value, np.float32), name))
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1, 1], np.int64), "shape"))
    path.write_bytes(model.SerializeToString())
    assert counted(path).flops == 2 * (7 * 5) * 1
    assert counted(path).parameters == 5, "scalars and shapes are no weights"


def test_external_data_counts_as_bytes(tmp_path: Path) -> None:
    path = save(
        tmp_path / "inside.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": (64, 64)}, shape=[1, 64]
    )
    outside = tmp_path / "outside.onnx"
    onnx.save_model(
        onnx.load(str(path)), str(outside), save_as_external_data=True, location="outside.onnx.data", size_threshold=0
    )
    found = counted(outside)
    assert found.bytes == outside.stat().st_size + 64 * 64 * 4
    assert (found.parameters, found.flops) == (4096, 8192)


def test_quantized_weights_are_the_same_parameters(tmp_path: Path) -> None:
    from trrg_export.precision.int8 import quantize_weights

    path = save(tmp_path / "it.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": (64, 64)}, shape=[1, 64])
    model = quantize_weights(onnx.load(str(path)))
    assert parameters(model.graph) == 4096
    path.write_bytes(model.SerializeToString())
    assert counted(path).flops == 8192


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_the_decoder_counts_as_pytorch_does(
    tiny_checkpoint: Path, fp32_bundle: Path, tmp_path: Path, precision: str
) -> None:
    """Every weight of the language model but the embedding; each matrix once a position, and the attention."""
    pytest.importorskip("onnxruntime_genai")
    from torch import nn

    from trrg_export.decoder import write_decoder
    from trrg_export.describe import run_sizes
    from trrg_export.precision.int4 import Int4
    from trrg_export.pytorch_run import run_pytorch
    from trrg_train.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(tiny_checkpoint)
    llm, sizes = loaded.trrg().llm, run_sizes(loaded, Bundle.load(fp32_bundle).manifest.decoder)
    reference = run_pytorch(loaded, loaded.parity_pixels()[:1])
    write_decoder(loaded, tmp_path / "decoder.onnx", precision=precision, int4=Int4(), reference=reference)
    found = counted(tmp_path / "decoder.onnx", **sizes)
    prompt = sizes["sequence_length"]
    matrices = sum(part.weight.numel() for part in llm.modules() if isinstance(part, nn.Linear))
    assert prompt == 3 + 4 + 14 + 1
    assert found.parameters == sum(p.numel() for p in llm.parameters()) - llm.get_input_embeddings().weight.numel()
    attention = llm.config.num_hidden_layers * 4 * prompt * prompt * llm.config.hidden_size
    assert found.flops == 2 * prompt * matrices + attention


def test_a_bundle_holds_the_summary_of_its_graphs(fp32_bundle: Path) -> None:
    bundle = Bundle.load(fp32_bundle)
    summary = read_summary(bundle)
    assert summary is not None
    assert list(summary.components) == list(bundle.manifest.graphs)
    assert all(part.flops > 1000 and part.parameters > 1000 for part in summary.components.values())
    assert summary.components["clue_encoder"].sizes == {"prompts": 1, "length": 48}
    assert summary.components["fusion"].sizes == {"batch": 1, "clues": 14}
