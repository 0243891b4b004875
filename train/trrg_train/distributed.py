"""What the processes of one run, started by ``accelerate launch`` or ``torchrun``, do together; alone, each is a no-op.

The gradients that DDP and FSDP apply are means over processes, and so are the losses that are logged. So every loss is
written such that its mean over processes, in value and in gradient, is the loss of the whole batch: the studies of all
processes in one step. With gradient accumulation the loss of a step is the mean of those of its batches.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn

LONGEST_WAIT = datetime.timedelta(days=1)
"""How long processes wait for the main one while it reads images and runs the frozen encoders."""


def join_processes() -> PartialState:
    """Find the other processes of the run.

    Returns:
        Who is who: ``is_main_process``, ``main_process_first()`` and ``wait_for_everyone()`` are used of it. What the
        main process has written in a folder must be there for all.
    """
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu, timeout=LONGEST_WAIT)


def processes() -> int:
    """Count the processes of the run."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process among those of the run, from 0."""
    return dist.get_rank() if processes() > 1 else 0


def wait_for_all() -> None:
    """Go on when every process is here; every process must call it."""
    if processes() > 1:
        dist.barrier()


@contextmanager
def on_accelerator(model: nn.Module) -> Iterator[None]:
    """Have a model on this process's accelerator, where there is one, and back on the CPU afterwards."""
    model.to(PartialState().device)
    try:
        yield
    finally:
        model.to("cpu")


def gather_rows(rows: Tensor) -> Tensor:
    """Put the rows of all processes together, in the order of their ranks; every process must call it.

    Args:
        rows: (n, ...), on the process's device; n may differ between processes.

    Returns:
        (sum of n, ...). Only the process's own rows carry a gradient: see :func:`gradient_of_whole`.
    """
    if processes() == 1:
        return rows
    counts = rows.new_zeros(processes(), dtype=torch.int64)
    counts[dist.get_rank()] = len(rows)
    dist.all_reduce(counts)
    padded = rows.new_zeros(int(counts.max()), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in range(processes())]
    dist.all_gather(parts, padded)
    parts = [part[:count] for part, count in zip(parts, counts.tolist(), strict=True)]
    parts[dist.get_rank()] = rows
    return torch.cat(parts)


def gradient_of_whole(loss: Tensor) -> Tensor:
    """Scale the gradient, not the value, of a loss that each process computed of the whole gathered batch.

    Each process differentiates it by its own rows alone, so the gradient is the sum over processes, of which DDP
    takes the mean.
    """
    return loss + (processes() - 1) * (loss - loss.detach())


def whole_mean(values: Tensor, counted: Tensor) -> Tensor:
    """Average over what counts in the whole batch; every process must call it.

    Args:
        values: Of any shape.
        counted: bool, of the same shape.

    Returns:
        A scalar, this process's sum over the mean count of a process: its mean over processes, in value and in
        gradient, is the mean over the whole batch. Zero when nothing counts.
    """
    values = values.float()  # of bf16, sums and counts would be rough
    count = counted.sum().float()
    if processes() > 1:
        dist.all_reduce(count)
        count = count / processes()
    return (values * counted).sum() / torch.where(count > 0, count, torch.ones_like(count))


def mean_over_processes(values: dict[str, float]) -> dict[str, float]:
    """Average named figures, the same names in each process; every process must call it."""
    if processes() == 1 or not values:
        return values
    names = sorted(values)
    row = torch.tensor([values[name] for name in names], device=PartialState().device)
    dist.all_reduce(row)
    return dict(zip(names, (row / processes()).tolist(), strict=True))
