"""Drafts on a GPU in ``decode.py``: real report text, replayed through a Llama of random weights.

The weights write nothing of sense, so the texts are those of the IU decoder and of people. Every pass is really made,
over the tokens and drafts of the text, and the choice is the text's: what drafts are worth is that of real report
text, what passes cost is this model's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from decode_llama import bandwidth_of
from decode_reports import KINDS, pages
from decode_writer import Task, Writer, Wrong
from iu_workload import PRECISIONS, Study, Workload, load_workload

from trrg_sdk.backends import open_backend
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.greedy import generate
from trrg_sdk.manifest import DecoderSpec


@dataclass(frozen=True)
class Replayed:
    """A writer that is still to be opened, in a process of its own.

    Attributes:
        texts: Folder of ``iu_decoder.py``.
        models: Folder of ``decode_models.make_models``.
        spec: Sizes of the decoder.
        precision: Of the decoder.
        kind: A key of ``KINDS``.
        studies: At most.
        threads: Of the processor.
    """

    texts: Path
    models: Path
    spec: DecoderSpec
    precision: str
    kind: str
    studies: int
    threads: int

    def open(self) -> Writer:
        """Open the decoder on the GPU, with prompts of as many random tokens as a study's has positions."""
        workload, table = load_workload(self.texts), np.load(self.models / "table.npy")
        graph, draws = self.models / "ours" / self.precision / "decoder.onnx", np.random.default_rng(0)
        tasks = []
        for study, text in self._written(workload):
            prompt = table[draws.integers(3, len(table), len(study.prompt))].astype(np.float32)
            tasks.append(Task(prompt, text))
        drafter = (Wrong if self.kind == "random" else StoreDrafter)(workload.store)
        decoder = open_backend(device="cuda", threads=self.threads).decoder(graph, self.spec)
        weights = sum(file.stat().st_size for file in graph.parent.iterdir())
        near_tie = NEAR_TIE[self.precision]
        return Writer(decoder, table, tasks, workload.eos, workload.limit, near_tie, drafter, weights)

    def _written(self, workload: Workload) -> Iterator[tuple[Study, tuple[int, ...]]]:
        """Studies, and what people or the IU decoder wrote about them."""
        if self.kind == "human":
            yield from ((study, study.text[: workload.limit]) for study in workload.studies[: self.studies])
            return
        decoder = workload.decoder("fp32", device="cpu", threads=self.threads)
        write = partial(generate, decoder, eos=workload.eos, max_new_tokens=workload.limit)
        for study in workload.distinct()[: self.studies]:
            yield study, write(prompt_embeds=study.prompt, token_embedding=workload.table).ids


def replay_page(
    texts: Path, models: Path, spec: DecoderSpec, *, threads: int, turns: int, studies: int
) -> Iterator[str]:
    """Write the tables.

    Args:
        texts: Folder of ``iu_decoder.py``.
        models: Folder of ``decode_models.make_models``.
        spec: Sizes of the decoder.
        threads: Of the processor.
        turns: That count.
        studies: At most.
    """
    bandwidth = partial(bandwidth_of, "cuda", threads)
    yield "### Drafts, replayed"
    yield " ".join((__doc__ or "").split("\n\n")[1].split())
    for kind, title in KINDS.items():
        yield f"#### {title}"
        opened = {
            f"ONNX Runtime {precision}": Replayed(texts, models, spec, precision, kind, studies, threads).open
            for precision in PRECISIONS["cuda"]
        }
        yield from pages(opened, bandwidth, threads=threads, turns=turns)
