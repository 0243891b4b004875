"""From a radiograph to a draft report: examine, write, verify."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from functools import partial
from threading import Event
from typing import NamedTuple

import numpy as np

from trrg_sdk.backends import open_backend, suited
from trrg_sdk.bundle import Bundle
from trrg_sdk.clues import Clue, Float32, heat_peaks
from trrg_sdk.decoding.batch import Finished
from trrg_sdk.decoding.greedy import Generation
from trrg_sdk.decoding.options import Decoding
from trrg_sdk.dicom import Source
from trrg_sdk.engine import DEFAULT, Engine, Perception
from trrg_sdk.errors import InputError
from trrg_sdk.examine import Examiner
from trrg_sdk.gate_codes import accepted
from trrg_sdk.labeler import label_sentence
from trrg_sdk.manifest import GRAPH_NAMES
from trrg_sdk.many import Outcome, Work, outcomes
from trrg_sdk.processors import physical_cores
from trrg_sdk.reading import Picture, Reading
from trrg_sdk.report import GenerationInfo, HeatPeak, Omission, Provenance, Report, Sentence
from trrg_sdk.sentences import Written, WrittenSentence, read_finished, read_tokens
from trrg_sdk.stopwatch import Stopwatch
from trrg_sdk.study import Selection
from trrg_sdk.uncertainty import Uncertainty, compare_texts
from trrg_sdk.verify import judge, omissions
from trrg_sdk.version import __version__

_LOG = logging.getLogger(__name__)
_BATCH_SIZE = 8


class Reporter:
    """Writes draft reports with one bundle on one device. May be used from several threads.

    Attributes:
        bundle: The bundle.
        device: The device that really runs it, such as ``"cpu"``.
        accept: Codes of the gate that are overridden.
    """

    def __init__(
        self,
        bundle: Bundle | str | os.PathLike[str] | None = None,
        *,
        device: str = "auto",
        threads: int | None = None,
        clues: Sequence[Clue] = (),
        decoding: Decoding = DEFAULT,
        accept: Iterable[str] = (),
    ) -> None:
        """Open a bundle. The graphs open in the background; the first report waits for them.

        Args:
            bundle: A bundle or its folder; None takes the one in this package. Its hashes are verified; whether it is
                signed, and by whom, is not looked at: that is ``trrg verify --key``.
            device: ``"auto"`` takes ``"cuda"`` where it works and runs this bundle's decoder, else ``"cpu"``; a named
                one that does not is an error. ``"openvino"``, ``"tensorrt"`` and ``"tensorrt-rtx"`` are taken only by
                name.
            threads: Processor threads a graph may use; None takes the physical cores.
            clues: What to look for besides the bundle's own clues.
            decoding: How reports are written. The default is greedy, with drafts where the bundle has a report store.
            accept: Codes of the gate to override (``trrg_sdk.gate_codes``); every report says where it was.

        Raises:
            BundleError: The bundle is missing, changed or unknown.
            DeviceError: The device does not work here.
            UsageError: A clue or an option makes no sense.
        """
        self.accept = accepted(accept)
        with ThreadPoolExecutor(1) as pool:  # importing the runtime and hashing the bundle take the same time
            backend = pool.submit(open_backend, device=device, threads=threads)
            self.bundle = _open_bundle(bundle)
            opened = suited(backend.result(), self.bundle.manifest, device=device, threads=threads)
        self.device = opened.device
        self._target = opened.target
        self._threads = threads
        self._engine = Engine(self.bundle, opened, clues=clues, decoding=decoding)
        self._examiner = Examiner(self.bundle, self._engine, self.accept)
        _LOG.info("bundle %s on device %s", self.bundle.manifest.bundle_id, self.device)

    def report(self, source: Source, *, clue_scores: Mapping[str, float] | None = None) -> Report:
        """Write a draft report about one study.

        Args:
            source: A path, a folder of one study, the bytes of a file or a function that gives them, a pydicom Dataset,
                or an array (H, W) in which larger is brighter.
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
        return self.read(source, clue_scores=clue_scores).report

    def read(self, source: Source, *, clue_scores: Mapping[str, float] | None = None) -> Reading:
        """Write a draft report and keep what filing it needs: whose study it is, the image and its heat maps.

        Args:
            source: As for ``report``.
            clue_scores: As for ``report``.

        Returns:
            The report and what the modules of ``trrg_sdk.outputs`` write from; it holds patient data.

        Raises:
            InputError, UsageError, BundleError, DeviceError: As for ``report``.
        """
        override = self._engine.clues.override(clue_scores)
        watch = Stopwatch()
        with watch.step("total"):
            selection, perception = self._examiner.examine(source, override, watch)
            with watch.step("decode"):
                generation = self._engine.write(perception.prompt)
            verified = self._verified(generation, perception, watch)
        report = self._composed(selection, perception, verified, watch)
        picture = self._examiner.picture(selection.radiograph, perception)
        return Reading(report, selection.radiograph.context, picture, datetime.now().astimezone())

    def stream(
        self, source: Source, *, clue_scores: Mapping[str, float] | None = None, cancel: Event | None = None
    ) -> Generator[Sentence | Report, None, None]:
        """Write a draft report and hand out its sentences as they are completed.

        A sentence comes when the next one begins. Until the report comes or the generator is closed, which also
        stops between two passes of the decoder, no other thread can write with this reporter.

        Args:
            source: As for :meth:`report`.
            clue_scores: As for :meth:`report`.
            cancel: When it is set, writing stops before the next pass of the decoder, and no report comes.

        Yields:
            Each sentence with its verdict, then the report, which :meth:`report` would have written too. Its timings
            hold the time that the caller took.

        Raises:
            TrrgError: As for :meth:`report`.
        """
        override = self._engine.clues.override(clue_scores)
        watch = Stopwatch()
        with watch.step("total"):
            selection, perception = self._examiner.examine(source, override, watch)
            with watch.step("decode"):
                told, generation = yield from self._growing(perception, cancel)
            if generation is None:
                return
            verified = self._verified(generation, perception, watch)
            yield from verified.sentences[told:]
        yield self._composed(selection, perception, verified, watch)

    def _growing(
        self, perception: Perception, cancel: Event | None
    ) -> Generator[Sentence, None, tuple[int, Generation | None]]:
        """Yield sentences while the text grows; return how many, and the text unless it was cancelled."""
        ids: list[int] = []
        logprobs: list[float] = []
        told, peaks = 0, heat_peaks(perception.heat)
        with closing(self._engine.writing(perception.prompt)) as writing:
            while not (cancel and cancel.is_set()):
                try:
                    tokens = next(writing)
                except StopIteration as done:
                    return told, done.value
                ids += [token.id for token in tokens]
                logprobs += [token.logprob for token in tokens]
                for item in read_finished(ids, logprobs, decode=self._engine.text, skip=told):
                    yield _judged(item, perception, peaks)
                    told += 1
        return told, None

    def _verified(self, generation: Generation, perception: Perception, watch: Stopwatch) -> _Verified:
        with watch.step("verify"):
            written = read_tokens(
                generation.ids, generation.logprobs, stopped=generation.stopped, decode=self._engine.text
            )
            peaks = heat_peaks(perception.heat)
            sentences = tuple(_judged(item, perception, peaks) for item in written.sentences)
            missing = omissions((item.labels for item in sentences), perception.scores, peaks=peaks)
        return _Verified(generation, written, sentences, missing)

    def _composed(self, selection: Selection, perception: Perception, verified: _Verified, watch: Stopwatch) -> Report:
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

    def uncertainty(
        self, source: Source, *, samples: int = 8, temperature: float = 1.0, seed: int = 0
    ) -> tuple[Report, Uncertainty]:
        """Write a report, then draw other texts for the same image by chance and see how far they agree with it.

        Args:
            source: As for :meth:`report`.
            samples: How many texts to draw.
            temperature: Of the draws; 1 draws what the model believes.
            seed: Of the draws.

        Returns:
            The report that :meth:`report` would have written, and how far the drawn texts agree.

        Raises:
            TrrgError: As for :meth:`report`; a value that makes no sense.
        """
        watch = Stopwatch()
        with watch.step("total"):
            selection, perception = self._examiner.examine(source, self._engine.clues.override(None), watch)
            with watch.step("decode"):
                generation = self._engine.write(perception.prompt)
            verified = self._verified(generation, perception, watch)
            with watch.step("sample"):
                drawn = self._engine.sample(perception.prompt, count=samples, temperature=temperature, seed=seed)
        texts = [self._engine.text(one.ids) for one in drawn]
        agreement = compare_texts([item.labels for item in verified.sentences], texts)
        return self._composed(selection, perception, verified, watch), agreement

    def report_many(
        self,
        sources: Iterable[Source],
        *,
        clue_scores: Mapping[str, float] | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        readings: bool = False,
        keep: Callable[[Picture], Picture] | None = None,
    ) -> Iterator[Outcome]:
        """Write reports of many studies, in order: the next ones are read while the texts are written together.

        The reports are those of ``report``, log-probabilities to rounding; a ``total`` is the sum of timings that
        overlap others'. Texts are written in the caller's thread, all else happens in threads that end with the
        iterator. At most ``2 * (batch_size + workers)`` studies are on their way: ``workers + 1`` decoded (with
        ``readings`` also those looked at, as ``keep`` leaves them), the others as given, with a prompt each. A decoder
        of one text at a time (beams, a GPU, a fixed batch axis) overlaps the rest. There are no drafts.

        Args:
            sources: As for ``report``; may be endless. One that makes its caller wait holds back the answers before it:
                give what comes from time to time a ``batch_size`` of 1.
            clue_scores: As for ``report``, for every study.
            batch_size: Texts to write together; None takes 8. With 1 nothing is read ahead and there is no thread.
            workers: Threads beside the caller's; None takes ``threads`` of this reporter - 1.
            readings: Whether outcomes hold what ``read`` gives, with patient data and the image.
            keep: With ``readings``: what is kept of an image once it was looked at, made in the threads; None: all.

        Returns:
            An outcome for each, in order. An input that cannot be reported is an outcome.

        Raises:
            UsageError: ``batch_size`` or ``workers`` is below 1, or a clue score makes no sense.
            Exception: Every other error, and those of ``sources``, in its place: after the outcomes before it.
        """
        override = self._engine.clues.override(clue_scores)
        keep = (keep or _whole) if readings else None
        look = partial(self._look, override=override, keep=keep, shared=batch_size != 1)
        work: Work[_Seen] = Work(look, self._finish, self._engine.batch)
        beside = max(1, (self._threads or physical_cores()) - 1) if workers is None else workers
        return outcomes(sources, work, batch_size=_BATCH_SIZE if batch_size is None else batch_size, workers=beside)

    def _look(
        self, source: Source, *, override: Float32, keep: Callable[[Picture], Picture] | None, shared: bool
    ) -> _Seen | InputError:
        """Read and perceive a source; the pixels are gone afterwards but for what is to be kept of them."""
        watch = Stopwatch()
        try:
            selection, perception = self._examiner.examine(source, override, watch, shared=shared)
        except InputError as error:
            return _bare(error)
        picture = keep(self._examiner.picture(selection.radiograph, perception)) if keep else None
        blank = replace(selection.radiograph, pixels=np.empty((0, 0), np.float32))
        return _Seen(selection._replace(radiograph=blank), perception, watch, picture)

    def _finish(self, seen: _Seen, written: Finished | None) -> Reading | InputError:
        """Make the report; where there is no text yet, write it alone."""
        if written is None or written.generation is None:
            with seen.watch.step("decode"):
                generation = self._engine.write(seen.prompt)
        else:
            generation = written.generation
            seen.watch.timings_ms["decode"] = round(written.seconds * 1e3, 3)
        try:
            verified = self._verified(generation, seen.perception, seen.watch)
        except InputError as error:
            return _bare(error)
        seen.watch.timings_ms["total"] = round(sum(seen.watch.timings_ms.values()), 3)
        report = self._composed(seen.selection, seen.perception, verified, seen.watch)
        return Reading(report, seen.selection.radiograph.context, seen.picture, datetime.now().astimezone())

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
    watch: Stopwatch
    picture: Picture | None

    @property
    def prompt(self) -> Float32:
        return self.perception.prompt


class _Verified(NamedTuple):
    generation: Generation
    written: Written
    sentences: tuple[Sentence, ...]
    omissions: tuple[Omission, ...]


def _open_bundle(bundle: Bundle | str | os.PathLike[str] | None) -> Bundle:
    if isinstance(bundle, Bundle):
        return bundle
    return Bundle.embedded() if bundle is None else Bundle.load(bundle)


def _whole(picture: Picture) -> Picture:
    return picture


def _judged(item: WrittenSentence, perception: Perception, peaks: Mapping[str, HeatPeak]) -> Sentence:
    labels = label_sentence(item.text)
    judgement = judge(labels, perception.scores, peaks=peaks)
    return Sentence(item.text, item.section, labels, judgement.verdict, judgement.evidence, item.logprob)


def _bare(error: InputError) -> InputError:
    """Cut off what would keep the image in memory."""
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
