"""``--auto``: every allowed precision is tried, the smallest that passes is kept, and the table says why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")
pytestmark = pytest.mark.torch

from trrg_export.auto import Trial, export_smallest, table
from trrg_export.build import ExportOptions, allowed_precisions
from trrg_export.cli import main
from trrg_export.parity import LIMITS, ParityError
from trrg_export.speed import timed
from trrg_sdk.backends import openvino as backend
from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import DeviceError

Traced = Callable[[Callable[[str, Any], None]], None]


def candidates(**limits: float | None) -> list[ExportOptions]:
    return [
        ExportOptions(name, limits=dataclasses.replace(LIMITS[name], **limits) if limits else None)
        for name in ("fp32", "int8")
    ]


def test_the_smallest_that_passes_is_taken(tiny_checkpoint: Path, tmp_path: Path, traced: Traced) -> None:
    passing = candidates(value=None, label_agreement=0.0, clue_flips=1.0)
    manifest, trials = export_smallest(tiny_checkpoint, tmp_path / "b", passing)
    fp32, int8 = (trial.mib for trial in trials)
    assert fp32 is not None
    assert int8 is not None
    assert int8 < fp32
    assert manifest == Bundle.load(tmp_path / "b").manifest
    assert manifest.graphs["decoder"].precision == "int8"
    assert all(min(dataclasses.astuple(trial.speeds["cpu"])) > 0 for trial in trials)
    assert [path.name for path in tmp_path.iterdir()] == ["b"], "no trial stays"
    assert [line.split()[:2] for line in table(trials)][1:] == [["fp32", "cpu"], ["->", "int8"]]


def test_a_precision_that_drifts_too_far_is_not_taken(tiny_checkpoint: Path, tmp_path: Path, traced: Traced) -> None:
    limited = candidates(value=1e-3, label_agreement=0.0, clue_flips=1.0)
    manifest, trials = export_smallest(tiny_checkpoint, tmp_path / "b", limited)
    assert manifest.graphs["decoder"].precision == "fp32"
    assert trials[1].mib is None
    assert any("the limit is 0.001" in failure for failure in trials[1].failures)
    lines = list(table(trials))
    assert lines[1].split()[0] == "->"
    assert "refused: " in lines[2]
    assert "the limit is 0.001" in lines[2]


def test_when_none_passes_all_say_why_and_nothing_is_left(
    tiny_checkpoint: Path, tmp_path: Path, traced: Traced
) -> None:
    with pytest.raises(ParityError) as caught:
        export_smallest(tiny_checkpoint, tmp_path / "b", candidates(label_agreement=1.1))
    assert {failure.partition(":")[0] for failure in caught.value.failures} == {"fp32", "int8"}
    assert not list(tmp_path.iterdir())


def test_the_command_prints_the_table_and_leaves_one_bundle(
    tiny_checkpoint: Path, tmp_path: Path, traced: Traced, capsys: pytest.CaptureFixture[str]
) -> None:
    # Random weights say nothing about texts: int4 may fail here, and the table must say so then.
    assert main([str(tiny_checkpoint), "--auto", "--out", str(tmp_path / "b")]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.removeprefix("->").split()[0] for line in lines[1:-1]]
    assert names == ["fp32", "fp16", "int8", "int4", "int4-fp16"]
    (chosen,) = [line.split()[1] for line in lines if line.startswith("->")]
    assert Bundle.load(tmp_path / "b").manifest.graphs["decoder"].precision == chosen
    assert lines[-1].startswith(f"{tmp_path / 'b'}: bundle ")


def test_bf16_is_tried_only_where_something_computes_in_it() -> None:
    computed = {"bf16", "int8-bf16", "int8-vnni"}
    assert not computed & set(allowed_precisions(("ort",)))
    assert computed <= set(allowed_precisions(("ort", "openvino")))


def test_a_precision_that_this_processor_lacks_is_refused_in_the_table(
    tiny_checkpoint: Path, tmp_path: Path, traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    lacking = {"bf16": "bf16: expected a processor with bf16 arithmetic, and this one has none."}
    monkeypatch.setattr(backend, "unfit_reason", lacking.get)
    targets = ("ort", "openvino")
    tried = [ExportOptions("fp32", targets=targets), ExportOptions("bf16", targets=targets)]
    _, trials = export_smallest(tiny_checkpoint, tmp_path / "b", tried)
    assert [trial.mib is None for trial in trials] == [False, True]
    assert "refused: target openvino: bf16: expected a processor with bf16" in "\n".join(table(trials))


def test_a_target_that_nothing_can_build_is_no_refusal_of_every_precision(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "unavailable_reason", lambda: "OpenVINO cannot be used.")
    with pytest.raises(DeviceError, match=r"target openvino: OpenVINO cannot be used\."):
        export_smallest(tiny_checkpoint, tmp_path / "b", [ExportOptions("fp32", targets=("ort", "openvino"))])


def test_a_place_that_is_taken_is_refused_before_anything_is_tried(tiny_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    assert main([str(tiny_checkpoint), "--auto", "--out", str(tmp_path / "b")]) == 2
    assert not list((tmp_path / "b").iterdir())


def test_a_trial_that_failed_has_its_reason_in_the_table() -> None:
    lines = list(table([Trial("int4", failures=("labels agree in 0.9",))]))
    assert lines[1].split() == ["int4", "refused:", "labels", "agree", "in", "0.9"]


def test_the_first_calls_are_not_timed() -> None:
    calls = []
    assert timed([lambda: calls.append(1)], 5) >= 0
    assert len(calls) == 7
