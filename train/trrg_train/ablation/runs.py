"""The runs of an ablation: which share a stage 1, in which processes, and how a killed ablation goes on.

In the folder of the ablation:

    config.json                what the runs are made from; another configuration needs another folder
    results/VARIANT-SEED.json  one finished run; it is not run again
    trained/pixels             preprocessed images of all runs
    trained/START-SEED         stage 1 of several runs and its encodings
    trained/VARIANT-SEED       stage 2 of one run; log.txt is what it said

A run has a folder of its own in which stage 1 and caches are links: runs side by side never write to one file.
"""

from __future__ import annotations

import contextlib
import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from trrg_sdk.errors import TrrgError, UsageError
from trrg_sdk.preprocess import Preprocess
from trrg_train.ablation.measure import Outcome, measure, read_outcome
from trrg_train.ablation.variants import VARIANTS
from trrg_train.config import RunConfig
from trrg_train.data.pixels import cached_pixels
from trrg_train.data.sources import read_sources
from trrg_train.data.study import Study
from trrg_train.models.checkpoint import load_checkpoint
from trrg_train.stage1 import run_stage1
from trrg_train.stage2 import images_of, run_stage2
from trrg_train.writers import CheckpointWriter

log = logging.getLogger(__name__)

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True)
class Run:
    """One variant with one seed.

    Attributes:
        variant: Its name.
        config: Of stage 2, with the folder of this run.
        start: Of stage 1, with the folder that runs share.
        result: File of its figures.
    """

    variant: str
    config: RunConfig
    start: RunConfig
    result: Path

    @property
    def trained(self) -> bool:
        """Whether its stage 2 is complete; what was measured of it may still be missing."""
        return (self.config.out / "stage2" / "meta.json").is_file()


def planned(config: RunConfig, out: Path, *, variants: Sequence[str], seeds: int) -> list[Run]:
    """Lay out all runs, the seeds counted from the configuration's."""
    runs = []
    for seed in range(config.seed, config.seed + seeds):
        for name in variants:
            changed = replace(VARIANTS[name].change(config), seed=seed)
            kind = changed.stage1.contrast if changed.stage1.optim.epochs else "untrained"
            start = replace(changed, out=out / "trained" / f"{kind}-{seed}", model=config.model)
            own = replace(changed, out=out / "trained" / f"{name}-{seed}")
            runs.append(Run(name, own, start, out / "results" / f"{name}-{seed}.json"))
    return runs


def claim(out: Path, config: RunConfig) -> None:
    """Make the folder, or see that it was made for the same configuration.

    Raises:
        UsageError: It was made for another one.
    """
    facts = json.dumps(asdict(config), indent=1, sort_keys=True, default=str) + "\n"
    path = out / "config.json"
    if not path.is_file():
        (out / "results").mkdir(parents=True, exist_ok=True)
        path.write_text(facts, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != facts:
        raise UsageError(f"{out} holds runs of another configuration ({path.name} there); choose another --out")


def check_sources(config: RunConfig) -> None:
    """See that all data are there.

    Raises:
        UsageError: A source is not; the message says how it is made.
    """
    for source in config.sources:
        if not source.path.exists():
            make = f"make it with: {source.made_by}" if source.made_by else "it has no made_by"
            raise UsageError(f"the data of source {source.name} are missing ({source.path}); {make}")


def run_all(runs: Sequence[Run], *, out: Path, jobs: int) -> list[Outcome]:
    """Run what is not finished, ``jobs`` processes of one thread side by side.

    Raises:
        UsageError: A run was refused, or its process was killed. What is finished stays.
    """
    todo = [run for run in runs if not run.result.is_file()]
    log.info("%d of %d runs are finished", len(runs) - len(todo), len(runs))
    if todo:
        _keep_pixels(todo[0].config, out)
        with (
            _one_thread_each(),
            ProcessPoolExecutor(
                jobs, mp_context=multiprocessing.get_context("spawn"), initializer=_end_with_parent
            ) as pool,
        ):
            try:
                _run_in(pool, todo, out)
            except BrokenProcessPool as error:
                raise UsageError("a run's process was killed; the same command goes on where it was") from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    return [read_outcome(run.result) for run in runs]


def held_out(config: RunConfig) -> list[Study]:
    """The studies that every run is measured on."""
    return [study for study in read_sources(config.sources) if study.split == "test"]


def _run_in(pool: ProcessPoolExecutor, todo: Sequence[Run], out: Path) -> None:
    """First every stage 1, then, each as soon as its stage 1 is there, the runs; the longest come first."""
    begun = time.monotonic()
    waiting: dict[Path, list[Run]] = {}
    for run in sorted(todo, key=lambda run: (run.start.stage1.optim.epochs, run.config.seed)):
        waiting.setdefault(run.start.out, []).append(run)
    pending: dict[Future[str], Path | None] = {
        pool.submit(_logged, start_run, runs[0].start, out): start for start, runs in waiting.items()
    }
    total, done = len(pending) + len(todo), 0
    while pending:
        finished, _ = wait(pending, return_when=FIRST_COMPLETED)
        for future in finished:
            start = pending.pop(future)
            done += 1
            log.info("%s [%d of %d, %.0f min]", future.result(), done, total, (time.monotonic() - begun) / 60)
            for run in waiting[start] if start else ():
                pending[pool.submit(_logged, finish_run, run)] = None


def start_run(start: RunConfig, out: Path) -> str:
    """Make stage 1 and what the runs that share it read: a line for the log comes back.

    Args:
        start: Of stage 1.
        out: Folder of the ablation.
    """
    _link(out / "trained" / "pixels", start.out / "cache")
    folder = start.out / "stage1"
    if not (folder / "meta.json").is_file():
        run_stage1(start, commands=(), resume=True)
    train = [study for study in read_sources(start.sources) if study.split == "train"]
    images_of(start, load_checkpoint(folder), train, views=start.stage2.views)
    return f"{start.out.name}: encoders ready"


def finish_run(run: Run) -> str:
    """Make stage 2 of a run and measure it: a line for the log comes back."""
    config = run.config
    _link(run.start.out / "cache", config.out / "cache")
    if not (config.out / "stage1").exists():
        (config.out / "stage1").symlink_to((run.start.out / "stage1").resolve(), target_is_directory=True)
    if not run.trained:
        run_stage2(config, commands=(), resume=True)
    figures: dict[str, Any] = measure(CheckpointWriter(config.out / "stage2", config.out / "cache"), held_out(config))
    outcome = Outcome(variant=run.variant, seed=config.seed, **figures)
    outcome.save(run.result)
    shutil.rmtree(config.out / "stage2-steps", ignore_errors=True)
    return f"{config.out.name}: macro-F1 {outcome.macro_f1}"


def _logged(call: Any, first: Any, *more: Any) -> str:
    """Call it; what it prints goes to ``log.txt`` in its own folder."""
    config = first.config if isinstance(first, Run) else first
    config.out.mkdir(parents=True, exist_ok=True)
    with (config.out / "log.txt").open("a", encoding="utf-8") as file:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=file, force=True)
        try:
            with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
                return str(call(first, *more))
        except TrrgError as error:
            raise UsageError(f"{config.out.name}: {error}; what is finished stays, see {file.name}") from error


def _keep_pixels(config: RunConfig, out: Path) -> None:
    """Preprocess every split once, before processes could do it at the same time."""
    studies = read_sources(config.sources)
    preprocess = Preprocess(size=config.model.image_size, channels=1)
    for split in ("train", "val", "test"):
        cached_pixels([s for s in studies if s.split == split], preprocess, out / "trained" / "pixels")


def _link(shared: Path, own: Path) -> None:
    """Give a run links to all that is complete in another's cache; what it adds stays its own."""
    own.mkdir(parents=True, exist_ok=True)
    for entry in shared.iterdir():
        if not entry.name.endswith(".writing") and not (own / entry.name).exists():
            (own / entry.name).symlink_to(entry.resolve(), target_is_directory=entry.is_dir())


@contextlib.contextmanager
def _one_thread_each() -> Iterator[None]:
    """Let processes that start meanwhile compute with one thread: two such runs beat one with two threads."""
    before = {name: os.environ.get(name) for name in THREADS}
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent() -> None:
    """End this process when its parent is killed, so that no orphan writes beside the next call's processes."""
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
