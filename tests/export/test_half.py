"""Which layers stay in fp32, found on graphs that overflow, lose a small number, or do neither."""

from __future__ import annotations

import dataclasses
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
from trrg_export.parity import LIMITS, ParityError
from trrg_export.precision.half import to_half
from trrg_export.precision.layers import magnitude, rounded
from trrg_export.precision.lowered import LoweredGraph
from trrg_sdk.backends.ort_session import open_session
from trrg_sdk.bundle import Bundle

pytestmark = pytest.mark.torch
WIDTH = 16
LIMIT = 1e-2

LAYER_NORM = [helper.make_node("LayerNormalization", ["h", "gain", "bias"], ["n"], name="norm")]
RMS_NORM = [
    helper.make_node("Pow", ["h", "two"], ["square"], name="square"),
    helper.make_node("ReduceMean", ["square", "last"], ["mean"], name="mean"),
    helper.make_node("Sqrt", ["mean"], ["root"], name="root"),
    helper.make_node("Div", ["h", "root"], ["n"], name="divide"),
]
CANCELLATION = [
    helper.make_node("Add", ["h", "thousand"], ["far"], name="add"),
    helper.make_node("Sub", ["far", "thousand"], ["n"], name="away"),
]
UNIT_NORM = [
    helper.make_node("Pow", ["h", "two"], ["square"], name="square"),
    helper.make_node("ReduceSum", ["square", "last"], ["sum"], name="sum"),
    helper.make_node("Add", ["sum", "epsilon"], ["safe"], name="epsilon"),
    helper.make_node("Sqrt", ["safe"], ["root"], name="root"),
    helper.make_node("Div", ["h", "root"], ["n"], name="divide"),
]


def _model(norm: list[Any], *, scale: float, epsilon: float = 1e-12) -> onnx.ModelProto:
    """x (batch, 16) → product whose numbers reach about 4 times ``scale`` → norm → product → y (batch, 16)."""
    rng = np.random.default_rng(0)
    arrays = {
        "before": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32) * scale / WIDTH**0.5,
        "gain": np.ones(WIDTH, np.float32),
        "bias": np.zeros(WIDTH, np.float32),
        "two": np.float32(2),
        "thousand": np.float32(1000),
        "last": np.array([-1], np.int64),
        "epsilon": np.float32(epsilon),
        "after": rng.normal(size=(WIDTH, WIDTH)).astype(np.float32),
    }
    nodes = [
        helper.make_node("MatMul", ["x", "before"], ["h"], name="first"),
        *norm,
        helper.make_node("MatMul", ["n", "after"], ["y"], name="last"),
    ]
    used = {name for node in nodes for name in node.input}
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in arrays.items() if name in used]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in ("x", "y")]
    graph = helper.make_graph(nodes, "test", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _feeds() -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.normal(size=(3, WIDTH)).astype(np.float32)} for _ in range(4)]


def _unguarded(model: onnx.ModelProto) -> onnx.ModelProto:
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    half = convert_float_to_float16(copy, keep_io_types=True)
    OnnxModel.graph_topological_sort(half.graph)
    return half


def _run(model: onnx.ModelProto, feed: dict[str, Any]) -> Any:
    return open_session(model.SerializeToString(), "test", "cpu", 1).run(None, feed)[0]


def _kept(half: LoweredGraph) -> dict[str, str]:
    return {layer.name: layer.reason for layer in half.kept}


@pytest.mark.parametrize(
    ("norm", "scale", "expected"),
    [
        (LAYER_NORM, 1e5, {"first": "before reaches", "norm": "h reaches"}),
        (RMS_NORM, 1e3, {"square": "square reaches", "mean": "square reaches", "root": "mean reaches"}),
    ],
)
def test_layers_that_overflow_stay_in_fp32(norm: list[Any], scale: float, expected: dict[str, str]) -> None:
    model = _model(norm, scale=scale)
    half = to_half(model, _feeds(), label="test", limit=LIMIT)
    kept = _kept(half)
    assert kept.keys() == expected.keys()
    assert all(kept[name].startswith(reason) and "65504" in kept[name] for name, reason in expected.items())
    for feed in _feeds():
        wanted = _run(model, feed)
        unguarded = _run(rounded(_unguarded(model)), feed)
        assert not np.isfinite(unguarded).all() or np.abs(unguarded - wanted).max() > 1
        for guarded in (half.model, rounded(half.model)):
            assert np.abs(_run(guarded, feed) - wanted).max() < LIMIT * np.abs(wanted).max()


def test_an_unguarded_norm_loses_every_number() -> None:
    lost = _run(rounded(_unguarded(_model(LAYER_NORM, scale=1e6))), _feeds()[0])
    assert not np.isfinite(lost).any()


def test_a_norm_whose_squares_overflow_stays_in_fp32_alone() -> None:
    half = to_half(_model(LAYER_NORM, scale=1e3), _feeds(), label="test", limit=LIMIT)
    assert list(_kept(half)) == ["norm"]
    assert "a number inside reaches" in _kept(half)["norm"]
    types = {t.name: t.data_type for t in half.model.graph.initializer}
    assert types == {
        "before": TensorProto.FLOAT16,
        "after": TensorProto.FLOAT16,
        "gain": TensorProto.FLOAT,
        "bias": TensorProto.FLOAT,
    }


@pytest.mark.parametrize("norm", [LAYER_NORM, RMS_NORM])
def test_a_graph_that_does_not_overflow_keeps_nothing(norm: list[Any]) -> None:
    half = to_half(_model(norm, scale=1.0), _feeds(), label="test", limit=LIMIT)
    assert half.kept == ()
    assert half.worst
    assert 1e-5 < half.drift["y"] < LIMIT


def test_a_tiny_epsilon_keeps_an_empty_image_from_becoming_nan() -> None:
    """No calibration feed is empty; 1e-12 is 0 in fp16, and 0 / 0 is no number."""
    model, empty = _model(UNIT_NORM, scale=1.0), {"x": np.zeros((1, WIDTH), np.float32)}
    assert np.isnan(_run(rounded(_unguarded_epsilon(model)), empty)).all()
    half = to_half(model, _feeds(), label="test", limit=LIMIT)
    kept = _kept(half)
    assert "epsilon reaches only 1e-12" in kept["epsilon"]
    assert "first" not in kept
    assert not _run(rounded(half.model), empty).any()
    stored = next(t for t in half.model.graph.initializer if t.name == "epsilon")
    assert numpy_helper.to_array(stored) == np.float32(1e-12)


def test_what_only_an_empty_image_makes_large_stays_in_fp32() -> None:
    root = next(index for index, node in enumerate(UNIT_NORM) if node.name == "root") + 1
    inverse = helper.make_node("Reciprocal", ["root"], ["inverse"], name="inverse")
    product = helper.make_node("Mul", ["h", "inverse"], ["n"], name="product")
    half = to_half(_model([*UNIT_NORM[:root], inverse, product], scale=1.0), _feeds(), label="test", limit=LIMIT)
    assert _kept(half)["inverse"].startswith("inverse reaches 1e+06")


def _unguarded_epsilon(model: onnx.ModelProto) -> onnx.ModelProto:
    """The converter alone writes fp16's smallest number, 6e-8; a plain cast, as other tools do, gives 0."""
    half = _unguarded(model)
    for tensor in half.graph.initializer:
        if tensor.name == "epsilon":
            tensor.CopyFrom(numpy_helper.from_array(np.float16(1e-12), "epsilon"))
    return half


def test_inputs_and_outputs_stay_as_they_were_and_the_bytes_are_the_same_each_time() -> None:
    model = _model(RMS_NORM, scale=1e3)
    before = model.SerializeToString(deterministic=True)
    first, second = (to_half(model, _feeds(), label="test", limit=LIMIT).model for _ in range(2))
    assert model.SerializeToString(deterministic=True) == before
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)
    onnx.checker.check_model(first, full_check=True)
    assert [i.SerializeToString() for i in first.graph.input] == [i.SerializeToString() for i in model.graph.input]
    assert [o.SerializeToString() for o in first.graph.output] == [o.SerializeToString() for o in model.graph.output]


def test_a_drifting_layer_stays_in_fp32_until_the_limit_holds() -> None:
    """1000 is added and taken away again, which leaves half a unit of doubt."""
    model = _model(CANCELLATION, scale=1.0)
    loose = to_half(model, _feeds(), label="test", limit=None)
    assert loose.kept == ()
    assert loose.worst == "away (Sub)"
    assert loose.drift["y"] > 2 * LIMIT
    tight = to_half(model, _feeds(), label="test", limit=LIMIT)
    assert list(_kept(tight)) == ["add", "away"]
    assert all("the relative error grows" in layer.reason for layer in tight.kept)
    assert tight.drift["y"] < LIMIT


def test_a_graph_that_cannot_be_mended_names_its_layer() -> None:
    with pytest.raises(ParityError, match=r"test\.y: in fp16 it drifts by .* the layer (first|last) \(MatMul\)"):
        to_half(_model(LAYER_NORM, scale=1.0), _feeds(), label="test", limit=1e-9)


def test_one_layer_in_fp32_hands_its_number_to_the_next() -> None:
    """The converter writes fp16 between two fp32 layers: what overflowed inside one would overflow there."""
    half = to_half(_model(RMS_NORM, scale=1e3), _feeds(), label="test", limit=LIMIT).model
    makers = {name: node for node in half.graph.node for name in node.output}
    readers = {node.name: [makers[name].name for name in node.input if name in makers] for node in half.graph.node}
    assert readers["mean"] == ["square"]
    assert readers["root"] == ["mean"]


def test_magnitude_leaves_out_what_is_no_number() -> None:
    assert magnitude(np.array([1.0, -3.0, -np.inf, np.nan])) == 3.0
    assert magnitude(np.empty((0, 2))) == 0.0


def test_fp16_bundle_is_half_as_large_and_reports(
    fp32_bundle: Path,
    tiny_checkpoint: Path,
    tmp_path: Path,
    traced: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime_genai")
    from trrg_sdk import Reporter
    from trrg_sdk.engine import Engine

    out = tmp_path / "fp16"
    lean = runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with monkeypatch.context() as patched:
        levels = _watch_levels(patched)
        assert main([str(tiny_checkpoint), "--out", str(out), "--fp16"]) == 0
    names = {f"{name}.onnx" for name in ("vision", "clue_encoder", "fusion", "decoder", "watched_decoder")}
    assert set(levels) == {(name, lean) for name in names}, "else all weights are there in fp16 and in fp32"
    manifest = Bundle.load(out).manifest
    assert {graph.precision for graph in manifest.graphs.values()} == {"fp16"}
    decoder = manifest.graphs["decoder"]
    assert {tensor.dtype for tensor in decoder.inputs if tensor.name != "attention_mask"} == {"float16"}
    assert {tensor.dtype for tensor in decoder.outputs if tensor.name == "logits"} == {"float32"}
    figures: Any = manifest.parity["fp16"]
    assert figures["label_agreement"] >= 0.99
    assert figures["clue_flips"] <= 0.01 * figures["clue_pairs"]
    assert figures["fp16_drift"].keys() == figures["fp32_layers"].keys() == {"vision", "clue_encoder", "fusion"}
    assert any("Clip" in line for line in figures["fp32_layers"]["vision"]), "the clamp of the unit norm: 1e-12"
    for name in ("vision", "clue_encoder", "fusion"):
        kinds = {tensor.dtype for tensor in (*manifest.graphs[name].inputs, *manifest.graphs[name].outputs)}
        assert kinds <= {"float32", "int64"}, name
        small, large = ((folder / "graphs" / f"{name}.onnx").stat().st_size for folder in (out, fp32_bundle))
        assert small < 0.75 * large, name
    # Random weights write no sentence; everything before the text is theirs.
    monkeypatch.setattr(Engine, "text", lambda self, ids: "The lungs are clear.")
    phantom = Path(__file__).parents[2] / "examples" / "data" / "phantom_pa.dcm"
    half, full = (
        Reporter(folder, device="cpu", accept=["unlike_training"]).report(phantom) for folder in (out, fp32_bundle)
    )
    assert half.text == "The lungs are clear."
    assert half.generation.tokens > 0
    for score in full.clues.scores:
        assert half.clues[score.name].probability == pytest.approx(score.probability, abs=0.01)


def _watch_levels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Note name and level of optimization of every file that ONNX Runtime opens."""
    opened: list[tuple[str, Any]] = []
    real = runtime.InferenceSession

    def watched(model: str | bytes, options: Any, **named: Any) -> Any:
        if isinstance(model, str):
            opened.append((Path(model).name, options.graph_optimization_level))
        return real(model, options, **named)

    monkeypatch.setattr(runtime, "InferenceSession", watched)
    return opened


def test_a_decoder_that_overflows_names_its_layer(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """ONNX Runtime's CPU gives finite logits for it."""
    pytest.importorskip("onnxruntime_genai")
    from trrg_export.decoder import decoder_spec, write_decoder
    from trrg_export.precision.half_decoder import overflow_failures
    from trrg_export.precision.int4 import Int4
    from trrg_export.pytorch_run import run_pytorch
    from trrg_train.models.checkpoint import load_checkpoint

    loaded = load_checkpoint(tiny_checkpoint)
    llm = loaded.trrg().llm
    spec = decoder_spec(llm, prompt=8, max_new_tokens=4)
    sequences = [np.random.default_rng(0).normal(size=(8, spec.hidden_size))]
    path = tmp_path / "decoder.onnx"
    reference = run_pytorch(loaded, loaded.parity_pixels()[:1])
    write_decoder(loaded, path, precision="fp16", int4=Int4(), reference=reference)
    assert overflow_failures(path, sequences, spec) == []
    decoder = onnx.load(str(path))
    weight = next(t for t in decoder.graph.initializer if "layers.1" in t.name and "down_proj" in t.name)
    large = np.full_like(numpy_helper.to_array(weight), 3e4)
    weight.CopyFrom(numpy_helper.from_array(large, weight.name))
    onnx.save_model(decoder, str(path))
    (failure,) = overflow_failures(path, sequences, spec)
    assert "layers.1/mlp/down_proj" in failure
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "the graph that was watched is left"


def test_a_value_that_differs_from_pytorch_names_the_layer(
    tiny_checkpoint: Path, tmp_path: Path, traced: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime_genai")
    from trrg_export import build

    monkeypatch.setattr(build, "to_half", lambda *graph, **options: to_half(*graph, **{**options, "limit": None}))
    limits = dataclasses.replace(LIMITS["fp16"], value=1e-6)
    with pytest.raises(ParityError, match=r"fusion\.prompt_embeds: differs by .* grows most in the layer node_\w+ \("):
        build.export_bundle(tiny_checkpoint, tmp_path / "fp16", build.ExportOptions("fp16", limits=limits))


def test_a_bundle_that_cannot_be_mended_gives_exit_6_and_the_layers_of_all_graphs(
    tiny_checkpoint: Path, tmp_path: Path, traced: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("onnxruntime_genai")
    out = tmp_path / "fp16"
    assert main([str(tiny_checkpoint), "--out", str(out), "--fp16", "--value-limit", "1e-12"]) == 6
    error = capsys.readouterr().err
    assert all(f"{name}." in error for name in ("vision", "clue_encoder", "fusion"))
    assert error.count("the error grows most in the layer node_") == 3
    assert not out.exists()
