"""What an export holds in memory, over the size of the checkpoint: measured on a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")

from tests.export import tiny

LARGE = {
    "hidden_size": 512,
    "num_hidden_layers": 18,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "intermediate_size": 2560,
}
"""82 million weights, 330 MB."""
EXPORT = """
import sys
from pathlib import Path
from trrg_export.cli import main
code = main(sys.argv[1:])
print(next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")))
sys.exit(code)
"""


def _exported(checkpoint: Path) -> tuple[int, int]:
    """Export; the size of the weights and the largest resident set, in bytes."""
    out = checkpoint.with_name(f"{checkpoint.name}-int4")
    options = [str(checkpoint), "--out", str(out), "--int4", "--label-agreement", "0", "--studies", "1"]
    command = [sys.executable, "-c", EXPORT, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout.split("VmHWM:")[1].split()[0]) * 1024
    return (checkpoint / "model.safetensors").stat().st_size, peak


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="Linux tells the peak of a process there")
def test_an_export_to_int4_holds_at_most_one_and_a_half_times_the_checkpoint(tmp_path: Path) -> None:
    """A tiny checkpoint costs the same but for its weights: libraries, traces, sessions."""
    nothing, without = _exported(tiny.write_checkpoint(tmp_path / "tiny"))
    weights, peak = _exported(tiny.write_checkpoint(tmp_path / "large", llm={**tiny.LLM, **LARGE}))
    assert weights > 300e6
    assert (peak - without) / (weights - nothing) <= 1.5
