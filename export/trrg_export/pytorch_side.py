"""The steps of an export that need PyTorch and the checkpoint's model.

The checkpoint is read anew for each: weights are mapped from the file, and what a step reads is in memory until its
end.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np

from trrg_export import describe
from trrg_export.decoder import check_family, decoder_spec, write_decoder
from trrg_export.from_pytorch import Wanted
from trrg_export.graph_plan import GraphPlan
from trrg_export.memory import apart, released
from trrg_export.pytorch_run import run_pytorch
from trrg_export.reference import Reference
from trrg_export.to_onnx import checkpoint_plans, write_trace
from trrg_sdk.manifest import DecoderSpec
from trrg_train.models.checkpoint import Checkpoint, load_checkpoint
from trrg_train.models.trrg import Trrg

_LOG = logging.getLogger(__name__)


@apart()
def make(wanted: Wanted, reference: Reference) -> tuple[tuple[GraphPlan, ...], DecoderSpec]:
    """Trace the graphs, build the decoder and write the arrays, see :func:`trrg_export.from_pytorch.from_pytorch`.

    Args:
        wanted: What is to be made.
        reference: Of the same checkpoint.

    Returns:
        What the traced graphs take and give, and the sizes of the decoder's cache.
    """
    loaded = load_checkpoint(wanted.checkpoint)  # its weights are not read, but for the token embedding
    planned = _traced(loaded, wanted.traces)
    _LOG.info("building decoder")
    with released():
        path = wanted.folder / describe.graph_file("decoder")
        path.parent.mkdir(parents=True)
        drafts = wanted.drafts and loaded.train_reports() is not None
        write_decoder(loaded, path, precision=wanted.precision, int4=wanted.int4, reference=reference, drafts=drafts)
    with released():
        _write_arrays(load_checkpoint(wanted.checkpoint), reference, wanted.folder)
    return planned, _decoder_spec(loaded)


def reference_of(checkpoint: Path, studies: int | None) -> Reference:
    """See :func:`trrg_export.from_pytorch.pytorch_reference`."""
    with released():
        loaded = load_checkpoint(checkpoint)
        check_family(loaded.trrg().llm)
        _LOG.info("running PyTorch on the parity studies")
        return run_pytorch(loaded, loaded.parity_pixels()[:studies], _anew(checkpoint))


def _anew(checkpoint: Path) -> Callable[[], Trrg]:
    return lambda: load_checkpoint(checkpoint).trrg()


def _traced(loaded: Checkpoint, traces: Path) -> tuple[GraphPlan, ...]:
    planned = checkpoint_plans(loaded, _anew(loaded.folder))
    for plan in planned:
        _LOG.info("tracing %s", plan.name)
        (traces / plan.name).mkdir()
        write_trace(plan, traces / plan.name)
    return tuple(GraphPlan(plan.name, plan.inputs, plan.outputs) for plan in planned)


def _decoder_spec(checkpoint: Checkpoint) -> DecoderSpec:
    prompt, longest = describe.prompt_length(checkpoint), checkpoint.meta.max_new_tokens
    return decoder_spec(checkpoint.trrg().llm, prompt=prompt, max_new_tokens=longest)


def _write_arrays(checkpoint: Checkpoint, reference: Reference, folder: Path) -> None:
    """Write tokenizer, token embedding and clue bank; the bank as PyTorch has embedded it for the reference."""
    shutil.copyfile(checkpoint.folder / "tokenizer.json", folder / describe.TOKENIZER)
    table = checkpoint.trrg().llm.get_input_embeddings().weight.detach().float().numpy()
    np.save(folder / describe.TOKEN_EMBEDDING, np.ascontiguousarray(table))
    # numpy dates the members of the archive 1980-01-01: the same arrays give the same bytes.
    bank = reference.clue_inputs
    np.savez(folder / describe.CLUE_BANK, positive=bank["clue_positive"], negative=bank["clue_negative"])
