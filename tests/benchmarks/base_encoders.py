"""What an export with encoders of the base size takes: Swin-B and BERT-base, in fp16 and on OpenVINO.

    python tests/benchmarks/base_encoders.py --write tests/benchmarks/results/base_encoders.md

A checkpoint with random weights, the encoders and the fusion of train/configs/base.toml but a toy language model, is
written; then ``trrg-export`` runs on it whole, each time in a process of its own. Random weights write no report, so
the limit on labels is lifted; every other limit of the precision holds.

The peak is the resident set of that process, shared pages of files included.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from export_memory import EXPORT, SHAPES, write_checkpoint
from mini_run import machine

CONFIG = Path(__file__).parents[2] / "train" / "configs" / "base.toml"
EXPORTS = (("fp32", "--target", "openvino"), ("fp16",))


@dataclass(frozen=True)
class Cost:
    """What one export took."""

    options: str
    seconds: float  # of CPU time, all threads
    peak: int  # bytes
    bundle: int  # bytes


def export(checkpoint: Path, out: Path, options: tuple[str, ...]) -> Cost:
    """Run the command and ask the system what it took."""
    precision, *rest = options
    arguments = [str(checkpoint), "--out", str(out), "--label-agreement", "0", *rest]
    arguments += [] if precision == "fp32" else [f"--{precision}"]
    with subprocess.Popen([sys.executable, "-c", EXPORT, *arguments], stdout=sys.stderr) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(process.returncode)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Cost(" ".join(arguments[5:]), usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, size)


def page(costs: list[Cost], checkpoint: int) -> Iterator[str]:
    """The outcome as Markdown."""
    yield "# Exports with encoders of the base size\n\nMade by (do not edit):\n\n```bash"
    yield "python tests/benchmarks/base_encoders.py --write tests/benchmarks/results/base_encoders.md\n```\n"
    yield (__doc__ or "").split("\n\n", 2)[2]
    yield from machine(("torch", "transformers", "onnxruntime", "openvino"))
    yield f"\nThe checkpoint has {checkpoint / 2**30:.2f} GiB.\n"
    yield "| options | CPU time, s | peak of the resident set, GiB | bundle, GiB |\n|---|---|---|---|"
    for cost in costs:
        yield f"| `{cost.options}` | {cost.seconds:.0f} | {cost.peak / 2**30:.2f} | {cost.bundle / 2**30:.2f} |"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="where checkpoint and bundles lie meanwhile (default: temporary)")
    parser.add_argument("--write", type=Path, help="write the page to this file too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        write_checkpoint(SHAPES["toy"], folder / "checkpoint", config=CONFIG)
        size = (folder / "checkpoint" / "model.safetensors").stat().st_size
        costs = [export(folder / "checkpoint", folder / options[0], options) for options in EXPORTS]
    text = "\n".join(page(costs, size)) + "\n"
    sys.stdout.write(text)
    if args.write:
        args.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
