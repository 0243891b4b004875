"""What an export takes from PyTorch, all of it at the beginning: afterwards neither it nor the model is needed.

Nothing here imports PyTorch; :mod:`trrg_export.pytorch_side` does the work, in processes of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from trrg_export.graph_plan import GraphPlan
from trrg_export.precision.int4 import Int4
from trrg_export.reference import Reference
from trrg_export.with_pytorch import with_pytorch
from trrg_sdk.manifest import DecoderSpec

_SIDE = "trrg_export.pytorch_side"


@dataclass(frozen=True)
class Wanted:
    """What is to be made of a checkpoint.

    Attributes:
        checkpoint: Its folder.
        folder: The bundle under construction: decoder, token embedding, clue bank and tokenizer are written to it.
        traces: Folder that gets one for each traced graph, see :mod:`trrg_export.trace`.
        studies: How many of the parity studies; None takes all.
        precision: Of the decoder, see :func:`trrg_export.decoder.write_decoder`.
        int4: How the language model gets its four bits, where it does.
        drafts: Whether it will read drafts.
    """

    checkpoint: Path
    folder: Path
    traces: Path
    studies: int | None
    precision: str
    int4: Int4
    drafts: bool


@dataclass(frozen=True)
class FromPytorch:
    """What was made of it, beside the files.

    Attributes:
        reference: What PyTorch gives for the parity studies.
        planned: The three graphs that were traced.
        decoder: Sizes of the language model's cache.
    """

    reference: Reference
    planned: Sequence[GraphPlan]
    decoder: DecoderSpec


def from_pytorch(wanted: Wanted) -> FromPytorch:
    """Run a checkpoint on its parity studies, trace its graphs and write what the bundle has of it.

    Raises:
        UsageError: No stage-2 checkpoint of the Llama family.
    """
    # Two processes: what the reference leaves in one is not held beside what tracing takes.
    reference = pytorch_reference(wanted.checkpoint, wanted.studies)
    planned, decoder = with_pytorch(_SIDE, "make", wanted, reference)
    return FromPytorch(reference, planned, decoder)


def pytorch_reference(checkpoint: Path, studies: int | None) -> Reference:
    """Run a checkpoint on its parity studies, and let it go.

    Args:
        checkpoint: Folder of a stage-2 checkpoint.
        studies: How many of them; None takes all.

    Raises:
        UsageError: No stage-2 checkpoint of the Llama family.
    """
    reference: Reference = with_pytorch(_SIDE, "reference_of", checkpoint, studies)
    return reference
