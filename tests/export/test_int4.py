"""Four-bit decoders: every algorithm, the blocks that were asked for, smaller than eight bits, and what is refused."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")

from onnx import helper, numpy_helper

from trrg_export import decoder
from trrg_export.build import ExportOptions
from trrg_export.cli import main
from trrg_export.decoder import write_decoder
from trrg_export.precision.gptq import Calibration, embedded_reports
from trrg_export.precision.int4 import ALGORITHMS, Int4, quantize_decoder
from trrg_export.precision.int8 import quantize_weights
from trrg_export.pytorch_run import run_pytorch
from trrg_export.reference import Reference
from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import UsageError
from trrg_train.models.checkpoint import Checkpoint, load_checkpoint

pytestmark = pytest.mark.torch

Traced = Callable[[Callable[[str, Any], None]], None]
INPUTS, OUTPUTS, POSITIONS = 96, 40, 400


@pytest.fixture(scope="module")
def told(tiny_checkpoint: Path) -> tuple[Checkpoint, Reference]:
    """The tiny checkpoint and what it writes."""
    loaded = load_checkpoint(tiny_checkpoint)
    return loaded, run_pytorch(loaded, loaded.parity_pixels())


def _needed(algorithm: str) -> None:
    if algorithm == "gptq":
        pytest.importorskip("neural_compressor", reason="GPTQ needs neural-compressor-pt")


def _products(model: onnx.ModelProto) -> list[dict[str, int]]:
    quantized = [node for node in model.graph.node if node.op_type == "MatMulNBits"]
    assert not [node.name for node in model.graph.node if node.op_type == "MatMul"], "a product was left in fp32"
    return [{a.name: a.i for a in node.attribute} for node in quantized]


@pytest.mark.parametrize("block_size", [16, 32])
def test_a_bundle_in_four_bits(
    fp32_bundle: Path, told: tuple[Checkpoint, Reference], tmp_path: Path, traced: Traced, block_size: int
) -> None:
    checkpoint, reference = told
    out, eight = tmp_path / "bundle", tmp_path / "decoder.onnx"
    assert main([str(checkpoint.folder), "--out", str(out), "--int4", "--block-size", str(block_size)]) == 0
    write_decoder(checkpoint, eight, precision="int8", int4=Int4(), reference=reference)
    manifest = Bundle.load(out).manifest
    assert {graph.precision for graph in manifest.graphs.values()} == {"int4"}
    table = manifest.parity["int4"]
    assert table["precision"] == "int4"
    assert table["studies"] == 6
    assert float(str(table["label_agreement"])) >= 0.99
    made = _products(onnx.load(out / "graphs" / "decoder.onnx"))
    assert len(made) == 2 * 5 + 1, "two layers of five products, and the head"
    assert {(one["bits"], one["block_size"], one["accuracy_level"]) for one in made} == {(4, block_size, 4)}
    assert (out / "graphs" / "decoder.onnx").stat().st_size < 0.8 * eight.stat().st_size
    for name in ("vision", "clue_encoder", "fusion"):
        encoder = quantize_weights(onnx.load(fp32_bundle / "graphs" / f"{name}.onnx"))
        assert onnx.load(out / "graphs" / f"{name}.onnx") == encoder, name


@pytest.mark.parametrize("precision", ["int4", "int4-fp16"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_is_near_and_no_two_are_the_same(
    fp32_bundle: Path,
    told: tuple[Checkpoint, Reference],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    algorithm: str,
    precision: str,
) -> None:
    _needed(algorithm)
    caplog.set_level(logging.INFO)
    checkpoint, reference = told
    files = {}
    for name in {algorithm, "rtn"}:
        path = tmp_path / name / "decoder.onnx"
        path.parent.mkdir()
        write_decoder(checkpoint, path, precision=precision, int4=Int4(16, name), reference=reference)
        assert [file.name for file in path.parent.iterdir()] == ["decoder.onnx"], "nothing else is left"
        files[name] = path.read_bytes()
    model = onnx.load_from_string(files[algorithm])
    (logits,) = (output for output in model.graph.output if output.name == "logits")
    assert logits.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    made = _products(model)
    level = 4 if precision == "int4" else 0  # a GPU reads what comes in as it is
    assert {(one["bits"], one["block_size"], one.get("accuracy_level", 0)) for one in made} == {(4, 16, level)}
    assert algorithm == "rtn" or files[algorithm] != files["rtn"]
    exact = _logits((fp32_bundle / "graphs" / "decoder.onnx").read_bytes(), reference)
    away = np.abs(_logits(files[algorithm], reference) - exact).max() / np.abs(exact).max()
    assert 1e-4 < away < 0.25
    assert {record.name for record in caplog.records} <= {"trrg_export.decoder"}  # ours; the libraries are quiet
    assert capfd.readouterr() == ("", "")


def _logits(model: bytes, reference: Reference) -> Any:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    half = "tensor(float16)" in {value.type for value in session.get_inputs()}
    feeds = Calibration(list(reference.prompts), (1, 2, 0, 32)).feeds(names, np.dtype("float16" if half else "float32"))
    return np.stack([session.run(["logits"], feed)[0][0, -1] for feed in feeds])


@pytest.fixture
def product(tmp_path: Path) -> tuple[Path, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """One product in a file as the builder writes it, its weight, and inputs of which few directions matter."""
    random = np.random.default_rng(0)
    weight = random.normal(size=(INPUTS, OUTPUTS)).astype(np.float32)
    mixed = random.normal(size=(POSITIONS, 6)) @ random.normal(size=(6, INPUTS))
    reads = (mixed + 0.1 * random.normal(size=(POSITIONS, INPUTS))).astype(np.float32)
    nodes = [
        helper.make_node("Identity", ["inputs_embeds"], ["x"]),
        helper.make_node("MatMul", ["x", "w"], ["logits"], name="product"),
    ]
    axes = ["batch", "sequence"]
    graph = helper.make_graph(
        nodes,
        "decoder",
        [
            helper.make_tensor_value_info("inputs_embeds", onnx.TensorProto.FLOAT, [*axes, INPUTS]),
            helper.make_tensor_value_info("attention_mask", onnx.TensorProto.INT64, axes),
        ],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, [*axes, OUTPUTS])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = tmp_path / "one.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="one.onnx.data", size_threshold=0)
    return path, weight, reads


@pytest.mark.parametrize("block_size", [16, 32, 64])
def test_gptq_spoils_less_of_what_is_read_than_rounding(
    product: tuple[Path, np.ndarray[Any, Any], np.ndarray[Any, Any]], block_size: int
) -> None:
    """On inputs it was not calibrated on; blocks of 64 do not divide the 96 inputs."""
    _needed("gptq")
    path, weight, reads = product
    seen, unseen = reads[: POSITIONS // 2], reads[POSITIONS // 2 :]
    errors = {}
    for algorithm in ("rtn", "gptq"):
        calibration = Calibration([seen[:120], seen[120:]], (1, 1, 0, 1))
        model = quantize_decoder(path, Int4(block_size, algorithm), calibration)
        errors[algorithm] = float(np.square(_run(model, unseen) - unseen @ weight).mean())
    assert errors["gptq"] < 0.5 * errors["rtn"]
    assert errors["rtn"] > 0


def _run(model: Any, reads: np.ndarray[Any, Any]) -> Any:
    """In fp32 arithmetic, so that only the weights differ."""
    import onnxruntime

    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    feed = {"inputs_embeds": reads[None], "attention_mask": np.ones((1, len(reads)), np.int64)}
    return session.run(None, feed)[0][0]


def test_calibration_reads_each_prompt_with_its_own_report(told: tuple[Checkpoint, Reference]) -> None:
    checkpoint, reference = told
    table = checkpoint.trrg().llm.get_input_embeddings().weight.detach().numpy()
    read = list(embedded_reports(reference.prompts, reference.ids, table))
    assert len(read) == len(reference.ids) == 6
    for sequence, prompt, ids in zip(read, reference.prompts, reference.ids, strict=True):
        assert np.array_equal(sequence[: len(prompt)], prompt)
        assert np.array_equal(sequence[len(prompt) :], table[list(ids)])
        assert sequence.dtype == np.float32


def test_weights_above_the_limit_stay_outside(
    fp32_bundle: Path, told: tuple[Checkpoint, Reference], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, reference = told
    monkeypatch.setattr(decoder, "INLINE_LIMIT", 1000)
    path = tmp_path / "decoder.onnx"
    write_decoder(checkpoint, path, precision="fp32", int4=Int4(), reference=reference)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["decoder.onnx", "decoder.onnx.data"]
    inside = fp32_bundle / "graphs" / "decoder.onnx"
    assert path.stat().st_size < 0.2 * inside.stat().st_size
    for ours, theirs in zip(onnx.load(path).graph.initializer, onnx.load(inside).graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(theirs)), ours.name


def test_k_quant_refuses_rows_that_its_library_packs_wrongly(
    told: tuple[Checkpoint, Reference], tmp_path: Path
) -> None:
    checkpoint, reference = told
    with pytest.raises(UsageError, match="even number of blocks in a row, got 96 weights in blocks of 32"):
        write_decoder(
            checkpoint, tmp_path / "decoder.onnx", precision="int4", int4=Int4(32, "k-quant"), reference=reference
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--int4", "--block-size", "48"], "block size: expected one of 16, 32, 64, 128, 256, got 48"),
        (["--int4", "--int4-algorithm", "awq"], "int4 algorithm: expected one of rtn, k-quant, hqq, gptq, got 'awq'"),
        (["--block-size", "32"], "belong to --int4"),
        (["--int8", "--int4-algorithm", "hqq"], "belong to --int4"),
    ],
)
def test_what_makes_no_sense_is_one_line_and_exit_2(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    assert main([str(tiny_checkpoint), "--out", str(tmp_path / "bundle"), *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_gptq_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'trrg-sdk\[gptq\]'"):
        ExportOptions("int4", int4_algorithm="gptq")
