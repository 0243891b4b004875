"""The decoder in eight-bit arithmetic: what its products write, and that no position changes another."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from trrg_export.decoder import write_decoder
from trrg_export.precision.int4 import Int4
from trrg_export.precision.int8_decoder import quantize_decoder
from trrg_export.pytorch_run import run_pytorch
from trrg_sdk.backends import onnxruntime
from trrg_sdk.bundle import Bundle
from trrg_train.models.checkpoint import load_checkpoint

Array = NDArray[np.float32]
WIDTH, BROAD = 96, 160


@pytest.fixture
def weights() -> tuple[Array, Array]:
    rng = np.random.default_rng(3)
    first, second = (rng.standard_normal((WIDTH, BROAD)).astype(np.float32) for _ in range(2))
    return first, second


@pytest.fixture
def session(weights: tuple[Array, Array], tmp_path: Path) -> Any:
    """Two products that read the same, in int8."""
    import onnxruntime as ort

    nodes = [helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"], name=f"product{i}") for i in range(2)]
    infos = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [1, "rows", BROAD]) for i in range(2)]
    read = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "rows", WIDTH])
    held = [numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    model = helper.make_model(
        helper.make_graph(nodes, "two", [read], infos, held), opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    )
    onnx.save_model(model, str(tmp_path / "two.onnx"), save_as_external_data=True, location="two.data")
    made = quantize_decoder(tmp_path / "two.onnx")
    kinds = Counter(node.op_type for node in made.graph.node)
    assert kinds == {"Abs": 1, "ReduceMax": 1, "Div": 1, "QuantizeLinear": 1, "MatMulIntegerToFloat": 2, "Mul": 2}
    return ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])


def _positions(count: int) -> Array:
    rows = np.random.default_rng(5).standard_normal((1, count, WIDTH)).astype(np.float32)
    return rows * np.geomspace(1e-3, 1e3, count, dtype=np.float32)[:, None]


def test_products_are_near_those_of_fp32(session: Any, weights: tuple[Array, Array]) -> None:
    read = _positions(40)
    for got, weight in zip(session.run(None, {"x": read}), weights, strict=True):
        exact = read @ weight
        away = np.linalg.norm(got - exact, axis=-1) / np.linalg.norm(exact, axis=-1)
        assert 1e-4 < away.max() < 0.03, "a small position is as near as a large one"


def test_a_position_is_the_same_in_any_company(session: Any) -> None:
    read = _positions(40)
    whole = session.run(None, {"x": read})
    for width in (1, 2, 3, 5, 8, 16, 17):
        parts = [session.run(None, {"x": read[:, start : start + width]}) for start in range(0, 40, width)]
        for number, wanted in enumerate(whole):
            assert np.array_equal(np.concatenate([part[number] for part in parts], axis=1), wanted), width


def test_a_position_of_zeros_stays_one(session: Any) -> None:
    read = _positions(3)
    beside = session.run(None, {"x": read})
    read[0, 1] = 0
    for got, before in zip(session.run(None, {"x": read}), beside, strict=True):
        assert not got[0, 1].any()
        assert np.array_equal(got[0, [0, 2]], before[0, [0, 2]])


def test_the_decoder_of_a_bundle(tiny_checkpoint: Path, fp32_bundle: Path, tmp_path: Path) -> None:
    checkpoint, path = load_checkpoint(tiny_checkpoint), tmp_path / "decoder.onnx"
    reference = run_pytorch(checkpoint, checkpoint.parity_pixels())
    write_decoder(checkpoint, path, precision="int8", int4=Int4(), reference=reference)
    graph = onnx.load(path).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert not kinds["MatMul"], "a product was left in fp32"
    assert kinds["MatMulIntegerToFloat"] == 2 * 5 + 1, "two layers of five products, and the head"
    assert kinds["QuantizeLinear"] == 2 * 4 + 1, "gate and up read the same"
    levels = [numpy_helper.to_array(one) for one in graph.initializer if one.name.endswith(".int8")]
    assert {int(np.abs(one).max(axis=0).min()) for one in levels} == {127}, "a bit of some channel is not used"
    spec = Bundle.load(fp32_bundle).manifest.decoder
    backend = onnxruntime.open_backend(device="cpu", threads=1)
    rows = []
    for file in (path, fp32_bundle / "graphs" / "decoder.onnx"):
        decoder = backend.decoder(file, spec)
        rows.append(np.stack([decoder.prefill(prompt)[0].copy() for prompt in reference.prompts]))
    assert 1e-4 < np.abs(rows[0] - rows[1]).max() / np.abs(rows[1]).max() < 0.1


def test_sums_are_exact_on_a_processor_without_vnni(tiny_checkpoint: Path, fp32_bundle: Path, tmp_path: Path) -> None:
    """Emulated: a Haswell adds two products in 16 bits, which is too little for weights of eight bits."""
    if not (emulator := shutil.which("qemu-x86_64")):
        pytest.skip("needs qemu-x86_64 (Debian package qemu-user)")
    checkpoint, path = load_checkpoint(tiny_checkpoint), tmp_path / "decoder.onnx"
    reference = run_pytorch(checkpoint, checkpoint.parity_pixels())
    write_decoder(checkpoint, path, precision="int8", int4=Int4(), reference=reference)
    np.save(tmp_path / "prompt.npy", reference.prompts[0])
    (tmp_path / "spec.json").write_text(json.dumps(dataclasses.asdict(Bundle.load(fp32_bundle).manifest.decoder)))
    read = [sys.executable, str(Path(__file__).with_name("read_prompt.py")), str(tmp_path)]
    rows = {}
    emulated = [emulator, "-cpu", "Haswell", *read]
    here = Path("/proc/cpuinfo").read_text()
    for processor, known, command in ("this", here, read), ("older", "flags : avx2\n", emulated):
        (tmp_path / "cpuinfo").write_text(known)
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        rows[processor] = dict(np.load(tmp_path / "rows.npz"))
    size = np.abs(rows["this"]["runtime"]).max()
    assert np.abs(rows["older"]["runtime"] - rows["this"]["runtime"]).max() < 1e-3 * size
    assert np.abs(rows["older"]["plain"] - rows["this"]["runtime"]).max() > 0.02 * size, "nothing was cut off"
