"""The arguments that both stages give to ``transformers.Trainer``."""

from __future__ import annotations

from pathlib import Path

from transformers import TrainingArguments

from trrg_train.config import OptimConfig


def training_arguments(optim: OptimConfig, folder: Path, *, seed: int) -> TrainingArguments:
    """Translate our few options.

    Args:
        optim: Of the stage.
        folder: Where resumable steps are kept (the last two).
        seed: Of sampling and initialisation.
    """
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=optim.epochs,
        per_device_train_batch_size=optim.batch_size,
        learning_rate=optim.learning_rate,
        weight_decay=optim.weight_decay,
        warmup_steps=optim.warmup_steps,
        lr_scheduler_type="cosine",
        max_grad_norm=1.0,
        logging_steps=20,
        save_steps=optim.save_steps,
        save_total_limit=2,
        seed=seed,
        report_to=[],
        remove_unused_columns=False,
        dataloader_num_workers=0,
        label_names=["labels"],
        disable_tqdm=False,
    )
