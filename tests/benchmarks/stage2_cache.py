"""What it saves to run the frozen encoders once: stage 2 over cached encodings and with the encoder in the loop.

    trrg-train phantom --count 6000 --seed 1 --size 320 --out data/phantom
    python tests/benchmarks/stage2_cache.py --write tests/benchmarks/results/stage2_cache.md

Both take the same studies in the same batches through the same trainer; without the cache the frozen encoder runs on
the images of each batch, augmented as they are for the cache. So both have the same losses up to the cache's 16 bits:
the page says how far they are apart. They take turns. What the cache costs once (every view of every study through
the encoder, and the disk) stands beside the ratio.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mini_run import CONFIG, MiniRun, Stopwatch, machine, mini_run, spread, stage2_task, unwatched
from numpy.typing import NDArray
from torch import Tensor

from trrg_train.augment import augment
from trrg_train.draws import Draws, generators
from trrg_train.encodings import Encodings, Views, cached_encodings, encode_batch
from trrg_train.stage2 import Stage2Task
from trrg_train.stage2_batches import Stage2Batches
from trrg_train.trainer import fit, training_arguments

ARMS = ("cached", "encoder in the loop")


class EncoderInTheLoop:
    """Has the face of :class:`Encodings` and runs the frozen encoder on the images of each batch."""

    def __init__(self, run: MiniRun, kept: Encodings) -> None:
        self.run = run
        self.gate_logits = kept.gate_logits  # one float a clue, so that both have the same batches

    def batch(self, views: NDArray[np.int64], studies: NDArray[np.int64]) -> tuple[Tensor, ...]:
        """Patches and joint embeddings of the images of a batch, augmented as the cache augments them."""
        pixels = torch.from_numpy(self.run.pixels[studies].astype(np.float32))
        moved = np.flatnonzero(views)
        if len(moved):
            seed = self.run.config.seed
            grain = [generators(seed, int(views[row]), int(studies[row]))[1] for row in moved]
            pixels[moved] = augment(pixels[moved], grain)
        with torch.no_grad():
            return encode_batch(self.run.first, self.run.embedded, pixels)[:3]


@dataclass
class Times:
    """Seconds of a step in each repeat, and the losses of the first."""

    step: list[float]
    losses: list[float]


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="default: train/configs/mini.toml")
    parser.add_argument("--data", type=Path, help="another folder than that of the configuration's first source")
    parser.add_argument("--studies", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--views", type=int, help="instead of the configuration's")
    parser.add_argument("--write", type=Path, help="write the page to this file too")
    args = parser.parse_args(argv)
    run = mini_run(args.config, args.data, studies=args.studies)
    if args.views:
        run = replace(run, config=replace(run.config, stage2=replace(run.config.stage2, views=args.views)))
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        once, encodings = build_cache(run, Path(folder))
        times = measure(run, encodings, Path(folder), repeats=args.repeats)
        size = sum(getattr(encodings, name).nbytes for name in ("patches", "patch_joint", "global_joint"))
    page = "\n".join(page_of(run, times, once=once, size=size)) + "\n"
    sys.stdout.write(page)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(page, encoding="utf-8")
    return 0


def build_cache(run: MiniRun, folder: Path) -> tuple[float, Encodings]:
    """Seconds to encode every view of every study, and the encodings."""
    start = time.perf_counter()
    views = Views(run.config.stage2.views, run.config.seed)
    encodings = cached_encodings(run.first, run.embedded, run.pixels, views=views, cache=folder / "cache")
    return time.perf_counter() - start, encodings


def measure(run: MiniRun, encodings: Encodings, folder: Path, *, repeats: int) -> dict[str, Times]:
    """Let both arms train one epoch in turn."""
    start = stage2_task(run).state_dict()
    sources = {ARMS[0]: encodings, ARMS[1]: EncoderInTheLoop(run, encodings)}
    times = {arm: Times([], []) for arm in ARMS}
    for repeat in range(repeats):
        for arm in ARMS[:: 1 if repeat % 2 == 0 else -1]:
            task = stage2_task(run)
            task.load_state_dict(start)
            watch = one_epoch(run, task, sources[arm], folder / f"{arm}-{repeat}")
            times[arm].step.append(watch.seconds_per_step)
            times[arm].losses = times[arm].losses or watch.losses
    return times


def one_epoch(run: MiniRun, task: Stage2Task, encodings: Any, folder: Path) -> Stopwatch:
    """Train one epoch with our trainer."""
    stage = run.config.stage2
    watch = Stopwatch(task, lambda batch: len(batch["labels"]))
    fit(
        task,
        Draws(range(len(run.studies)), epochs=1, seed=run.config.seed),
        Stage2Batches(run.studies, encodings, stage, run.first.tokenizer, seed=run.config.seed),
        arguments=training_arguments(stage.optim, folder, seed=run.config.seed),
        resume=None,
        watch=unwatched(folder),
    )
    watch.stop()
    return watch


def page_of(run: MiniRun, times: dict[str, Times], *, once: float, size: int) -> Iterator[str]:
    """The lines of the page."""
    optim, views, studies = run.config.stage2.optim, run.config.stage2.views, len(run.studies)
    steps = -(-studies // optim.batch_size)
    cached, live = (times[arm].step for arm in ARMS)
    ratios = [b / a for a, b in zip(cached, live, strict=True)]
    epoch, epoch_live = statistics.median(cached) * steps, statistics.median(live) * steps
    yield "# Stage 2 with and without cached encodings\n\nMade by (do not edit):\n\n```bash"
    yield f"python tests/benchmarks/stage2_cache.py --studies {studies} --repeats {len(cached)} \\"
    yield "    --write tests/benchmarks/results/stage2_cache.md\n```\n"
    yield (__doc__ or "").split("\n\n", 2)[2]
    yield f"`{run.config.model.name}` on {studies} phantoms in batches of {optim.batch_size}, {views} views a study. "
    yield from machine()
    yield f"\n| an epoch of {studies} studies ({steps} steps) | seconds: median of {len(cached)} (least to greatest) |"
    yield "|---|---|"
    for arm in ARMS:
        yield f"| {arm} | {spread([step * steps for step in times[arm].step], 2)} |"
    yield f"| **ratio** | **{spread(ratios, 2)}** |"
    yield f"| the cache, once: {views} views of each study | {once:.2f} |"
    apart = max(abs(a - b) for a, b in zip(*(times[arm].losses for arm in ARMS), strict=True))
    yield f"\nLargest difference of a step's loss between the two: {apart:.1e}. "
    yield f"The cache takes {size / studies / 2**10:.0f} KiB a study on disk. "
    yield gain(once, epoch, epoch_live, epochs=run.config.stage2.optim.epochs)


def gain(once: float, epoch: float, epoch_live: float, *, epochs: float) -> str:
    """In words: from which epoch on the cache pays, and the ratio of the whole stage."""
    whole = epochs * epoch_live / (once + epochs * epoch)
    saved = epoch_live - epoch
    pays = f"It pays after {once / saved:.1f} epochs" if saved > 0 else "It never pays here"
    return f"{pays}; over the {epochs:g} epochs of the configuration, cache included, the ratio is {whole:.2f}."


if __name__ == "__main__":
    sys.exit(main())
