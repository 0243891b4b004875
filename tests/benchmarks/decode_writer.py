"""What the workloads ``mini`` and ``iu`` of ``decode.py`` time: reports without and with drafts, by our own loop."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from decode_llama import WIDTHS
from numpy.typing import NDArray

from trrg_sdk.backends import open_backend, open_decoder
from trrg_sdk.backends.base import Backend, Decoder
from trrg_sdk.backends.large_pages import LargePages
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding.alike import passes_agree
from trrg_sdk.decoding.choice import NEAR_TIE
from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.greedy import Drafts, Generation, generate
from trrg_sdk.decoding.store import ReportStore, StoreArrays, build_store
from trrg_sdk.dicom import load
from trrg_sdk.engine import Engine
from trrg_sdk.preprocess import Preprocess

if TYPE_CHECKING:
    from iu_workload import Workload

_CURVE_TURNS = 40
Prompt = NDArray[np.float32]


class Task(NamedTuple):
    """One report to write.

    Attributes:
        prompt: float32 (P, Dl).
        text: What is replayed; None lets the model write.
    """

    prompt: Prompt
    text: tuple[int, ...] | None = None


class Turn(NamedTuple):
    """All reports once without and once with drafts.

    Attributes:
        without: Seconds.
        drafted: Seconds, with drafts.
        tokens: Written, end tokens counted.
        passes: With drafts.
        equal: Reports whose tokens are the same both ways.
        distinct: Reports; those with the same tokens as another count once.
    """

    without: float
    drafted: float
    tokens: int
    passes: int
    equal: int
    distinct: int


class Wrong(StoreDrafter):
    """Guesses that are as sure as the store's, and wrong."""

    def line(self, written: Sequence[int]) -> Iterator[tuple[int, float]]:
        """Look up as always, and propose something else."""
        return ((token + 1 if token > 3 else 5, confidence) for token, confidence in super().line(written))


@dataclass
class Writer:
    """A decoder with reports to write, in a process of its own.

    Attributes:
        decoder: It.
        table: (V, Dl), token embeddings.
        tasks: Reports to write.
        eos: The end token.
        limit: The most tokens of a report.
        near_tie: Below which lead a token is decided again; 0 where passes of any width agree.
        drafter: Learns from turn to turn, as it does in a process that writes reports.
        weights: Bytes that a pass reads.
        on_cpu: Whether they lie in this machine's own memory.
    """

    decoder: Decoder
    table: NDArray[Any]
    tasks: list[Task]
    eos: int
    limit: int
    near_tie: float
    drafter: StoreDrafter
    weights: int
    on_cpu: bool

    def __post_init__(self) -> None:
        """Ask for large pages, as an engine does before its second text."""
        LargePages(self.weights if self.on_cpu else 0).before(2)

    def turn(self) -> Turn:
        """Write all reports both ways, report by report; a text that comes again does not count."""
        drafts = Drafts(self.drafter, self.near_tie)
        totals, passes, equal, tokens, texts = [0.0, 0.0], 0, 0, 0, set[tuple[int, ...]]()
        for task in self.tasks:
            (plain, text), (drafted, same) = (self._written(task, used) for used in (None, drafts))
            if text.ids in texts:
                continue
            texts.add(text.ids)
            totals[0] += plain
            totals[1] += drafted
            equal += text.ids == same.ids
            passes += same.passes
            tokens += len(text.ids) + 1
        return Turn(totals[0], totals[1], tokens, passes, equal, len(texts))

    def texts(self) -> list[tuple[int, ...]]:
        """The tokens of all reports, written with drafts: they change none."""
        drafts = Drafts(self.drafter, self.near_tie)
        return [tuple(self._written(task, drafts)[1].ids) for task in self.tasks]

    def _written(self, task: Task, drafts: Drafts | None) -> tuple[float, Generation]:
        decoder = self.decoder
        if task.text is not None:
            from iu_workload import Replay

            decoder = Replay(decoder, self.eos)
            decoder.about_to_write(task.text)
        start = time.perf_counter()
        text = generate(decoder, task.prompt, self.table, eos=self.eos, max_new_tokens=self.limit, drafts=drafts)
        return time.perf_counter() - start, text

    def curve(self) -> dict[int, float]:
        """Milliseconds of a pass after a prompt by the number of positions, widths taking turns."""
        rng, times = np.random.default_rng(0), {width: list[float]() for width in WIDTHS}
        prompt = self.tasks[0].prompt
        self.decoder.prefill(prompt)
        for _ in range(_CURVE_TURNS + 2):
            for width in WIDTHS:
                embeds = self.table[rng.integers(0, len(self.table), width)]
                start = time.perf_counter()
                self.decoder.read(embeds)
                times[width].append((time.perf_counter() - start) * 1e3)
                self.decoder.truncate(len(prompt))
        return {width: statistics.median(values[2:]) for width, values in times.items()}

    def noise(self) -> str:
        """How far leads move when a text is read several positions a pass: what ``NEAR_TIE`` rests on."""
        worst, leads, flips = 0.0, list[float](), 0
        for task in self.tasks:
            _, text = self._written(task._replace(text=None), None)
            ids, table = list(text.ids), self.table
            self.decoder.prefill(task.prompt)
            single = np.stack([self.decoder.step(table[token : token + 1]).copy() for token in ids])
            best = single.argmax(axis=1)[:, None]
            ordered = np.sort(single, axis=1)
            leads += (ordered[:, -1] - ordered[:, -2]).tolist()
            for width in WIDTHS[1:]:
                self.decoder.prefill(task.prompt)
                chunks = [ids[start : start + width] for start in range(0, len(ids), width)]
                rows = np.concatenate([self.decoder.read(table[chunk]).copy() for chunk in chunks])
                change = np.abs((rows - single) - np.take_along_axis(rows - single, best, axis=1))
                worst = max(worst, float(change.max()))
                flips += int((rows.argmax(axis=1)[:, None] != best).sum())
        below = float(np.mean(np.array(leads) < self.near_tie))
        ties = f"{below:.2%} of {len(leads)} below {self.near_tie:g}" if self.near_tie else "passes of any width agree"
        return f"{worst:.2g} | {flips} | {ties}"

    def size(self) -> int:
        """Bytes that a pass reads."""
        return self.weights


def open_mini(folder: Path | None, files: list[Path], *, device: str, threads: int) -> Writer:
    """Open a bundle's decoder; half of the images make a store where the bundle has none, the others are written.

    Args:
        folder: Of the bundle; None is the embedded one.
        files: DICOM files.
        device: ``"cpu"`` or ``"cuda"``.
        threads: For each graph.
    """
    bundle = Bundle.load(folder) if folder else Bundle.embedded()
    backend = open_backend(device=device, threads=threads)
    graph = bundle.manifest.graph("decoder", target=backend.target)
    decoder, table = open_decoder(backend, bundle), np.asarray(bundle.token_embedding())
    eos, limit = bundle.manifest.tokenizer.eos_token_id, bundle.manifest.decoding.max_new_tokens
    prompts = _prompts(bundle, backend, files)
    half = len(prompts) // 2
    if spec := bundle.manifest.drafts:
        arrays = StoreArrays(*(bundle.array(array) for array in spec.arrays()))
        near_tie = max(spec.near_tie, NEAR_TIE[graph.precision])
    else:
        texts = [generate(decoder, prompt, table, eos=eos, max_new_tokens=limit) for prompt in prompts[:half]]
        (arrays, _), near_tie = build_store([[*text.ids, eos] for text in texts], least=1), NEAR_TIE[graph.precision]
    store = ReportStore(arrays, vocabulary=len(table))
    weights = (bundle.folder / graph.file).stat().st_size
    near_tie = 0.0 if passes_agree(decoder, table) else near_tie
    tasks, drafter = [Task(prompt) for prompt in prompts[half:]], StoreDrafter(store)
    return Writer(decoder, table, tasks, eos, limit, near_tie, drafter, weights, on_cpu=device == "cpu")


def _prompts(bundle: Bundle, backend: Backend, files: list[Path]) -> list[Prompt]:
    """What the decoder reads for each image."""
    engine, preprocess = Engine(bundle, backend), Preprocess.from_manifest(bundle.preprocess)
    override, prompts = engine.clues.override(None), []
    for file in files:
        image = load(file)
        pixels = preprocess.apply(image.pixels, spacing_mm=image.pixel_size)
        prompts.append(engine.perceive(pixels, override=override).prompt)
    return prompts


def iu_tasks(workload: Workload, kind: str, studies: int | None) -> list[Task]:
    """What to write about the val studies; see :func:`open_iu`."""
    if kind == "human":
        return [Task(one.prompt, one.text[: workload.limit]) for one in workload.studies[:studies]]
    return [Task(one.prompt) for one in workload.distinct()[:studies]]


def open_iu(
    folder: Path, name: str, kind: str, *, device: str, studies: int | None, threads: int, least: int
) -> Writer:
    """Open a decoder of the IU reports.

    Args:
        folder: Of ``iu_decoder.py``.
        name: One of ``iu_workload.decoders``.
        kind: ``"own"``, ``"human"`` or ``"random"``; see ``decode_reports.KINDS``.
        device: ``"cpu"`` or ``"cuda"``.
        studies: At most, None for all: what the decoder writes once for each condition, what people wrote as it comes.
        threads: For the graph.
        least: In how many train reports a run of tokens stands that drafts are made of.
    """
    from iu_workload import UNTRIED, decoders, load_workload

    workload = load_workload(folder, least=least)
    precision, opened = next(
        (precision, opened) for known, precision, opened in decoders(workload, device, threads) if known == name
    )
    decoder = opened()
    tasks = iu_tasks(workload, kind, studies)
    near_tie = 0.0 if passes_agree(decoder, workload.table) else NEAR_TIE.get(precision, UNTRIED)
    drafter = (Wrong if kind == "random" else StoreDrafter)(workload.store)
    stored = workload.file(precision if name.startswith("ONNX") else "explicit").stat().st_size
    weights = stored // 2 if precision == "bf16" else stored
    on_cpu = device == "cpu"
    return Writer(decoder, workload.table, tasks, workload.eos, workload.limit, near_tie, drafter, weights, on_cpu)
