"""A bundle proven on OpenVINO too, and what stands in its way."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime_genai")
openvino = pytest.importorskip("openvino")

from tests.sdk.imitated_bf16 import HAS_BF16, computed_in_fp32
from trrg_export import build, cli
from trrg_export.parity import LIMITS, ParityReport, compare
from trrg_export.precision.static import tightened
from trrg_export.targets import TARGETS
from trrg_export.targets import openvino as target
from trrg_sdk import Reporter
from trrg_sdk.backends import openvino as backend
from trrg_sdk.bundle import Bundle
from trrg_sdk.manifest import Manifest

pytestmark = pytest.mark.torch

Traced = Callable[[Callable[[str, Any], None]], None]


@pytest.fixture
def export(tiny_checkpoint: Path, tmp_path: Path, traced: Traced) -> Callable[..., int]:
    def run(*options: str) -> int:
        return cli.main([str(tiny_checkpoint), "--out", str(tmp_path / "bundle"), *options])

    return run


def test_the_command_knows_every_target() -> None:
    assert TARGETS.keys() == set(cli._TARGETS)
    assert all(name == module.NAME for name, module in TARGETS.items())


def test_a_bundle_says_that_openvino_was_tried(export: Callable[..., int], tmp_path: Path) -> None:
    assert export("--target", "openvino") == 0
    manifest = Bundle.load(tmp_path / "bundle").manifest
    assert manifest.targets.keys() == {"ort-cpu", "openvino-cpu"}
    target = manifest.targets["openvino-cpu"]
    assert (target.runtime, target.graphs, target.engines) == ("openvino", {}, ())
    assert target.version.startswith("20")
    assert manifest.provenance.created_by["openvino"] == openvino.__version__.split("-")[0]
    assert '"name": "openvino"' in (tmp_path / "bundle" / "sbom.cdx.json").read_text()
    table = manifest.parity["fp32 on openvino-cpu"]
    assert table["studies"] == table["greedy_identical"] == 6
    assert table["clue_flips"] == 0
    assert isinstance(table["graphs"], dict)
    assert table["graphs"].keys() == manifest.graphs.keys()
    assert "Precision fp32 on openvino-cpu" in (tmp_path / "bundle" / "model_card.md").read_text()


def test_int8_weights_are_proven_in_fp32_arithmetic(export: Callable[..., int], tmp_path: Path) -> None:
    """Int8 arithmetic flips clues of random weights, so that only the weights of this bundle are in int8."""
    assert export("--int8", "--target", "openvino") == 0
    manifest = Bundle.load(tmp_path / "bundle").manifest
    assert manifest.targets["openvino-cpu"].graphs == {}
    for ours, theirs in _figures(manifest):
        assert ours == pytest.approx(theirs, rel=0.02, abs=1e-6), "activations were quantized as well"


def test_int8_arithmetic_is_openvinos_too(tiny_checkpoint: Path, tmp_path: Path, traced: Traced) -> None:
    limits = dataclasses.replace(LIMITS["int8"], clue_flips=1.0, label_agreement=0.0)
    options = build.ExportOptions("int8", targets=("ort", "openvino"), limits=limits)
    manifest = build.export_bundle(tiny_checkpoint, tmp_path / "bundle", options)
    for ours, theirs in _figures(manifest):
        assert ours < 2 * theirs + 1e-3


def _figures(manifest: Manifest) -> Iterator[tuple[float, float]]:
    """Largest differences from PyTorch of three outputs, on OpenVINO and on ONNX Runtime."""
    parity: Any = manifest.parity
    for name, output in (("vision", "patches"), ("clue_encoder", "clue_joint"), ("fusion", "prompt_embeds")):
        ours, theirs = (parity[key]["graphs"][name][output]["max_abs"] for key in ("int8 on openvino-cpu", "int8"))
        yield ours, theirs


def test_what_only_openvino_does_differently_gives_exit_6_and_no_bundle(
    export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = backend.OpenVinoGraph.run

    def wrong(graph: Any, inputs: Any) -> dict[str, np.ndarray]:
        return {name: -value for name, value in run(graph, inputs).items()}

    monkeypatch.setattr(backend.OpenVinoGraph, "run", wrong)
    assert export("--target", "openvino") == 6
    error = capsys.readouterr().err
    for said in ("on openvino-cpu: vision.patches: differs", "fusion.clue_heat", "greedy tokens differ"):
        assert said in error
    assert not list(tmp_path.iterdir())


def test_a_graph_that_openvino_cannot_read_gives_exit_6(
    export: Callable[..., int], traced: Traced, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def exotic(graph: str, model: Any) -> None:
        """An operator that gives back what it takes, and that ONNX Runtime alone has."""
        if graph == "vision":
            for node in model.graph.node:
                for index, name in enumerate(node.output):
                    if name == "patches":
                        node.output[index] = "before"
            node = onnx.helper.make_node("SampleOp", ["before"], ["patches"], domain="com.microsoft")
            model.graph.node.append(node)
            model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))

    traced(exotic)
    assert export("--target", "openvino") == 6
    assert "on openvino-cpu: vision.onnx: expected an ONNX graph that OpenVINO" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_without_openvino_it_is_one_sentence_and_exit_5(
    export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert export("--target", "openvino") == 5
    error = capsys.readouterr().err
    assert "target openvino: " in error
    assert "pip install 'trrg-sdk[cpu,openvino]'" in error
    assert len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_bf16_needs_openvino(export: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert export("--bf16") == 2
    error = capsys.readouterr().err
    assert "--target openvino" in error
    assert len(error.splitlines()) == 1


@pytest.mark.skipif(HAS_BF16, reason="this processor has bf16")
def test_bf16_without_a_processor_for_it_is_refused(
    export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("--bf16", "--target", "openvino") == 5
    assert "target openvino: bf16: expected a processor with bf16 arithmetic" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_eight_bits_of_weights_without_vnni_are_refused_before_the_work(
    export: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "instructions", lambda: frozenset({"avx2"}))
    monkeypatch.setattr(build, "from_pytorch", None)  # not called
    assert export("--int8-vnni", "--target", "openvino") == 5
    assert "int8-vnni: expected a processor with VNNI (Linux: avx512_vnni or avx_vnni)" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bf16_is_fp32_files_and_a_target_that_says_bf16(
    export: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed_in_fp32(monkeypatch)
    assert export("--bf16", "--target", "openvino") == 0
    manifest = Bundle.load(tmp_path / "bundle").manifest
    assert {graph.precision for graph in manifest.graphs.values()} == {"fp32"}
    assert manifest.parity.keys() == {"fp32", "bf16 on openvino-cpu"}
    own = manifest.targets["openvino-cpu"].graphs
    assert own.keys() == {"vision", "clue_encoder", "fusion"}
    assert {graph.precision for graph in own.values()} == {"bf16"}
    assert [own[name].file for name in own] == [manifest.graphs[name].file for name in own]
    reporter = Reporter(tmp_path / "bundle", device="openvino")
    expected = "vision bf16, clue_encoder bf16, fusion bf16, decoder fp32"
    assert reporter._provenance().precision == expected
    assert Reporter(tmp_path / "bundle", device="cpu")._provenance().precision == "fp32"


@pytest.fixture
def tolerant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Int8 arithmetic flips clues of random weights, which the limits of a trained model would refuse."""
    loose = dataclasses.replace(LIMITS["int8"], clue_flips=1.0, label_agreement=0.0)
    for name in ("int8", "int8-bf16", "int8-vnni"):
        monkeypatch.setitem(build.LIMITS, name, loose)
    computed_in_fp32(monkeypatch)


@pytest.mark.parametrize("precision", ["int8-bf16", "int8-vnni"])
def test_int8_for_vnni_is_another_vision_graph(
    export: Callable[..., int], tmp_path: Path, tolerant: None, precision: str
) -> None:
    """Its products are in int8 with all eight bits of their weights; ONNX Runtime's graph has seven."""
    assert export(f"--{precision}", "--target", "openvino") == 0
    bundle = Bundle.load(tmp_path / "bundle")
    manifest = bundle.manifest
    assert {graph.precision for graph in manifest.graphs.values()} == {"int8"}
    own = manifest.targets["openvino-cpu"].graphs
    assert {name: (graph.precision, graph.file) for name, graph in own.items()} == {
        "vision": (precision, "graphs/openvino/vision.onnx")
    }
    files = (manifest.graphs["vision"].file, own["vision"].file)
    seven, eight = (_int8_weights(bundle.folder / file) for file in files)
    assert seven.keys() & eight.keys(), "which ones drift depends on the form"
    assert max(np.abs(weight.astype(int)).max() for weight in seven.values()) == 64
    assert all(np.abs(weight.astype(int)).max() == 127 for weight in eight.values())
    assert manifest.parity.keys() == {"int8", f"{precision} on openvino-cpu"}
    assert manifest.parity[f"{precision} on openvino-cpu"]["int8_drift"].keys() == {"vision"}
    reporter = Reporter(bundle, device="openvino")
    assert reporter._provenance().precision == f"vision {precision}, clue_encoder int8, fusion int8, decoder int8"


@pytest.mark.parametrize(
    ("agreements", "tried"),
    [((1.0,), 1), ((0.9, 0.99, 1.0), 3), ((0.9,) * 7, 7)],
    ids=["at once", "later", "never"],
)
def test_int8_for_vnni_is_tightened_until_no_label_flips(
    export: Callable[..., int],
    tmp_path: Path,
    tolerant: None,
    monkeypatch: pytest.MonkeyPatch,
    agreements: tuple[float, ...],
    tried: int,
) -> None:
    """What does not help within the limits is refused by the limit on labels alone, which is loose here."""
    outcomes, made = iter(agreements), list[Any]()

    def compared(*args: Any, **options: Any) -> ParityReport:
        report = compare(*args, **options)
        return dataclasses.replace(report, table={**report.table, "label_agreement": next(outcomes)})

    def lowered(*graph: Any, limits: tuple[float, ...], **options: Any) -> Iterator[Any]:
        """Limits that this graph of random weights can hold, so that there is a next one."""
        assert limits == target.DRIFT_LIMITS
        for found in tightened(*graph, limits=[1.0] * len(limits), **options):
            made.append(found)
            yield found

    monkeypatch.setattr(target, "compare", compared)
    monkeypatch.setattr(target, "tightened", lowered)
    assert export("--int8-bf16", "--target", "openvino") == 0
    assert len(made) == tried
    table: Any = Bundle.load(tmp_path / "bundle").manifest.parity["int8-bf16 on openvino-cpu"]
    assert table["label_agreement"] == agreements[-1]


def test_a_drift_limit_that_was_asked_for_is_the_only_one(
    export: Callable[..., int], tolerant: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []

    def lowered(*graph: Any, limits: tuple[float, ...], **options: Any) -> Iterator[Any]:
        asked.extend(limits)
        return tightened(*graph, limits=limits, **options)

    def compared(*args: Any, **options: Any) -> ParityReport:
        report = compare(*args, **options)
        return dataclasses.replace(report, table={**report.table, "label_agreement": 0.9})

    monkeypatch.setattr(target, "compare", compared)
    monkeypatch.setattr(target, "tightened", lowered)
    assert export("--int8-bf16", "--target", "openvino", "--value-limit", "0.5") == 0
    assert asked == [0.5]


def _int8_weights(path: Path) -> dict[str, np.ndarray]:
    """Weights of products that are computed in integers."""
    model = onnx.load(str(path))
    stored = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    read = {node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {name: value for name, value in stored.items() if name in read and value.dtype == np.int8}


@pytest.mark.skipif(not HAS_BF16, reason="this processor has no bf16")
def test_int8_with_bf16_is_computed_so(export: Callable[..., int], tmp_path: Path, tolerant: None) -> None:
    assert export("--int8-bf16", "--target", "openvino") == 0
    bundle = Bundle.load(tmp_path / "bundle")
    spec = bundle.manifest.targets["openvino-cpu"].graphs["vision"]
    graph = backend.open_backend(threads=1).graph(bundle.folder / spec.file, spec=spec)
    runtime = graph._compiled.get_runtime_model()
    kinds = {str(node.get_rt_info()["runtimePrecision"].value) for node in runtime.get_ops() if node.inputs()}
    assert "bf16" in kinds, "what is not in int8 is in bf16"
    assert kinds & {"i8", "u8", "I8", "U8"}, "products are in int8"


def test_int8_with_bf16_needs_openvino(export: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert export("--int8-bf16") == 2
    assert "--int8-bf16 --target openvino" in capsys.readouterr().err
    assert export("--int8-bf16", "--target", "openvino", "--target", "tensorrt-rtx") == 2
    assert "got int8-bf16" in capsys.readouterr().err
