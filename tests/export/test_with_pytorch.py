"""PyTorch in a process of its own: what comes back, and that nothing of it stays."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from trrg_export.parity import ParityError
from trrg_export.with_pytorch import with_pytorch
from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import DeviceError, UsageError

pytestmark = pytest.mark.torch

_BEGIN = """
import json, logging, os, sys
from trrg_export.with_pytorch import with_pytorch
"""
_EXPORT = (
    _BEGIN
    + """
from trrg_export.cli import main
rc = main(sys.argv[1:])
print(json.dumps([name for name in ("torch", "transformers", "onnxscript", "sympy") if name in sys.modules]))
sys.exit(rc)
"""
)


def _run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process that has not loaded PyTorch, as the command is."""
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_a_process_that_has_pytorch_runs_it_itself() -> None:
    pytest.importorskip("torch")
    assert with_pytorch("os", "getpid") == os.getpid()


def test_one_that_has_not_starts_another_and_hears_what_it_logs(tmp_path: Path) -> None:
    done = _run(
        _BEGIN
        + """
logging.basicConfig(format="%(name)s: %(message)s")
logging.getLogger("trrg_export").setLevel(logging.INFO)
try:
    with_pytorch("trrg_export.from_pytorch", "pytorch_reference", __import__("pathlib").Path(sys.argv[1]), 1)
except Exception as error:
    print(type(error).__name__, error)
print(with_pytorch("os", "getpid") != os.getpid(), "torch" in sys.modules)
""",
        str(tmp_path),
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[0].startswith(f"UsageError {tmp_path} is no TRRG checkpoint")
    assert lines[1] == "True False"


@pytest.mark.parametrize("function", ["_exit", "abort"])
def test_a_process_that_is_ended_from_outside_is_said(function: str) -> None:
    arguments = ", 9" if function == "_exit" else ""
    done = _run(
        _BEGIN
        + f"""
try:
    with_pytorch("os", {function!r}{arguments})
except Exception as error:
    print(type(error).__name__, error)
"""
    )
    assert done.stdout.startswith(f"{DeviceError.__name__} the process that ran PyTorch was ended from outside")


@pytest.mark.parametrize("error", [ParityError(["a differs", "b differs"]), UsageError("no")], ids=["parity", "usage"])
def test_errors_come_whole_out_of_it(error: Exception) -> None:
    """A copy is made of the same parts as what comes out of another process."""
    back = copy.copy(error)
    assert type(back) is type(error) and str(back) == str(error)
    assert getattr(back, "failures", None) == getattr(error, "failures", None)


def test_the_command_makes_the_same_bundle_and_ends_without_pytorch(
    fp32_bundle: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "bundle"
    done = _run(_EXPORT, str(tiny_checkpoint), "--out", str(out))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    told = [line.split(" ")[0] for line in done.stderr.splitlines()]
    assert told[:8] == ["running", *["tracing"] * 3, "building", *["writing"] * 3], done.stderr
    assert Bundle.load(out).manifest.files == Bundle.load(fp32_bundle).manifest.files
    assert list(tmp_path.iterdir()) == [out]


def test_targets_need_pytorch_in_this_process_no_more(tiny_checkpoint: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    loose = ["--label-agreement", "0", "--clue-flips", "1"]
    targets = ["--target", "openvino", "--target", "trtllm"]
    done = _run(_EXPORT, str(tiny_checkpoint), "--out", str(tmp_path / "bundle"), "--int8", *targets, *loose)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == []
    assert {"openvino-cpu", "trtllm"} <= Bundle.load(tmp_path / "bundle").manifest.targets.keys()
