"""The command without its extra, and with arguments that make no sense."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from trrg_export.cli import _options, build_parser, main


def test_importing_the_command_loads_nothing_heavy() -> None:
    code = "import sys, trrg_export.cli; print(*({'torch', 'onnx', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_missing_extra_is_one_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else find(name))
    assert main([str(tmp_path), "--out", str(tmp_path / "bundle")]) == 2
    error = capsys.readouterr().err
    assert "onnxscript" in error
    assert "pip install 'trrg-sdk[cpu,export]'" in error
    assert error.count("\n") == 1


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--rebuild-engines",
        "--compute-capability",
        "--out",
        "--fp16",
        "--int8",
        "--int4",
        "--bf16",
        "--int8-bf16",
        "--int8-vnni",
        "--auto",
        "--target",
        "--force",
        "--sign",
        "--studies",
        "--value-limit",
        "--label-agreement",
        "--clue-flips",
        "--differing-texts",
        "exit codes",
    ):
        assert option in text


def test_two_precisions_at_once_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        build_parser().parse_args(["checkpoint", "--out", "bundle", "--fp16", "--int8"])
    assert caught.value.code == 2
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [[], ["checkpoint"], ["checkpoint", "--rebuild-engines", "bundle"], ["--rebuild-engines", "b", "--int8"]],
)
def test_a_checkpoint_is_exported_or_engines_are_rebuilt(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "--rebuild-engines" in capsys.readouterr().err


@pytest.mark.torch
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{folder}", "--out", "{folder}/b"], "no TRRG checkpoint"),
        (["{folder}", "--out", "{folder}/none/b"], "does not exist"),
        (["{folder}", "--out", "{folder}"], "exists already"),
        (["{folder}", "--out", "{folder}/b", "--studies", "0"], "at least 1"),
        (["{folder}", "--out", "{folder}/b", "--label-agreement", "99"], "--label-agreement: expected a share"),
        (["{folder}", "--out", "{folder}/b", "--clue-flips", "-1"], "--clue-flips: expected a share"),
    ],
)
def test_senseless_arguments_are_one_line_and_exit_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime_genai")
    assert main([argument.format(folder=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.torch
def test_every_limit_of_the_comparison_can_be_set() -> None:
    pytest.importorskip("torch")
    from trrg_export.parity import ParityLimits

    given = ["--value-limit", "0.5", "--label-agreement", "0.9", "--clue-flips", "0.2", "--differing-texts", "3"]
    arguments = build_parser().parse_args(["checkpoint", "--out", "bundle", "--int8", *given])
    assert _options(arguments, "int8").limits == ParityLimits(0.5, 3, 0.9, 0.2)


@pytest.mark.torch
def test_a_gpu_without_a_target_that_builds_engines_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime_genai")
    assert main([str(tmp_path), "--out", str(tmp_path / "b"), "--compute-capability", "8.9"]) == 2
    assert "belongs to --target" in capsys.readouterr().err
