"""The mean of the weights of several saved steps of one training."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors.torch import load_model
from torch import Tensor, nn

from trrg_sdk.errors import UsageError
from trrg_train.resume import COMPLETE_FILE, step_of

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"


def average_steps(task: nn.Module, folder: Path, *, count: int) -> None:
    """Give a task the mean of the weights of its last saved steps (Izmailov et al. 2018, arXiv:1803.05407).

    The statistics of BatchNorm are averaged like weights; whole numbers are those of the last step.

    Args:
        task: As it was trained, on the CPU.
        folder: Of the saved steps.
        count: How many of them, from the last backwards.

    Raises:
        UsageError: So many were not saved, or they are spread over processes (FSDP).
    """
    saved = sorted((mark.parent for mark in folder.glob(f"checkpoint-*/{COMPLETE_FILE}")), key=step_of)[-count:]
    if len(saved) < count or not all((step / WEIGHTS).is_file() for step in saved):
        raise UsageError(
            f"average = {count} needs so many steps in {folder}, each with its {WEIGHTS}: {len(saved)} are there. "
            "Lower save_steps or average; under FSDP there is no such file, set average = 0"
        )
    mean: dict[str, Tensor] = {}
    for number, step in enumerate(saved, start=1):
        load_model(task, step / WEIGHTS)
        for name, value in task.state_dict().items():
            if torch.is_floating_point(value):
                mean[name] = mean[name].lerp_(value, 1 / number) if number > 1 else value.clone()
    task.load_state_dict(mean, strict=False)
    log.info("the mean of %d steps, from %d to %d, is kept", count, step_of(saved[0]), step_of(saved[-1]))
