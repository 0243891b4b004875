"""From a radiograph to a draft report: load, gate, preprocess, perceive, write, verify."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trrg_sdk.backends import open_backend
from trrg_sdk.bundle import Bundle
from trrg_sdk.clues import Clue, Float32, heat_peaks
from trrg_sdk.decoding.batch import Finished
from trrg_sdk.decoding.greedy import Generation
from trrg_sdk.dicom import Radiograph, Source, load, load_study
from trrg_sdk.engine import Engine, Perception
from trrg_sdk.errors import InputError, UsageError
from trrg_sdk.labeler import label_sentence
from trrg_sdk.manifest import GRAPH_NAMES
from trrg_sdk.many import Many, Work
from trrg_sdk.preprocess import Preprocess
from trrg_sdk.processors import physical_cores
from trrg_sdk.report import GenerationInfo, HeatPeak, Omission, Provenance, Report, Sentence
from trrg_sdk.sentences import Written, WrittenSentence, read_tokens
from trrg_sdk.study import Selection, select
from trrg_sdk.verify import judge, omissions
from trrg_sdk.version import __version__

_LOG = logging.getLogger(__name__)
_BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one input of ``report_many``: exactly one of ``report`` and ``error`` is there.

    Attributes:
        index: Place of the input, from 0.
        source: The input as it was given. Not in the ``repr``: it may hold a patient's name.
        report: The report, or None.
        error: Why there is none, or None. Its traceback is cut off: it would keep the image in memory.
    """

    index: int
    source: Source = field(repr=False)
    report: Report | None = None
    error: InputError | None = None


class Reporter:
    """Writes draft reports with one bundle on one device. May be used from several threads.

    Attributes:
        bundle: The bundle.
        device: The device that really runs it, such as ``"cpu"``.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        clues: Sequence[Clue] = (),
    ) -> None:
        """Open a bundle. The graphs open in the background; the first report waits for them.

        Args:
            bundle: A bundle or its folder; None takes the one in this package. Its hashes are verified; whether it is
                signed, and by whom, is not looked at: that is ``trrg verify --key``.
            device: ``"auto"`` takes the best of ``"cpu"`` and ``"cuda"`` that works; a named one that does not work is
                an error. ``"openvino"`` is taken only by name.
            threads: Processor threads a graph may use; None takes the physical cores.
            clues: What to look for besides the bundle's own clues.

        Raises:
            BundleError: The bundle is missing, changed or unknown.
            DeviceError: The device does not work here.
            UsageError: A clue or an option makes no sense.
        """
        with ThreadPoolExecutor(1) as pool:  # importing the runtime and hashing the bundle take the same time
            backend = pool.submit(open_backend, device=device, threads=threads)
            self.bundle = _open_bundle(bundle)
            opened = backend.result()
        self.device = opened.device
        self._target = opened.target
        self._threads = threads
        self._preprocess = Preprocess.from_manifest(self.bundle.preprocess)
        self._engine = Engine(self.bundle, opened, clues=clues)
        _LOG.info("bundle %s on device %s", self.bundle.manifest.bundle_id, self.device)

    def report(self, source: Source, *, clue_scores: Mapping[str, float] | None = None) -> Report:
        """Write a draft report about one study.

        Args:
            source: A path, a folder of one study, the bytes of a file, a pydicom Dataset, or an array (H, W) in which
                larger is brighter.
            clue_scores: Clue name → probability, 0 to 1, to force instead of what the image says. For experiments:
                the report then follows these scores, and says so.

        Returns:
            The report.

        Raises:
            InputError: The input cannot be read (``DicomError``) or may not be reported (``RefusedError``).
            UsageError: An unknown clue or a score outside 0 to 1.
            BundleError: A graph is not what the manifest says.
            DeviceError: The device failed.
        """
        override = self._engine.clues.override(clue_scores)
        watch = _Stopwatch()
        with watch.step("total"):
            selection = _choose(source, watch)
            perception = self._perceive(selection.radiograph, override, watch)
            with watch.step("decode"):
                generation = self._engine.write(perception.prompt)
            verified = self._verified(generation, perception, watch)
        return self._composed(selection, perception, verified, watch)

    def _verified(self, generation: Generation, perception: Perception, watch: _Stopwatch) -> _Verified:
        with watch.step("verify"):
            written = read_tokens(
                generation.ids, generation.logprobs, stopped=generation.stopped, decode=self._engine.text
            )
            peaks = heat_peaks(perception.heat)
            sentences = tuple(_judged(item, perception, peaks) for item in written.sentences)
            missing = omissions((item.labels for item in sentences), perception.scores, peaks=peaks)
        return _Verified(generation, written, sentences, missing)

    def _composed(self, selection: Selection, perception: Perception, verified: _Verified, watch: _Stopwatch) -> Report:
        generation, written = verified.generation, verified.written
        return Report(
            text=written.text,
            sentences=verified.sentences,
            clues=perception.scores,
            omissions=verified.omissions,
            gate=selection.gate,
            images=selection.images,
            notes=selection.radiograph.notes + written.notes,
            generation=GenerationInfo(tokens=len(generation.ids), stopped=generation.stopped),
            timings_ms=watch.timings_ms,
            provenance=self._provenance(),
        )

    def report_many(
        self,
        sources: Iterable[Source],
        *,
        clue_scores: Mapping[str, float] | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
    ) -> Iterator[Outcome]:
        """Write reports of many studies, in order: the next ones are read while the texts are written together.

        The reports are those of ``report``; only their timings differ: steps of several studies overlap, ``total`` is
        the sum of a study's own steps. Reading, perceiving and verifying happen in threads, which end with the
        iterator; writing happens in the caller's thread, as does the taking of sources. Any number of studies fits: at
        most ``2 * (batch_size + workers)`` are on their way, which is how far sources are taken ahead. Of those, up to
        ``workers`` are held as decoded images and the others as given, with a prompt each; ``batch_size`` texts have
        keys and values (``2 * layers * kv_heads * max_length * head_size`` numbers each). Where the decoder takes one
        text at a time (on a GPU, in a graph with a fixed batch axis) only reading and perceiving overlap
        with writing. No drafts are used in a batch: ONNX Runtime reads several positions of one text only.

        Args:
            sources: As for ``report``; may be endless. One that makes its caller wait holds back the answers before
                it, so give what comes from time to time a ``batch_size`` of 1.
            clue_scores: As for ``report``, for every study.
            batch_size: Texts to write together; None takes 8. With 1 nothing is read ahead and no thread is started:
                each outcome comes before the next source is taken.
            workers: Threads that read and perceive; None takes the ``threads`` of this reporter.

        Yields:
            An outcome for each, in order. An input that cannot be reported is an outcome.

        Raises:
            UsageError: ``batch_size`` or ``workers`` is below 1, or a clue score makes no sense.
            Exception: Every other error, and those of ``sources``, in its place: after the outcomes before it.
        """
        size = _count("batch_size", batch_size, _BATCH_SIZE)
        threads = _count("workers", workers, self._threads or physical_cores())
        override = self._engine.clues.override(clue_scores)
        return self._overlapped(sources, override, size, threads) if size > 1 else self._alone(sources, override)

    def _alone(self, sources: Iterable[Source], override: Float32) -> Iterator[Outcome]:
        for index, source in enumerate(sources):
            seen = self._look(source, override)
            answer = seen if isinstance(seen, InputError) else self._finish(seen, None)
            yield _outcome(index, source, answer)
            del source, seen, answer

    def _overlapped(
        self, sources: Iterable[Source], override: Float32, batch_size: int, workers: int
    ) -> Iterator[Outcome]:
        work: Work[Source, _Seen, Report] = Work(
            lambda source: self._look(source, override), self._finish, lambda: self._engine.batch(batch_size)
        )
        many = Many(sources, work, workers=workers, ahead=2 * (batch_size + workers))
        with closing(many.answers()) as answers:
            for answer in answers:
                yield _outcome(*answer)
                del answer

    def _look(self, source: Source, override: Float32) -> _Seen | InputError:
        """Read and perceive a source; the pixels are gone afterwards."""
        watch = _Stopwatch()
        try:
            selection = _choose(source, watch)
        except InputError as error:
            return _bare(error)
        perception = self._perceive(selection.radiograph, override, watch)
        blank = replace(selection.radiograph, pixels=np.empty((0, 0), np.float32))
        return _Seen(selection._replace(radiograph=blank), perception, watch)

    def _finish(self, seen: _Seen, written: Finished | None) -> Report | InputError:
        """Make the report; where there is no text yet, write it alone."""
        if written is None or written.generation is None:
            with seen.watch.step("decode"):
                generation = self._engine.write(seen.perception.prompt)
        else:
            generation = written.generation
            seen.watch.timings_ms["decode"] = round(written.seconds * 1e3, 3)
        try:
            verified = self._verified(generation, seen.perception, seen.watch)
        except InputError as error:
            return _bare(error)
        seen.watch.timings_ms["total"] = round(sum(seen.watch.timings_ms.values()), 3)
        return self._composed(seen.selection, seen.perception, verified, seen.watch)

    def _perceive(self, image: Radiograph, override: Float32, watch: _Stopwatch) -> Perception:
        with watch.step("preprocess"):
            pixels = self._preprocess.apply(image.pixels, spacing_mm=image.pixel_size)
        with watch.step("open"):  # 0 but for the first report
            self._engine.wait()
        with watch.step("perceive"):
            return self._engine.perceive(pixels, override=override)

    def _provenance(self) -> Provenance:
        manifest = self.bundle.manifest
        return Provenance(
            bundle_id=manifest.bundle_id,
            manifest_sha256=self.bundle.manifest_sha256,
            device=self.device,
            precision=self._precision(),
            sdk_version=__version__,
            intended_use=manifest.intended_use,
        )

    def _precision(self) -> str:
        """One word where all graphs share it, else that of each."""
        found = {name: self.bundle.manifest.graph(name, target=self._target).precision for name in GRAPH_NAMES}
        if len(set(found.values())) == 1:
            return found["decoder"]
        return ", ".join(f"{name} {precision}" for name, precision in found.items())


class _Seen(NamedTuple):
    """A study that was read and perceived; its radiograph has no pixels any more."""

    selection: Selection
    perception: Perception
    watch: _Stopwatch

    @property
    def prompt(self) -> Float32:
        return self.perception.prompt


class _Verified(NamedTuple):
    generation: Generation
    written: Written
    sentences: tuple[Sentence, ...]
    omissions: tuple[Omission, ...]


class _Stopwatch:
    """Wall-clock milliseconds of each step."""

    def __init__(self) -> None:
        self.timings_ms: dict[str, float] = {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Measure what runs inside."""
        start = time.perf_counter()
        yield
        self.timings_ms[name] = round((time.perf_counter() - start) * 1e3, 3)


def _open_bundle(bundle: Bundle | str | os.PathLike[str] | None) -> Bundle:
    if isinstance(bundle, Bundle):
        return bundle
    return Bundle.embedded() if bundle is None else Bundle.load(bundle)


def _choose(source: Source, watch: _Stopwatch) -> Selection:
    with watch.step("load"):
        if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
            candidates = load_study(source)
        else:
            candidates = [load(source)]
    with watch.step("gate"):
        return select(candidates)


def _judged(item: WrittenSentence, perception: Perception, peaks: Mapping[str, HeatPeak]) -> Sentence:
    labels = label_sentence(item.text)
    judgement = judge(labels, perception.scores, peaks=peaks)
    return Sentence(item.text, item.section, labels, judgement.verdict, judgement.evidence, item.logprob)


def _count(name: str, given: int | None, default: int) -> int:
    if given is not None and given < 1:
        raise UsageError(f"{name}: expected a whole number of at least 1, got {given}.")
    return default if given is None else given


def _bare(error: InputError) -> InputError:
    """Cut off what would keep the image in memory."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error


def _outcome(index: int, source: Source, answer: Report | InputError) -> Outcome:
    if isinstance(answer, InputError):
        return Outcome(index, source, error=answer)
    return Outcome(index, source, report=answer)
