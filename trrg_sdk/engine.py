"""The model of one bundle, opened on one device: pixels → clues and prompt → tokens → text."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.backends import Backend, open_decoder, open_graphs
from trrg_sdk.backends.base import Decoder, Divisible, Graph
from trrg_sdk.backends.batch import Batchable, BatchDecoder
from trrg_sdk.backends.large_pages import LargePages
from trrg_sdk.bundle import Bundle
from trrg_sdk.clues import Calibration, Clue, ClueEncoder, EncodedClues, heat_maps
from trrg_sdk.decoding.alike import passes_agree
from trrg_sdk.decoding.batch import BatchWriter, near_tie
from trrg_sdk.decoding.beam import search
from trrg_sdk.decoding.choice import NEAR_TIE, Token
from trrg_sdk.decoding.drafts import StoreDrafter
from trrg_sdk.decoding.greedy import Drafts, Generation, finish, write
from trrg_sdk.decoding.options import Decoding
from trrg_sdk.decoding.rules import Rules
from trrg_sdk.decoding.sampling import sample
from trrg_sdk.decoding.store import ReportStore, StoreArrays
from trrg_sdk.distance import open_judge
from trrg_sdk.errors import BundleError, DeviceError, UsageError
from trrg_sdk.manifest import GRAPH_NAMES
from trrg_sdk.report import ClueScores, GateReason

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Float32 = NDArray[np.float32]
DEFAULT = Decoding()
_PERCEIVING = ("vision", "fusion")
# Bytes of weights. Two threads that wait for each other at every layer of a small graph take a third more processor
# time than one (10 and 13 ms for the embedded one). In a large graph that is little, and a second copy much memory.
_SMALL = 64 << 20


class Perception(NamedTuple):
    """What the model saw.

    Attributes:
        scores: The C clue scores.
        heat: Clue → float32 (rows, columns), probability per patch.
        prompt: float32 (S, Dl), the embeddings that the decoder reads.
        against: What the gate says against reporting what was seen.
    """

    scores: ClueScores
    heat: dict[str, Float32]
    prompt: Float32
    against: tuple[GateReason, ...] = ()


class Engine:
    """The opened model. Its methods may be called from several threads; writing happens one at a time.

    Attributes:
        clues: The bundle's clues and the custom ones, encoded.
    """

    def __init__(
        self, bundle: Bundle, backend: Backend, *, clues: Sequence[Clue] = (), decoding: Decoding = DEFAULT
    ) -> None:
        """Start opening the graphs in the background; the first use waits for them and raises what went wrong.

        Args:
            bundle: Whose model.
            backend: Where it runs.
            clues: Custom ones. They are encoded here, so that a wrong one is refused here.
            decoding: How it writes. Drafts need a report store and a decoder that allows them, and are left out else.

        Raises:
            UsageError: A custom clue has a name that is taken or a prompt that is too long, or there are too many.
            BundleError: A file of the bundle is not what the manifest says.
        """
        self._manifest = bundle.manifest
        self._device = backend.device
        self._target = backend.target
        self._near_ties: dict[int, float] = {}  # slots → lead
        self._writing, self._sharing, self._trying = threading.Lock(), threading.Lock(), threading.Lock()
        self._alike: bool | None = None  # whether passes of any width agree, once that was tried
        on_a_gpu = backend.device.startswith(("cuda", "tensorrt"))
        self._pages = LargePages(0 if on_a_gpu else _weights(backend, bundle, GRAPH_NAMES))
        pool = ThreadPoolExecutor(4, thread_name_prefix="trrg-open")
        self._decoder = pool.submit(open_decoder, backend, bundle)
        self._decoding = decoding
        use = decoding.drafts and decoding.beams == 1
        self._drafts = pool.submit(_open_drafts, bundle, backend.target, self._decoder) if use else None
        self._graphs = pool.submit(open_graphs, backend, bundle, _PERCEIVING)
        self._singles: Mapping[str, Graph] | None = None
        self._open_singles = partial(_open_singles, backend, bundle)
        self._tokenizer: Future[Tokenizer] = pool.submit(_open_tokenizer, bundle.tokenizer_path)
        pool.shutdown(wait=False)
        self._token_embedding = bundle.token_embedding()
        self._judge = open_judge(bundle)
        self.clues = _bundled(bundle)
        if clues:
            self._check_room(len(self.clues.names) + len(clues))
            self.clues = self._with_custom(clues, bundle, backend)

    def wait(self, *, shared: bool = False) -> None:
        """Wait until everything is open.

        Args:
            shared: Also what perceives in several threads at once.

        Raises:
            BundleError: A file of the bundle is not what the manifest says.
            DeviceError: The device refuses a graph.
        """
        for opening in (self._graphs, self._decoder, self._tokenizer):
            opening.result()
        self._drafting()
        if shared:
            self._shared()

    def perceive(self, pixels: Float32, *, override: Float32, shared: bool = False) -> Perception:
        """Look at one image.

        Args:
            pixels: float32 (channels, size, size), preprocessed.
            override: float32 (1, C) of ``clues.override``.
            shared: Whether other threads do the same meanwhile: small graphs then take one thread each.

        Returns:
            Scores, heat maps and the prompt.

        Raises:
            DeviceError: The device gave values that are no numbers.
        """
        graphs = self._shared() if shared else self._graphs.result()
        seen = graphs["vision"].run({"pixels": pixels[None]})
        fused = graphs["fusion"].run({**seen, **self.clues.fusion_inputs(override)})
        if not all(np.isfinite(values).all() for values in fused.values()):
            raise DeviceError(f"the model gave values that are no numbers on device {self._device}; try device cpu")
        scores = self.clues.scores(fused["clue_logits"][0], override=override)
        heat = heat_maps(fused["clue_heat"][0], names=self.clues.names, grid=self._manifest.patch_grid)
        against = self._judge.against(pixels, seen["patches"][0]) if self._judge else ()
        return Perception(scores, heat, self._prompt(fused["prompt_embeds"][0]), against)

    def _shared(self) -> Mapping[str, Graph]:
        """The graphs for several threads that perceive at once; opened by the first one that asks."""
        with self._sharing:
            if self._singles is None:
                self._singles = self._open_singles() or self._graphs.result()
            return self._singles

    def write(self, prompt: Float32) -> Generation:
        """Write a report; see :meth:`writing`."""
        return finish(self.writing(prompt))

    def writing(self, prompt: Float32) -> Generator[tuple[Token, ...], None, Generation]:
        """Write a report and hand it out as it grows. Nobody else can write until it is finished or closed.

        Args:
            prompt: float32 (S, Dl).

        Yields:
            The tokens that became certain with a pass of the decoder.

        Returns:
            The whole text.
        """
        with self._writing:
            self._pages.before(1)
            drafts = self._drafting()
            decoder, table, beams = self._decoder.result(), self._token_embedding, self._decoding.beams
            if beams == 1:
                return (yield from write(decoder, prompt, table, self._rules(), drafts=drafts))
            text = search(decoder, prompt, table, self._rules(), beams=beams)
            yield tuple(map(Token, text.ids, text.logprobs))
            return text

    def sample(self, prompt: Float32, *, count: int, temperature: float, seed: int) -> list[Generation]:
        """Draw texts by chance; see :func:`trrg_sdk.decoding.sampling.sample`.

        Args:
            prompt: float32 (S, Dl).
            count: How many, at least 1.
            temperature: Positive.
            seed: The same one gives the same texts.

        Raises:
            UsageError: A value makes no sense.
        """
        if count < 1:
            raise UsageError(f"samples: expected at least 1, got {count}.")
        self._pages.before(count)
        draws, decoder, table, rules = np.random.default_rng(seed), self._decoder, self._token_embedding, self._rules()
        with self._writing:
            return [
                sample(decoder.result(), prompt, table, rules, temperature=temperature, draws=draws)
                for _ in range(count)
            ]

    def _rules(self) -> Rules:
        return self._decoding.rules(self._manifest.tokenizer.eos_token_id, self._manifest.decoding.max_new_tokens)

    def _drafting(self) -> Drafts | None:
        """What the next text may use. The first one, which has the decoder to itself, finds out how careful to be.

        Where the export saw passes of all widths agree over whole reports, they are tried on this machine once more: a
        few of them would agree by chance too, so that trial alone proves nothing.
        """
        drafts = self._drafts.result() if self._drafts else None
        if drafts is None or drafts.near_tie:
            return drafts
        with self._trying:  # threads that perceive may be here together
            if self._alike is None:
                self._alike = passes_agree(self._decoder.result(), self._token_embedding)
        precision = self._manifest.graph("decoder", target=self._target).precision
        return drafts if self._alike else drafts._replace(near_tie=NEAR_TIE[precision])

    def batch(self, slots: int) -> BatchWriter | None:
        """Open a writer of several reports together, with keys and values of its own; ``write`` can go on beside it.

        Args:
            slots: The most reports.

        Returns:
            The writer, or None with beams and where the decoder takes one report at a time.
        """
        decoder = self._decoder.result()
        self._pages.before(slots)
        greedy = self._decoding.beams == 1
        opened = decoder.batch(slots) if greedy and isinstance(decoder, Batchable) else None
        if opened is None:
            return None
        if slots not in self._near_ties:
            self._near_ties[slots] = self._near_tie_of(opened)
        return BatchWriter(opened, self._token_embedding, self._rules(), near_tie=self._near_ties[slots])

    def _near_tie_of(self, opened: BatchDecoder) -> float:
        """The lead below which a token of a batch is not trusted.

        In a graph whose passes of any width agree a single position goes through another attention than the rows of a
        batch: a trial might find them equal by chance, so there is none.
        """
        precision, drafts = self._manifest.graph("decoder", target=self._target).precision, self._manifest.drafts
        if drafts and drafts.near_tie == 0:
            return NEAR_TIE.get(precision, float("inf"))
        return near_tie(opened, self._token_embedding, precision)

    def text(self, ids: Sequence[int]) -> str:
        """Turn token ids into text."""
        return str(self._tokenizer.result().decode(list(ids)))

    def _prompt(self, fused: Float32) -> Float32:
        """Put the (N + C, Dl) of fusion and the instruction's tokens in the manifest's order: (S, Dl)."""
        spec = self._manifest.prompt
        rows, columns = self._manifest.patch_grid
        parts = {
            "prefix": self._token_embedding[list(spec.prefix_ids)],
            "visual": fused[: rows * columns],
            "clues": fused[rows * columns :],
            "suffix": self._token_embedding[list(spec.suffix_ids)],
        }
        return np.concatenate([parts[name] for name in spec.order]).astype(np.float32, copy=False)

    def _check_room(self, clues: int) -> None:
        room = self._manifest.decoder.max_length - self._manifest.decoding.max_new_tokens
        needed = self._manifest.prompt_length(clues)
        if needed > room:
            raise UsageError(
                f"this bundle's prompt has {room} positions, {clues} clues need {needed}; give {needed - room} fewer"
            )

    def _with_custom(self, clues: Sequence[Clue], bundle: Bundle, backend: Backend) -> EncodedClues:
        graph = open_graphs(backend, bundle, ("clue_encoder",))["clue_encoder"]
        tokenizer = self._tokenizer.result()
        encoder = ClueEncoder(
            graph.run,
            tokenize=lambda text: list(tokenizer.encode(text).ids),  # as in training: the file says which ones to add
            pad_id=self._manifest.tokenizer.pad_token_id,
            max_length=self._manifest.custom_clue.max_length,
        )
        spec = self._manifest.custom_clue
        calibration = Calibration(spec.scale, spec.offset, spec.threshold)
        return self.clues.extended(clues, encode=encoder.encode, calibration=calibration)


def _bundled(bundle: Bundle) -> EncodedClues:
    bank, specs = bundle.clue_bank(), bundle.manifest.clues
    return EncodedClues(
        tuple(spec.name for spec in specs),
        bank.positive,
        bank.negative,
        np.asarray([spec.scale for spec in specs], dtype=np.float32),
        np.asarray([spec.offset for spec in specs], dtype=np.float32),
        np.asarray([spec.threshold for spec in specs], dtype=np.float32),
    )


def _open_singles(backend: Backend, bundle: Bundle) -> dict[str, Graph] | None:
    """The graphs that perceive with one thread each; None where there is nothing to gain."""
    single = backend.single() if isinstance(backend, Divisible) else None
    small = single and _weights(single, bundle, _PERCEIVING) <= _SMALL
    return open_graphs(single, bundle, _PERCEIVING) if single and small else None


def _weights(backend: Backend, bundle: Bundle, names: Sequence[str]) -> int:
    """Bytes of graphs, with their external data."""
    named = tuple(backend.file(name, bundle.manifest) for name in names)
    return sum(spec.bytes for path, spec in bundle.manifest.files.items() if path.startswith(named))


def _open_drafts(bundle: Bundle, target: str, opening: Future[Decoder]) -> Drafts | None:
    """Open the report store; None where there is none, or where this decoder cannot use one."""
    spec, precision = bundle.manifest.drafts, bundle.manifest.graph("decoder", target=target).precision
    if spec is None or precision not in NEAR_TIE or not opening.result().all_rows:
        return None
    arrays = StoreArrays(*(bundle.array(array) for array in spec.arrays()))
    store = ReportStore(arrays, vocabulary=bundle.manifest.tokenizer.vocab_size, label=spec.tokens.file)
    return Drafts(StoreDrafter(store), max(spec.near_tie, NEAR_TIE[precision]) if spec.near_tie else 0.0)


def _open_tokenizer(path: Path) -> Tokenizer:
    from tokenizers import Tokenizer  # late: 50 ms that run beside the opening of the graphs

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a bare Exception for any unreadable file
        raise BundleError(f"{path.name} is no tokenizer; export the bundle again") from error
