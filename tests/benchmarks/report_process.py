"""How long one report takes as a whole process, and a second study in the same one, beside PyTorch on the same weights.

    python tests/benchmarks/report_process.py CHECKPOINT [--bundle DIR] [--repeats 7]

Each process starts from a fresh interpreter and they take turns, so that a noisy machine hurts all alike. The PyTorch
process loads the same checkpoint, reads the same DICOM with the same code and writes the report with
``transformers``' ``generate``. Printed: medians in one run, ratios, versions and machine. This is no timed test.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "data" / "phantom_pa.dcm"

OURS = """
import sys
from trrg_sdk.cli import main
sys.exit(main(["report", {dicom!r}, *{bundle!r}]))
"""

SECOND = """
import statistics, time
from trrg_sdk import Reporter
reporter = Reporter(*{bundle!r}, device="cpu")
reporter.report({dicom!r})
times = []
for _ in range(10):
    start = time.perf_counter()
    report = reporter.report({dicom!r})
    times.append(time.perf_counter() - start)
print(statistics.median(times), report.timings_ms)
"""

TORCH = """
import sys
from pathlib import Path
import torch
from trrg_sdk import dicom
from trrg_train.models.checkpoint import load_checkpoint
from trrg_train.models.clue_bank import embed_bank
from trrg_train.writers import write_batch
checkpoint = load_checkpoint(Path({checkpoint!r}))
model = checkpoint.trrg()
with torch.no_grad():
    embedded = embed_bank(checkpoint.meta.clues, model.perceiver, checkpoint.tokenizer, max_length=48)
seen = dicom.load({dicom!r})
pixels = torch.from_numpy(checkpoint.preprocess.apply(seen.pixels, spacing_mm=seen.pixel_size))[None]
import time
start = time.perf_counter()
print(write_batch(checkpoint, embedded, pixels, {{}})[0].text)
start = time.perf_counter()
write_batch(checkpoint, embedded, pixels, {{}})
print(time.perf_counter() - start)
"""


def run(code: str) -> tuple[float, str]:
    """Run a fresh interpreter; wall seconds and what it printed."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return time.perf_counter() - start, done.stdout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--bundle", type=Path, help="default: the embedded one")
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    bundle = [str(args.bundle)] if args.bundle else []
    ours = OURS.format(dicom=str(EXAMPLE), bundle=["--bundle", *bundle] if bundle else [])
    second = SECOND.format(dicom=str(EXAMPLE), bundle=bundle)
    torch_code = TORCH.format(dicom=str(EXAMPLE), checkpoint=str(args.checkpoint))
    ours_wall, torch_wall, ours_second, torch_second, steps = [], [], [], [], ""
    for _ in range(args.repeats):
        ours_wall.append(run(ours)[0])
        wall, printed = run(torch_code)
        torch_wall.append(wall)
        torch_second.append(float(printed.split()[-1]))
        first, steps = run(second)[1].split(" ", 1)
        ours_second.append(float(first))
    packages = ("onnxruntime", "numpy", "torch", "transformers")
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(", ".join(f"{name} {version(name)}" for name in packages), f"{args.repeats} repeats, medians")
    rows = (("whole process", ours_wall, torch_wall), ("second study, same process", ours_second, torch_second))
    print("| what | trrg | PyTorch | ratio |\n|---|---|---|---|")
    for name, mine, theirs in rows:
        a, b = statistics.median(mine), statistics.median(theirs)
        print(f"| {name} | {a:.3f} s | {b:.3f} s | {b / a:.1f} |")
    print(f"steps of the second study, ms: {steps.strip()}")


if __name__ == "__main__":
    main()
