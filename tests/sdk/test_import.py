"""What importing and asking for help may load."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("onnxruntime", "tokenizers", "pydicom", "PIL", "torch", "transformers", "onnx", "openvino")


def loaded(code: str) -> set[str]:
    program = f"import sys\n{code}\nprint(*(name for name in sys.argv[1:] if name in sys.modules), file=sys.stderr)"
    command = [sys.executable, "-c", program, *HEAVY, "numpy"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
    return set(done.stderr.split())


@pytest.mark.parametrize(
    "code",
    [
        "import trrg_sdk",
        "import trrg_sdk; trrg_sdk.RefusedError; trrg_sdk.Report",
        "from trrg_sdk.cli import build_parser; build_parser().format_help()",
    ],
)
def test_nothing_is_loaded_before_it_is_needed(code: str) -> None:
    assert loaded(code) == set()


def test_the_reporter_loads_the_heavy_ones_when_it_is_made() -> None:
    assert loaded("from trrg_sdk import Reporter") <= {"numpy"}
