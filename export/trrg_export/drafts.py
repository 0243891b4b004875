"""The report store of a bundle: made from the training reports, and proven to change no report.

What the store holds is text of the training reports: short runs of words that stand in at least so many of them. A
checkpoint without its reports, or with too few of them, gives a bundle without drafts.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trrg_export.comparing_backend import comparing_backend
from trrg_export.parity import ParityError
from trrg_export.precision import HALF
from trrg_export.reference import Reference
from trrg_sdk.backends import open_decoder
from trrg_sdk.backends.base import Decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.greedy import Drafts, generate
from trrg_sdk.decoding.store import ORDER, ReportStore, StoreArrays, build_store
from trrg_sdk.manifest import ArraySpec, DraftsSpec
from trrg_train.models.stored import StoredCheckpoint
from trrg_train.models.tokenizer import EOS_ID

_LOG = logging.getLogger(__name__)
_FOLDER = "drafts"
_WIDTHS = (2, 5, 16)  # positions of the passes that are compared with passes of one
_TOKENS = 1000  # of reports, for passes to be said to agree: in 8 bits single positions often agree by chance
_SAFETY = 3.0  # times the largest change of a lead that was seen


def add_drafts(bundle: Bundle, checkpoint: StoredCheckpoint, reference: Reference, *, least: int) -> DraftsSpec | None:
    """Write ``drafts/`` and prove on the parity studies that reports are the same with it.

    Args:
        bundle: Under construction, with its decoder.
        checkpoint: Of stage 2.
        reference: Its parity studies.
        least: In how many training reports a run of tokens must stand.

    Returns:
        What the manifest says about it, or None where there is nothing to draft from.

    Raises:
        ParityError: A report differs, which must not happen.
    """
    if (reports := checkpoint.train_reports()) is None:
        _LOG.info("no drafts: the checkpoint has no training reports (an older trrg-train wrote it)")
        return None
    arrays, held_by = build_store(reports, least=least)
    if len(arrays.tokens) == 1:
        _LOG.info("no drafts: no token stands in %d training reports", least)
        return None
    precision = bundle.manifest.graphs["decoder"].precision
    decoder = open_decoder(comparing_backend(precision), bundle)
    if not decoder.all_rows:
        _LOG.info("no drafts: the decoder gives the logits of the last position only")
        return None
    table = bundle.token_embedding()
    change = largest_change(decoder, table, reference)
    # What this processor computes of fp16 says little about the GPUs that it is made for.
    enough = sum(map(len, reference.ids)) >= _TOKENS and precision not in HALF
    near_tie = 0.0 if enough and change == 0 else max(NEAR_TIE[precision], _SAFETY * change)
    spec = dataclasses.replace(_write(arrays, bundle.folder), near_tie=near_tie)
    store = ReportStore(arrays, vocabulary=bundle.manifest.tokenizer.vocab_size)
    drafts = Drafts(StoreDrafter(store), near_tie)
    _prove(decoder, table, reference, drafts, limit=checkpoint.meta.max_new_tokens)
    text = _described(len(store) - 1, len(reports), held_by)
    _LOG.info("drafts: %s", text)
    return dataclasses.replace(spec, text=text)


def _described(runs: int, reports: int, held_by: int) -> str:
    """What text a store holds."""
    where = f"at least {held_by} of the {reports} training reports" if held_by > 1 else "the training reports"
    return f"runs of up to {ORDER + 1} tokens that stand in {where}: {runs} runs, and what follows each most often"


def largest_change(decoder: Decoder, table: NDArray[np.floating], reference: Reference) -> float:
    """Measure how far a lead moves when several positions are read in one pass, the first ones with the prompt.

    Args:
        decoder: Of the bundle.
        table: (V, Dl), token embeddings.
        reference: Prompts, and the tokens that are read after them.
    """
    worst = 0.0
    for prompt, ids in zip(reference.prompts, reference.ids, strict=True):
        if not ids:
            continue
        decoder.prefill(prompt)
        single = np.stack([decoder.step(table[token : token + 1]).copy() for token in ids])
        best = single.argmax(axis=1)[:, None]
        for width in _WIDTHS:
            first, *others = _chunks(ids, width)
            with_prompt = np.concatenate([prompt, table[list(first)]])
            rows = [decoder.prefill(with_prompt, rows=1 + len(first))[1:].copy()]
            rows += [decoder.read(table[list(some)]).copy() for some in others]
            change = np.concatenate(rows) - single
            worst = max(worst, float(np.abs(change - np.take_along_axis(change, best, axis=1)).max()))
    return worst


def _chunks(ids: tuple[int, ...], width: int) -> Iterator[tuple[int, ...]]:
    return (ids[start : start + width] for start in range(0, len(ids), width))


def _prove(decoder: Decoder, table: NDArray[np.floating], reference: Reference, drafts: Drafts, *, limit: int) -> None:
    texts = {
        name: [
            generate(decoder, prompt, table, eos=EOS_ID, max_new_tokens=limit, drafts=used).ids
            for prompt in reference.prompts
        ]
        for name, used in (("with", drafts), ("without", None))
    }
    if differing := sum(a != b for a, b in zip(texts["with"], texts["without"], strict=True)):
        raise ParityError([f"{differing} of {len(reference.prompts)} reports are others with drafts than without"])


def _write(arrays: StoreArrays, folder: Path) -> DraftsSpec:
    (folder / _FOLDER).mkdir()
    specs = {}
    for name, array in arrays._asdict().items():
        specs[name] = ArraySpec(f"{_FOLDER}/{name}.npy", str(array.dtype), array.shape)
        np.save(folder / specs[name].file, array)
    return DraftsSpec(**specs, near_tie=0.0, text="")
