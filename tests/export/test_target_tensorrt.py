"""The TensorRT targets: graphs, precisions and profiles, proven and built on a machine without a GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")
pytest.importorskip("tensorrt_rtx")

from tests.export.rtx_target import RTX, target
from trrg_export import build, onnx_file
from trrg_export.engine_builder import axis_ranges, build_profile
from trrg_export.parity import ParityError, ParityLimits
from trrg_export.targets import tensorrt, tensorrt_graphs, tensorrt_rtx
from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import DeviceError, UsageError
from trrg_sdk.manifest import GRAPH_NAMES

pytestmark = pytest.mark.torch

ANYTHING = ParityLimits(value=None, differing_texts=None, label_agreement=0.0, clue_flips=1.0)


def test_every_graph_has_an_engine_in_fp16(fp16: Path) -> None:
    spec = target(fp16)
    assert spec.graphs.keys() == set(GRAPH_NAMES)
    assert {graph.precision for graph in spec.graphs.values()} == {"fp16"}
    built = {(engine.graph, engine.compute_capability) for engine in spec.engines}
    assert built == {(name, capability) for name in GRAPH_NAMES for capability in RTX.capabilities}
    assert spec.version == RTX.version
    for engine in spec.engines:
        assert (fp16 / engine.file).stat().st_size > 100_000


def test_weights_of_more_than_a_message_holds_lie_beside_their_graph(
    site_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of a large decoder do: PyTorch is compared with that, and TensorRT reads it."""
    monkeypatch.setattr(onnx_file, "INLINE_LIMIT", 2**16)
    spec = tensorrt_rtx.add(site_of(tmp_path / "bundle", "fp16"))
    weights = Path(tmp_path, "bundle", f"{spec.graphs['decoder'].file}.data").stat().st_size
    engine = next(one.file for one in spec.engines if one.graph == "decoder")
    assert 2**16 < weights < Path(tmp_path, "bundle", engine).stat().st_size, "the engine holds them"


def test_the_graphs_hold_standard_operators_and_fp16_weights(fp16: Path) -> None:
    for name, graph in target(fp16).graphs.items():
        model = onnx.load(str(fp16 / graph.file))
        assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
        large = [tensor for tensor in model.graph.initializer if len(tensor.dims) >= 2 and max(tensor.dims) > 8]
        half = [tensor for tensor in large if tensor.data_type == onnx.TensorProto.FLOAT16]
        assert len(half) > 0.8 * len(large), name


def test_profiles_cover_the_free_axes_of_the_manifest(fp16: Path) -> None:
    manifest = Bundle.load(fp16).manifest
    ranges = axis_ranges(manifest)
    spec = target(fp16)
    free = {axis for graph in spec.graphs.values() for tensor in graph.inputs for axis in tensor.axes}
    assert {axis for axis in free if isinstance(axis, str)} == ranges.keys()
    most = ranges["clues"][2]
    assert manifest.prompt_length(most) + 1 == manifest.decoder.max_length
    assert ranges["clues"][:2] == (1, len(manifest.clues))
    assert ranges["past"][0] == 0 and ranges["past"][2] == ranges["sequence"][2] == manifest.decoder.max_length
    assert ranges["length"][2] == manifest.custom_clue.max_length
    for which in range(3):
        assert ranges["past"][which] + ranges["sequence"][which] == ranges["past + sequence"][which]
    for engine in spec.engines:
        graph = spec.graphs[engine.graph]
        assert engine.profile == build_profile(graph, ranges)
        for tensor in graph.inputs:
            smallest, usual, largest = engine.profile[tensor.name]
            for axis, sizes in zip(tensor.axes, zip(smallest, usual, largest, strict=True), strict=True):
                assert sizes == (ranges[axis] if isinstance(axis, str) else (axis,) * 3)


def test_the_decoder_in_4_bits(site_of: Any, tmp_path: Path) -> None:
    """Random weights: that they write the same text in 4 bits nobody can ask."""
    site = site_of(tmp_path / "bundle", "int4", ANYTHING)
    spec = tensorrt_rtx.add(site)
    assert spec.graphs["decoder"].precision == "int4"
    assert spec.graphs["vision"].precision == "fp16"
    model = onnx.load(str(site.folder / spec.graphs["decoder"].file))
    whole = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT4}
    assert len(whole) == 2 * 7, "seven products a layer"
    assert sum(node.op_type == "DequantizeLinear" for node in model.graph.node) == 2 * 7
    assert {engine.graph for engine in spec.engines} == set(GRAPH_NAMES)


def product(rows: int) -> Any:
    """A graph of two products, the first of that many rows."""
    from onnx import TensorProto, helper, numpy_helper

    weights = {"w": np.ones((rows, 64), np.float32), "head": np.ones((64, 8), np.float32)}
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product"), helper.make_node("MatMul", ["y", "head"], ["z"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", rows), ("z", 8))]
    graph = helper.make_graph(
        nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(value, name) for name, value in weights.items()]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])


@pytest.mark.parametrize(("rows", "blocks"), [(96, 3), (688, 43)])
def test_blocks_of_4_bits_are_whole(rows: int, blocks: int) -> None:
    """688 is 21.5 times 32: TensorRT refuses a block that is cut off."""
    scales = [
        tensor for tensor in tensorrt_graphs.quantize_4bit(product(rows)).graph.initializer if "scales" in tensor.name
    ]
    assert [list(tensor.dims) for tensor in scales] == [[blocks, 64]]


def test_a_width_without_whole_blocks_is_refused() -> None:
    with pytest.raises(UsageError, match=r"multiples of 16, the model has \[64, 100\]"):
        tensorrt_graphs.quantize_4bit(product(100))


def test_a_graph_that_differs_is_no_target(site_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = tensorrt_graphs.to_half

    def wrong(model: Any, *args: Any, **kwargs: Any) -> Any:
        made = half(model, *args, **kwargs)
        for tensor in made.model.graph.initializer:
            if len(tensor.dims) == 2:
                tensor.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(tensor), tensor.name))
        return made

    monkeypatch.setattr(tensorrt_graphs, "to_half", wrong)
    limits = ParityLimits(value=0.05, differing_texts=0, label_agreement=1.0, clue_flips=0.0)
    site = site_of(tmp_path / "bundle", "fp16", limits)
    with pytest.raises(ParityError) as caught:
        tensorrt_rtx.add(site)
    assert "fusion.prompt_embeds: differs" in str(caught.value)
    assert "greedy tokens differ" in str(caught.value)
    assert "clue scores change sides of their thresholds, the limit is 0%" in str(caught.value)
    assert not (site.folder / "engines").exists()


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_a_precision_that_it_has_not_is_refused_before_anything_is_built(name: str) -> None:
    with pytest.raises(UsageError, match=f"--target {name}: expected a precision of fp32, fp16, int8, int4, got bf16"):
        build.ExportOptions("bf16", targets=("ort", "openvino", name))
    assert build.allowed_precisions(("ort", name)) == ("fp32", "fp16", "int8", "int4")


def test_int8_is_what_tensorrt_reads(site_of: Any, tmp_path: Path) -> None:
    site = site_of(tmp_path / "bundle", "int8", ANYTHING)
    spec = tensorrt_rtx.add(site)
    assert {name: graph.precision for name, graph in spec.graphs.items()} == {
        **dict.fromkeys(("vision", "clue_encoder", "fusion"), "int8"),
        "decoder": "fp16",
    }
    rounded = 0
    for name in ("vision", "clue_encoder", "fusion"):
        model = onnx.load(str(site.folder / spec.graphs[name].file))
        zeros = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for node in model.graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert zeros[node.input[2]].dtype == np.int8 and not zeros[node.input[2]].any()
                rounded += node.op_type == "QuantizeLinear"
    assert rounded > 5
    table = site.tables["int8 on tensorrt-rtx"]
    assert (table["studies"], table["clue_pairs"]) == (6, 6 * 14)
    assert table["clue_flips"] <= 0.1 * table["clue_pairs"]
    assert {engine.graph for engine in spec.engines} == set(GRAPH_NAMES)


@pytest.mark.skipif(tensorrt.unavailable_reason("fp16") is None, reason="TensorRT and a GPU are here")
def test_an_unavailable_target_is_exit_5_and_one_sentence(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="target tensorrt: .*(pip install tensorrt|no NVIDIA GPU)") as caught:
        build.export_bundle(tiny_checkpoint, tmp_path / "b", build.ExportOptions(targets=("ort", "tensorrt")))
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_an_export_for_the_target_is_a_bundle_with_engines(
    tiny_checkpoint: Path, site_of: Any, traced: Any, tmp_path: Path
) -> None:
    options = build.ExportOptions(targets=("ort", "tensorrt-rtx"), compute_capabilities=("8.9",))
    build.export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    spec = target(tmp_path / "bundle")
    assert {(engine.graph, engine.compute_capability) for engine in spec.engines} == {(n, "8.9") for n in GRAPH_NAMES}
    assert {graph.precision for graph in spec.graphs.values()} == {"fp32"}
    files = Bundle.load(tmp_path / "bundle").manifest.files
    varying = {name for name, file in files.items() if not file.reproducible}
    assert varying == {engine.file for engine in spec.engines}, "the manifest says which bytes another export has not"
