"""A run of mini.toml on a few phantoms, ready to be timed: what ``stage2_cache.py`` and ``training_speed.py`` share.

Weights are random: speed does not depend on them. Pixels lie in memory, as the trainer's memory map does after the
first pass. A step is timed from the start of one forward pass to the start of the next, so it holds the forward and
backward pass, the optimizer and the making of the next batch, and neither the start of a run nor its save at the end.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trrg_sdk.errors import UsageError
from trrg_sdk.labeler import OBSERVATIONS
from trrg_sdk.preprocess import Preprocess
from trrg_train.config import RunConfig, read_config
from trrg_train.data.grammar import prompts
from trrg_train.data.pixels import read_pixels
from trrg_train.data.sources import read_sources
from trrg_train.data.study import Study, label_matrix
from trrg_train.models.checkpoint import Checkpoint
from trrg_train.models.clue import BankedClue
from trrg_train.models.clue_bank import embed_bank, tokenize
from trrg_train.models.perceiver import Perceiver
from trrg_train.models.stored import CheckpointMeta
from trrg_train.models.tokenizer import train_tokenizer
from trrg_train.models.trrg import Trrg
from trrg_train.stage1 import Stage1Task, class_balance
from trrg_train.stage2 import Stage2Task, instruction_prompt
from trrg_train.watching.watch import Watch

REPOSITORY = Path(__file__).resolve().parents[2]
CONFIG = REPOSITORY / "train" / "configs" / "mini.toml"
DATA = REPOSITORY / "data" / "phantom"
FIRST_STEPS = 2
"""Left out of every figure: kernels are chosen and memory is taken in them."""


@dataclass(frozen=True)
class MiniRun:
    """What both stages need, without a trained weight."""

    config: RunConfig
    studies: list[Study]
    preprocess: Preprocess
    pixels: NDArray[np.float16]
    first: Checkpoint
    embedded: tuple[Tensor, Tensor]


def mini_run(config: Path, data: Path | None, *, studies: int) -> MiniRun:
    """Build a run on the first training studies of ``data``, or of the configuration's first source."""
    settings = read_config(config)
    source = settings.sources[0] if data is None else replace(settings.sources[0], path=data)
    settings = replace(settings, sources=(source,))
    train = [study for study in read_sources(settings.sources) if study.split == "train"][:studies]
    if len(train) < studies:
        raise UsageError(f"{studies} training studies are needed, {len(train)} are there")
    preprocess = Preprocess(size=settings.model.image_size, channels=1)
    pixels = np.stack([read_pixels(study.image, preprocess) for study in train]).astype(np.float16)
    bank = tuple(BankedClue(name, *prompts(name)) for name in OBSERVATIONS)
    texts = [study.report for study in train] + [text for clue in bank for text in (clue.positive, clue.negative)]
    tokenizer = train_tokenizer([*texts, settings.model.instruction], vocab_size=settings.stage1.vocab_size)
    torch.manual_seed(settings.seed)
    perceiver = Perceiver(settings.model, vocab_size=tokenizer.get_vocab_size()).eval()
    meta = CheckpointMeta(stage=1, clues=bank, preprocess=preprocess.to_manifest())
    first = Checkpoint(Path(), settings.model, tokenizer, meta, perceiver)
    with torch.no_grad():
        embedded = embed_bank(bank, perceiver, tokenizer, max_length=settings.model.max_text_length)
    return MiniRun(settings, train, preprocess, pixels, first, embedded)


def stage1_task(run: MiniRun) -> Stage1Task:
    """Stage 1 with weights of its own."""
    perceiver = Perceiver(run.config.model, vocab_size=run.first.tokenizer.get_vocab_size())
    texts = [clue.positive for clue in run.first.meta.clues] + [clue.negative for clue in run.first.meta.clues]
    tokens = tokenize(texts, run.first.tokenizer, max_length=run.config.model.max_text_length)
    balance = class_balance(label_matrix(run.studies), limit=run.config.stage1.max_positive_weight)
    return Stage1Task(perceiver, run.config.stage1, prompts=tokens, balance=balance)


def stage2_task(run: MiniRun) -> Stage2Task:
    """Stage 2 over the frozen perceiver of the run."""
    model = Trrg(
        run.config.model,
        vocab_size=run.first.tokenizer.get_vocab_size(),
        prompt=instruction_prompt(run.config.model.instruction, run.first.tokenizer),
        consistency_weight=run.config.stage2.consistency_weight,
    )
    model.perceiver.load_state_dict(run.first.perceiver().state_dict())
    model.freeze_perceiver()
    return Stage2Task(model, run.first.meta.clues, run.embedded)


class NothingMeasured:
    """A validation that takes no time."""

    def measure(self, task: Any, *, step: int) -> dict[str, float]:
        """Measure nothing."""
        return {}

    def scalars(self, task: Any) -> dict[str, float]:
        """Read nothing."""
        return {}

    def sample_text(self) -> str:
        """Show nothing."""
        return ""


def unwatched(folder: Path) -> Watch:
    """Train with no evaluation; events go to the folder."""
    return Watch(NothingMeasured(), folder, "timed")


class Stopwatch:
    """Notes when each forward pass of a task starts, what it is given, and the loss it gives."""

    def __init__(self, task: nn.Module, count: Callable[[dict[str, Any]], int]) -> None:
        """Count the units (images, tokens) of a step from the task's arguments."""
        self.starts: list[float] = []
        self.units: list[int] = []
        self.losses: list[float] = []
        self._count = count
        self._hooks = (
            task.register_forward_pre_hook(self._start, with_kwargs=True),
            task.register_forward_hook(self._end),
        )

    def _start(self, _task: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.starts.append(time.perf_counter())
        self.units.append(self._count(kwargs))

    def _end(self, _task: nn.Module, _args: tuple[Any, ...], outputs: dict[str, Tensor]) -> None:
        self.losses.append(float(outputs["loss"].detach()))

    def stop(self) -> None:
        """Stop noting."""
        for hook in self._hooks:
            hook.remove()

    @property
    def seconds_per_step(self) -> float:
        """Mean over all steps but the first and the last."""
        starts = self.starts[FIRST_STEPS:]
        return (starts[-1] - starts[0]) / (len(starts) - 1)

    @property
    def units_per_second(self) -> float:
        """Units a second over the same steps."""
        return statistics.mean(self.units[FIRST_STEPS:-1]) / self.seconds_per_step


def spread(values: Sequence[float], digits: int) -> str:
    """Median, and between brackets the least and the greatest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def machine(packages: Sequence[str] = ("torch", "transformers", "accelerate", "numpy")) -> Iterator[str]:
    """Lines on processor, threads and versions; nothing that names one machine's folders."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    kernels = torch.backends.cpu.get_cpu_capability()
    yield f"{named[0] if named else platform.machine()} ({kernels}), {torch.get_num_threads()} threads, Python "
    yield f"{platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}."
