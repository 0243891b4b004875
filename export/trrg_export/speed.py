"""How long each component of a bundle takes on this machine, through the runtime that hospitals run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial

from trrg_export.reference import Feeds, Reference
from trrg_sdk.backends import Backend, Decoder, open_decoder, open_graphs
from trrg_sdk.bundle import Bundle

_WARM_UP = 2  # calls in which a runtime still takes memory and chooses kernels


@dataclass(frozen=True)
class Speed:
    """Medians in milliseconds, one study at a time.

    Attributes:
        vision: Pixels to patches.
        clue_encoder: All prompts of the bank at once.
        fusion: Patches and clues to the prompt.
        prefill: The language model reads the prompt.
        step: It writes one token.
    """

    vision: float
    clue_encoder: float
    fusion: float
    prefill: float
    step: float

    def report(self, tokens: float) -> float:
        """Milliseconds of a report of so many tokens, without reading the file."""
        return self.vision + self.fusion + self.prefill + tokens * self.step

    def table(self) -> dict[str, float]:
        """By component, three digits."""
        return {name: float(f"{value:.3g}") for name, value in asdict(self).items()}


def measure(bundle: Bundle, backend: Backend, reference: Reference, *, repeats: int = 20) -> Speed:
    """Time the components of a bundle.

    Args:
        bundle: Its manifest may be a draft.
        backend: Where it runs.
        reference: Whose inputs are used, in turn.
        repeats: Calls of each component after the first two, which are not counted.

    Returns:
        Medians.
    """
    feeds: Mapping[str, Feeds] = reference.feeds()
    graphs = open_graphs(backend, bundle, tuple(feeds))
    times = {}
    for name, inputs in feeds.items():
        graph = graphs[name]
        times[name] = timed([partial(graph.run, feed) for feed in inputs], repeats)
    decoder = open_decoder(backend, bundle)
    prefill = timed([partial(decoder.prefill, prompt) for prompt in reference.prompts], repeats)
    return Speed(**times, prefill=prefill, step=_step(decoder, reference, bundle, repeats))


def timed(calls: list[Callable[[], object]], repeats: int) -> float:
    """Median milliseconds of calls that are made in turn, the first two not counted."""
    taken = []
    for index in range(_WARM_UP + repeats):
        call = calls[index % len(calls)]
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1e3 * statistics.median(taken[_WARM_UP:])


def _step(decoder: Decoder, reference: Reference, bundle: Bundle, repeats: int) -> float:
    """Of steps that write PyTorch's own report of one study, from its prompt on."""
    study = max(range(len(reference.ids)), key=lambda index: len(reference.ids[index]))
    table = bundle.token_embedding()
    tokens = [table[token : token + 1] for token in reference.ids[study]]

    def written() -> float:
        decoder.prefill(reference.prompts[study])
        taken = []
        for embed in tokens[: decoder.free]:
            start = time.perf_counter()
            decoder.step(embed)
            taken.append(time.perf_counter() - start)
        return 1e3 * statistics.median(taken)

    return statistics.median(written() for _ in range(max(1, repeats // 4)))
