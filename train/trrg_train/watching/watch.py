"""The callbacks of a run: TensorBoard, samples, progress, the best step, an early end."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from transformers import EarlyStoppingCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.integration_utils import TensorBoardCallback

from trrg_train.watching.progress import Progress
from trrg_train.watching.validation import Validation, write_aside

TENSORBOARD_FOLDER, SAMPLES_FOLDER = "tensorboard", "samples"


@dataclass(frozen=True)
class Watch:
    """How a stage is watched.

    Attributes:
        validation: What is measured on held-out studies.
        out: The run's folder; events go to ``tensorboard/STAGE``, sample reports to ``samples``.
        stage: ``"stage1"`` or ``"stage2"``.
        patience: Evaluations without a better one before the end; 0 trains on.
    """

    validation: Validation
    out: Path
    stage: str
    patience: int = 0

    @contextmanager
    def callbacks(self, arguments: TrainingArguments, *, step: int) -> Iterator[list[TrainerCallback]]:
        """Make the callbacks of this process; what they write is closed afterwards, whatever happened.

        Args:
            arguments: Of the Trainer.
            step: The step that the run goes on from; events of an earlier run after it are hidden.
        """
        made: list[TrainerCallback] = [SaveBest(), Progress()]
        if self.patience and arguments.load_best_model_at_end:
            made.append(EarlyStoppingCallback(early_stopping_patience=self.patience))
        if arguments.process_index == 0:
            with SummaryWriter(str(self.out / TENSORBOARD_FOLDER / self.stage), purge_step=step + 1) as writer:
                shown = ShowSamples(self.validation, writer, self.out / SAMPLES_FOLDER)
                yield [*made, TensorBoardCallback(writer), shown]
        else:
            yield made


class SaveBest(TrainerCallback):
    """Saves a step that is better than all before, whatever ``save_steps`` says: only a saved step can be chosen."""

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: Mapping[str, float] | None = None,
        **_: Any,
    ) -> None:
        """Compare with the best so far, which the Trainer updates later."""
        name = args.metric_for_best_model
        if name is None or metrics is None:
            return
        value, best = metrics[f"eval_{name}"], state.best_metric
        if best is None or (value > best if args.greater_is_better else value < best):
            control.should_save = True


class ShowSamples(TrainerCallback):
    """Sample reports beside their references, in TensorBoard and as one Markdown file an evaluation."""

    def __init__(self, validation: Validation, writer: Any, folder: Path) -> None:
        """Keep where to write; ``writer`` is the ``SummaryWriter`` of the stage."""
        self.validation = validation
        self.writer = writer
        self.folder = folder

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Write the samples of this step."""
        text = self.validation.sample_text()
        if text:
            self.writer.add_text("samples", text, state.global_step)
            write_aside(self.folder / f"step-{state.global_step:06d}.md", text)
