"""Our trainer beside a plain loop over the same model, built as R2GenGPT's is.

    trrg-train phantom --count 6000 --seed 1 --size 320 --out data/phantom
    python tests/benchmarks/training_speed.py --write tests/benchmarks/results/training_speed.md

The plain loop is ours, written from how R2GenGPT (github.com/wang-zhanyu/R2GenGPT) trains: each image is read from its
file and preprocessed whenever it is used; the frozen vision encoder runs in every step; each report is tokenised in
every step and padded to one fixed length (here the longest report, so that none is cut); prompt and report go through
the language model; ``torch.optim.AdamW`` over all parameters, no clipping of gradients. Its framework (Lightning) and
its loader's worker processes are left out: with as many cores as it has workers, reading costs it nothing, so the
second plain loop has all images in memory. The third one takes our own batches: beside it stands what our trainer
itself costs. Model, losses, batch size and precision are the same in all. In stage 1, which R2GenGPT does not have, the
plain loop draws and augments as ours does.

Images and tokens are those trained on; padding does not count. All take turns.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mini_run import CONFIG, MiniRun, Stopwatch, machine, mini_run, spread, stage1_task, stage2_task, unwatched
from numpy.typing import NDArray
from torch import nn
from torch.nn.functional import pad

from trrg_train.config import OptimConfig
from trrg_train.data.pixels import read_pixels
from trrg_train.data.sides import side_matrix
from trrg_train.data.study import label_matrix
from trrg_train.draws import Draw, Draws
from trrg_train.encodings import Encodings, Views, cached_encodings
from trrg_train.models.padding import pad_batch
from trrg_train.models.tokenizer import EOS_ID, PAD_ID
from trrg_train.stage1 import Stage1Batches
from trrg_train.stage2_batches import Stage2Batches
from trrg_train.trainer import STUDIES_KEY, fit, training_arguments

OURS, FROM_FILES, IN_MEMORY, OUR_BATCHES = (
    "trrg-train",
    "plain loop",
    "plain loop, images in memory",
    "plain loop over our batches",
)
Collator = Callable[[Sequence[Draw]], dict[str, Any]]
Arm = Callable[[], Stopwatch]


class FilePixels:
    """Images as a plain loop has them: read and preprocessed at each use."""

    def __init__(self, run: MiniRun) -> None:
        self.run = run

    def __getitem__(self, study: int) -> NDArray[np.float32]:
        return read_pixels(self.run.studies[study].image, self.run.preprocess)


class PlainStage2:
    """Batches of stage 2 from images and texts: the encoder runs here, reports are tokenised and padded here."""

    def __init__(self, run: MiniRun, pixels: FilePixels | NDArray[np.float16]) -> None:
        self.run = run
        self.pixels = pixels
        self.labels = torch.from_numpy(label_matrix(run.studies))
        self.sides = torch.from_numpy(side_matrix(run.studies))
        self.longest = max(len(run.first.tokenizer.encode(study.report).ids) for study in run.studies) + 1

    def __call__(self, draws: Sequence[Draw]) -> dict[str, Any]:
        studies = [draw.study for draw in draws]
        images = torch.from_numpy(np.stack([self.pixels[i] for i in studies]).astype(np.float32))
        with torch.no_grad():
            encoded = self.run.first.perceiver().encode_images(images)
        texts = [[*self.run.first.tokenizer.encode(self.run.studies[i].report).ids, EOS_ID] for i in studies]
        ids, mask = pad_batch(texts, max_length=self.longest)
        more = (0, self.longest - ids.shape[1])
        ids, mask = pad(ids, more, value=PAD_ID), pad(mask, more)
        scores = torch.full((len(studies), self.labels.shape[1]), -1.0)  # as the model perceives them
        return {
            "images": encoded,
            "override": scores,
            "report": (ids, mask, mask.bool()),
            "labels": self.labels[studies],
            "sides": self.sides[studies],
        }


def main(argv: list[str] | None = None) -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=CONFIG, help="default: train/configs/mini.toml")
    parser.add_argument("--data", type=Path, help="another folder than that of the configuration's first source")
    parser.add_argument("--studies", type=int, default=192)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--write", type=Path, help="write the page to this file too")
    args = parser.parse_args(argv)
    with contextlib.redirect_stdout(sys.stderr), tempfile.TemporaryDirectory() as folder:
        run = mini_run(args.config, args.data, studies=args.studies)
        first, second = stage1_arms(run, Path(folder)), stage2_arms(run, Path(folder))
        tables = [take_turns(arms, repeats=args.repeats) for arms in (first, second)]
    page = "\n".join(page_of(run, tables, repeats=args.repeats)) + "\n"
    sys.stdout.write(page)
    if args.write:
        args.write.parent.mkdir(parents=True, exist_ok=True)
        args.write.write_text(page, encoding="utf-8")
    return 0


def stage1_arms(run: MiniRun, folder: Path) -> dict[str, Arm]:
    """Each way to train stage 1 for one epoch."""
    fresh, optim, tokenizer = Fresh(stage1_task(run)), run.config.stage1.optim, run.first.tokenizer
    ours = Stage1Batches(run.studies, run.pixels, run.config, tokenizer)
    from_files = Stage1Batches(run.studies, FilePixels(run), run.config, tokenizer)
    return {
        OURS: lambda: trainer_epoch(run, fresh(), ours, optim, folder),
        FROM_FILES: lambda: plain_epoch(run, fresh(), from_files, optim),
        OUR_BATCHES: lambda: plain_epoch(run, fresh(), ours, optim),
    }


def stage2_arms(run: MiniRun, folder: Path) -> dict[str, Arm]:
    """Each way to train stage 2 for one epoch; the encodings are there, as in every epoch but the first."""
    stage, fresh = run.config.stage2, Fresh(stage2_task(run))
    views = Views(stage.views, run.config.seed)
    kept: Encodings = cached_encodings(run.first, run.embedded, run.pixels, views=views, cache=folder / "cache")
    ours = Stage2Batches(run.studies, kept, stage, run.first.tokenizer, seed=run.config.seed)
    return {
        OURS: lambda: trainer_epoch(run, fresh(), ours, stage.optim, folder),
        FROM_FILES: lambda: plain_epoch(run, fresh(), PlainStage2(run, FilePixels(run)), stage.optim),
        IN_MEMORY: lambda: plain_epoch(run, fresh(), PlainStage2(run, run.pixels), stage.optim),
        OUR_BATCHES: lambda: plain_epoch(run, fresh(), ours, stage.optim),
    }


class Fresh:
    """Gives the same task with the weights that it had at first, so that no arm goes on from where another led."""

    def __init__(self, task: nn.Module) -> None:
        self.task = task
        self.weights = copy.deepcopy(task.state_dict())

    def __call__(self) -> nn.Module:
        self.task.load_state_dict(self.weights)
        return self.task


def units(batch: Mapping[str, Any]) -> int:
    """Images of a batch of stage 1, tokens of the reports of a batch of stage 2."""
    return int(batch["report"][1].sum()) if "report" in batch else len(batch["pixels"])


def trainer_epoch(run: MiniRun, task: nn.Module, batches: Collator, optim: OptimConfig, folder: Path) -> Stopwatch:
    """One epoch of our trainer."""
    watch = Stopwatch(task, units)
    with tempfile.TemporaryDirectory(dir=folder) as steps:
        arguments = training_arguments(optim, Path(steps) / "steps", seed=run.config.seed)
        fit(task, draws_of(run), batches, arguments=arguments, resume=None, watch=unwatched(folder))
    watch.stop()
    return watch


def plain_epoch(run: MiniRun, task: nn.Module, batches: Collator, optim: OptimConfig) -> Stopwatch:
    """One epoch of a loop of a few lines."""
    task.train()
    optimizer = torch.optim.AdamW(task.parameters(), lr=optim.learning_rate)
    draws, size, watch = draws_of(run), optim.batch_size, Stopwatch(task, units)
    for start in range(0, len(draws), size):
        batch = batches([draws[k] for k in range(start, min(start + size, len(draws)))])
        batch.pop(STUDIES_KEY, None)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=optim.precision == "bf16"):
            loss = task(**batch)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    watch.stop()
    return watch


def draws_of(run: MiniRun) -> Draws:
    """The same studies in the same order for all."""
    return Draws(range(len(run.studies)), epochs=1, seed=run.config.seed)


def take_turns(arms: Mapping[str, Arm], *, repeats: int) -> dict[str, list[float]]:
    """Units a second of each arm in each repeat; every other repeat goes backwards."""
    rates: dict[str, list[float]] = {name: [] for name in arms}
    for repeat in range(repeats):
        for name in list(arms)[:: 1 if repeat % 2 == 0 else -1]:
            rates[name].append(arms[name]().units_per_second)
    return rates


def page_of(run: MiniRun, tables: list[dict[str, list[float]]], *, repeats: int) -> Iterator[str]:
    """The lines of the page."""
    studies, read = len(run.studies), seconds_to_read(run)
    yield "# The speed of training beside a plain loop\n\nMade by (do not edit):\n\n```bash"
    yield f"python tests/benchmarks/training_speed.py --studies {studies} --repeats {repeats} \\"
    yield "    --write tests/benchmarks/results/training_speed.md\n```\n"
    yield (__doc__ or "").split("\n\n", 2)[2]
    yield f"`{run.config.model.name}`, an epoch of {studies} phantoms, {repeats} turns: median (least to greatest). "
    yield from machine()
    for title, rates in zip(("Stage 1: images a second", "Stage 2: report tokens a second"), tables, strict=True):
        yield f"\n## {title}\n\n| | a second | trrg-train is faster by a factor of |\n|---|---|---|"
        for name, values in rates.items():
            ratios = [mine / theirs for mine, theirs in zip(rates[OURS], values, strict=True)]
            yield f"| {name} | {spread(values, 1)} | {'' if name == OURS else spread(ratios, 2)} |"
    yield "\n## What trrg-train pays for it\n"
    yield f"- Before its first epoch each image is read once ({read * 1e3:.0f} ms) and kept "
    yield f"({run.pixels.nbytes / studies / 2**10:.0f} KiB on disk); stage 2 also encodes each view once: see"
    yield "  `stage2_cache.md`."
    yield "- Augmentation of stage 2 is fixed at the start: a study is seen in "
    yield f"{run.config.stage2.views} views, where a loop with the encoder in it may have a new one each time."
    yield "- Each step looks at its loss, clips gradients and keeps a log, which a plain loop does not: the row "
    yield f'"{OUR_BATCHES}" is that loop without the cost.'


def seconds_to_read(run: MiniRun, count: int = 32) -> float:
    """Seconds to read and preprocess one image, the median of some."""
    pixels, times = FilePixels(run), []
    for study in range(min(count, len(run.studies))):
        start = time.perf_counter()
        pixels[study]
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
