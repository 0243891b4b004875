"""``trrg-train ablate``: all runs, the table and the picture."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from trrg_sdk.errors import UsageError
from trrg_train.ablation.measure import constant_floor
from trrg_train.ablation.runs import check_sources, claim, planned, run_all
from trrg_train.ablation.table import Report
from trrg_train.ablation.variants import VARIANTS
from trrg_train.config import RunConfig
from trrg_train.data.sources import read_sources
from trrg_train.stage1 import describe


def run_ablation(config: RunConfig, out: Path, *, variants: Sequence[str], seeds: int, jobs: int, command: str) -> Path:
    """Run every variant with every seed, or what is left of that, and write ``ablation.md`` and ``ablation.png``.

    Args:
        config: The whole method; its ``out`` is not used.
        out: Folder of the ablation.
        variants: Names of ``VARIANTS``.
        seeds: How many, counted from the configuration's.
        jobs: Processes of one thread side by side.
        command: What the user typed, for the table.

    Returns:
        Path of the table.

    Raises:
        UsageError: A number below 1, data that are missing, or a folder with runs of another configuration.
    """
    started = time.monotonic()
    if seeds < 1 or jobs < 1:
        raise UsageError(f"--seeds and --jobs must be at least 1, they are {seeds} and {jobs}")
    check_sources(config)
    claim(out, config)
    runs = planned(config, out, variants=[name for name in VARIANTS if name in variants], seeds=seeds)
    made = sum(not run.result.is_file() and not run.trained for run in runs)
    outcomes = run_all(runs, out=out, jobs=jobs)
    studies = read_sources(config.sources)
    train, test = ([s for s in studies if s.split == split] for split in ("train", "test"))
    report = Report(
        outcomes=outcomes,
        constant_f1=constant_floor(train, test),
        data=describe(studies),
        command=command,
        minutes=(time.monotonic() - started) / 60,
        made=made,
        jobs=jobs,
    )
    path = out / "ablation.md"
    path.write_text(report.to_markdown(), encoding="utf-8")
    report.write_plot(path.with_suffix(".png"))
    return path
