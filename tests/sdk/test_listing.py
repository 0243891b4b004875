"""``trrg inspect``: tables to read, and everything for programs."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.cli import main
from trrg_sdk.manifest import EngineSpec, Manifest, TargetSpec
from trrg_sdk.strict_json import plain_text
from trrg_sdk.summary import Component, Summary, read_summary

TINY = Path(__file__).parent / "tiny_bundle"
FIGURES = {
    "phantom": {
        "studies": 547,
        "patients": 444,
        "clue_auc": {"macro": 0.99071, "each": {"Edema": {"auc": 0.43219}}},
        "report_labels": {
            "macro_f1": 0.87312,
            "macro_f1_images_shuffled": 0.11334,
            "macro_f1_constant_normal_report": 0.0,
        },
        "laterality": {"same": 0.90062, "other": 0.04221, "none": None},
    },
    "measured_on": "the bundle",
}
PARITY = {
    "fp16": {
        "precision": "fp16",
        "studies": 64,
        "label_agreement": 0.998,
        "graphs": {"vision": {"patches": {"relative": 0.0021}, "global_joint": {"relative": 0.0057}}},
    }
}


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Path]:
    """A copy of the tiny bundle with changes of its manifest."""

    def make(*, summary: Summary | None = None, engine: bytes = b"", **changes: Any) -> Path:
        folder = tmp_path / "bundle"
        shutil.copytree(TINY, folder)
        if summary:
            (folder / "graphs" / "summary.json").write_text(plain_text(summary))
        if engine:
            (folder / "engines").mkdir()
            (folder / "engines" / "vision.trt").write_bytes(engine)
        write_manifest(folder, dataclasses.replace(Bundle.load(TINY).manifest, **changes))
        return folder

    return make


def shown(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main(["inspect", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def test_every_part_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, TINY)
    bundle = Bundle.load(TINY)
    for expected in (bundle.manifest_sha256, bundle.manifest.intended_use, "greedy, at most", "random weights"):
        assert expected in text
    for name, graph in bundle.manifest.graphs.items():
        assert re.search(rf"^  {name} +{graph.precision} +\d+\.\d MB +{graph.file}$", text, re.M), name
    for clue in bundle.manifest.clues:
        assert re.search(rf"^  {clue.name} +0\.500 +{clue.positive} / {clue.negative}$", text, re.M), clue.name
    assert re.search(r"^  ort-cpu +onnxruntime 1.32 +the graphs above$", text, re.M)
    assert re.search(r"^signature +none$", text, re.M)
    assert re.search(r"^reproducible +every file$", text, re.M)
    assert "the bundle holds no figures" in text


def test_figures_stand_beside_their_floors(made: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, made(evaluation=FIGURES, parity=PARITY))
    head, row = (line.split() for line in text.split("\nevaluation\n")[1].splitlines()[:2])
    assert " ".join(head).startswith("studies patients clue AUC report F1 shuffled constant side right")
    assert row == ["phantom", "547", "444", "0.991", "0.873", "0.113", "0.000", "0.901", "0.042", "-"]
    assert "measured on: the bundle" in text
    assert "0.432" not in text, "single observations are for --json"
    assert "fp16: studies 64, label agreement 0.998" in text
    assert "largest relative difference: vision 0.0057" in text


def test_engines_say_which_gpus_they_are_for(made: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    engine = EngineSpec("vision", "engines/vision.trt", "8.9", {"pixels": ((1,), (1,), (4,))})
    targets = {"tensorrt-rtx": TargetSpec("tensorrt_rtx", "1.7.1", {}, (engine,))}
    text = shown(capsys, made(engine=bytes(1_200_000), targets=targets))
    assert re.search(r"tensorrt-rtx +tensorrt_rtx 1\.7\.1$", text, re.M)
    assert re.search(r"^reproducible +every file but engines/vision\.trt$", text, re.M)
    assert re.search(r"engine vision +compute capability 8\.9, 1\.2 MB$", text, re.M)


def test_a_target_with_its_own_graph_names_it(made: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    own = dataclasses.replace(Bundle.load(TINY).manifest.graphs["vision"], precision="bf16")
    text = shown(capsys, made(targets={"openvino": TargetSpec("openvino", "2026.4", {"vision": own}, ())}))
    assert re.search(r"graph vision +bf16, 0\.0 MB, graphs/vision\.onnx$", text, re.M)
    assert "the graphs above" not in text


def test_a_signature_is_mentioned_and_not_believed(
    made: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made()
    (folder / "signature.ed25519").write_bytes(bytes(64))
    assert re.search(r"^signature +signature\.ed25519, not checked here", shown(capsys, folder), re.M)


def test_json_is_the_manifest(capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, TINY, "--json")
    assert json.loads(text) == json.loads((TINY / "manifest.json").read_text())


def test_graph_shows_what_the_summary_holds(made: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    parts = {
        "vision": Component(1_234_567, 4_900_000, 647_400_000, {"batch": 1}, {"Conv": 16, "Add": 2}),
        "decoder": Component(90, 400, 50, {"sequence_length": 67}, {"com.microsoft.MatMulNBits": 3, "Add": 40}),
    }
    folder = made(summary=Summary("what was counted", parts))
    assert read_summary(Bundle.load(folder)) == Summary("what was counted", parts)
    lines = [line.split() for line in shown(capsys, folder, "--graph").splitlines()]
    assert ["vision", "1,234,567", "4.9", "647.4", "batch", "1"] in lines
    assert ["decoder", "90", "0.0", "0.0", "sequence", "length", "67"] in lines
    assert lines[4:8] == [
        ["operator", "vision", "decoder"],
        ["Add", "2", "40"],
        ["Conv", "16", "-"],
        ["com.microsoft.MatMulNBits", "-", "3"],
    ]
    assert lines[-1] == ["what", "was", "counted"]


def test_a_bundle_without_a_summary_says_how_to_get_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(TINY), "--graph"]) == 2
    error = capsys.readouterr().err
    assert "graphs/summary.json" in error
    assert "export the checkpoint again" in error
    assert error.count("\n") == 1


def test_a_broken_summary_is_exit_4(made: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    folder = made(summary=Summary("x", {}))
    manifest: Manifest = Bundle.load(folder).manifest
    (folder / "graphs" / "summary.json").write_text('{"counted": 3}')
    write_manifest(folder, manifest)
    assert main(["inspect", str(folder), "--graph"]) == 4
    assert "graphs/summary.json" in capsys.readouterr().err


def test_graph_and_json_exclude_each_other() -> None:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", str(TINY), "--graph", "--json"])
    assert caught.value.code == 2
