"""How both stages use ``transformers.Trainer``: its arguments, its loss terms, and what it must never do silently."""

from __future__ import annotations

import errno
import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trrg_sdk.errors import UsageError
from trrg_train.config import OptimConfig
from trrg_train.draws import Draw, Draws

log = logging.getLogger(__name__)

COMPLETE_FILE = "complete"
STUDIES_KEY = "studies"

Collator = Callable[[Sequence[Draw]], dict[str, Any]]


def training_arguments(optim: OptimConfig, folder: Path, *, seed: int) -> TrainingArguments:
    """Translate our few options.

    Args:
        optim: Of the stage.
        folder: Where resumable steps are kept (the last two).
        seed: Of initialisation; the order of the studies is that of :class:`~trrg_train.draws.Draws`.
    """
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=1,  # Draws lays all epochs end to end
        train_sampling_strategy="sequential",
        per_device_train_batch_size=optim.batch_size,
        learning_rate=optim.learning_rate,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_steps,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        logging_steps=optim.logging_steps,
        gradient_accumulation_steps=optim.accumulation_steps,
        bf16=optim.precision == "bf16",
        activation_checkpointing=optim.activation_checkpointing,
        save_steps=optim.save_steps,
        save_total_limit=2,
        seed=seed,
        use_cpu=not torch.accelerator.is_available(),  # bf16 on a CPU has to be asked for
        report_to=[],
        remove_unused_columns=False,
        dataloader_num_workers=0,
        label_names=["labels"],
        disable_tqdm=False,
    )


def fit(task: nn.Module, draws: Draws, batches: Collator, *, arguments: TrainingArguments, resume: bool) -> None:
    """Train to the end.

    Args:
        task: Its ``forward`` takes a batch and returns ``loss`` and the terms of it, each a scalar.
        draws: All studies of the run, in order.
        batches: Makes a batch; ``studies`` in it, a list of study ids, is for messages and never reaches the task.
        arguments: See :func:`training_arguments`.
        resume: Continue from the last step that was saved completely.

    Raises:
        UsageError: The loss is no finite number, the disk is full (what was saved before stays), or an earlier run's
            steps are there and were not asked for: a later --resume would take them for its own.
    """
    folder = Path(str(arguments.output_dir))
    if not resume and last_complete(folder):
        raise UsageError(f"{folder} holds steps of an earlier run: go on with --resume, or remove the folder")
    trainer = StudyTrainer(
        model=task,
        args=arguments,
        data_collator=batches,
        train_dataset=draws,
        callbacks=[MarkComplete()],
    )
    last = last_complete(folder) if resume else None
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except (OSError, SafetensorError, RuntimeError) as error:
        if not disk_is_full(error):
            raise
        kept = last_complete(folder)
        good = f"{kept.name} is complete and whole" if kept else "no step was saved before"
        raise UsageError(
            f"the disk of {folder} is full; {good}. Free some space and run again with --resume"
        ) from error


def checkpoint_activations(parts: Sequence[Any], settings: dict[str, Any]) -> None:
    """Switch activation checkpointing on in models of transformers.

    Raises:
        UsageError: A model cannot do it.
    """
    for part in parts:
        try:
            part.activation_checkpointing_enable(**settings)
        except ValueError as error:
            raise UsageError(f"set activation_checkpointing = false: {error}") from error


def last_complete(folder: Path) -> Path | None:
    """Return the newest saved step that was written to its end, and remove those that were not."""
    steps = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    for step in steps:
        if not (step / COMPLETE_FILE).is_file():
            log.warning("%s was not written to its end and is removed", step.name)
            shutil.rmtree(step)
    whole = [step for step in steps if step.is_dir()]
    return whole[-1] if whole else None


def disk_is_full(error: BaseException) -> bool:
    """Tell whether an error of torch, safetensors or the system means that the disk is full."""
    text = str(error).lower()
    known = ("no space left", f"os error {errno.ENOSPC}", "pytorchstreamwriter failed writing")
    return getattr(error, "errno", None) == errno.ENOSPC or any(words in text for words in known)


class MarkComplete(TrainerCallback):
    """Puts a mark into each saved step when everything of it is written: only such a step is resumed from."""

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Mark the step that was just saved."""
        if state.is_world_process_zero:
            (Path(str(args.output_dir)) / f"checkpoint-{state.global_step}" / COMPLETE_FILE).touch()


class StudyTrainer(Trainer):
    """The Trainer, with each term of the loss in its log, and an end at the first loss that is no number."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """See ``transformers.Trainer``."""
        super().__init__(*args, **kwargs)
        self.terms: dict[str, list[Tensor]] = defaultdict(list)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Keep the terms of the loss; refuse a loss that is not finite."""
        studies = inputs.pop(STUDIES_KEY)
        outputs = model(**inputs)
        loss = outputs["loss"]
        if not bool(torch.isfinite(loss)):
            raise UsageError(
                f"the loss is {loss.item()} in step {self.state.global_step + 1}; the batch holds the studies "
                f"{', '.join(studies)}. Look at them, or lower learning_rate"
            )
        for name, value in outputs.items():
            if name.endswith("_loss"):
                self.terms[name].append(value.detach())
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the mean of each term since the last entry."""
        means = {name: float(torch.stack(values).mean()) for name, values in self.terms.items()}
        self.terms.clear()
        super().log({**logs, **means}, start_time)
