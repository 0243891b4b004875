"""From a radiograph to a draft report: load, gate, preprocess, perceive, write, verify."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from trrg_sdk.backends import open_backend
from trrg_sdk.bundle import Bundle
from trrg_sdk.clues import Clue, Float32, heat_peaks
from trrg_sdk.decoding.greedy import Generation
from trrg_sdk.dicom import Radiograph, Source, load, load_study
from trrg_sdk.engine import Engine, Perception
from trrg_sdk.errors import InputError
from trrg_sdk.gate_codes import accepted
from trrg_sdk.labeler import label_sentence
from trrg_sdk.manifest import GRAPH_NAMES
from trrg_sdk.preprocess import Preprocess
from trrg_sdk.reading import Picture, Reading
from trrg_sdk.report import GenerationInfo, Omission, Provenance, Report, Sentence
from trrg_sdk.sentences import Written, read_tokens
from trrg_sdk.study import Selection, select
from trrg_sdk.verify import judge, omissions
from trrg_sdk.version import __version__

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one input of ``report_many``: exactly one of ``report`` and ``error`` is there.

    Attributes:
        index: Place of the input, from 0.
        source: The input as it was given. Not in the ``repr``: it may hold a patient's name.
        report: The report, or None.
        reading: The same with what filing it needs, or None; it holds patient data, and the whole image.
        error: Why there is none, or None. Its traceback is cut off: it would keep the image in memory.
    """

    index: int
    source: Source = field(repr=False)
    report: Report | None = None
    reading: Reading | None = field(default=None, repr=False)
    error: InputError | None = None


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
        accept: Iterable[str] = (),
    ) -> None:
        """Open a bundle. The graphs open in the background; the first report waits for them.

        Args:
            bundle: A bundle or its folder; None takes the one in this package. Its hashes are verified; whether it is
                signed, and by whom, is not looked at: that is ``trrg verify --key``.
            device: ``"auto"`` takes the best of ``"cpu"`` and ``"cuda"`` that works; a named one that does not work is
                an error. ``"openvino"`` is taken only by name.
            threads: Processor threads a graph may use; None takes the physical cores.
            clues: What to look for besides the bundle's own clues.
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
            opened = backend.result()
        self.device = opened.device
        self._target = opened.target
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
        watch = _Stopwatch()
        with watch.step("total"):
            selection = _choose(source, self.accept, watch)
            perception = self._perceive(selection.radiograph, override, watch)
            with watch.step("decode"):
                generation = self._engine.write(perception.prompt)
            with watch.step("verify"):
                written = _read(generation, self._engine)
                verified = _verify(written, perception)
        report = Report(
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
        context = selection.radiograph.context
        return Reading(report, context, self._picture(selection.radiograph, perception), datetime.now().astimezone())

    def report_many(self, sources: Iterable[Source]) -> Iterator[Outcome]:
        """Write reports one after the other, in order; nothing is kept, so any number of studies fits.

        Args:
            sources: As for ``report``; taken one at a time.

        Yields:
            An outcome for each. An input that cannot be reported is an outcome; every other error is raised.
        """
        for index, source in enumerate(sources):
            try:
                reading = self.read(source)
                outcome = Outcome(index, source, report=reading.report, reading=reading)
            except InputError as error:
                error.__traceback__ = error.__cause__ = error.__context__ = None
                outcome = Outcome(index, source, error=error)
            yield outcome

    def _perceive(self, image: Radiograph, override: Float32, watch: _Stopwatch) -> Perception:
        with watch.step("preprocess"):
            pixels = self._preprocess.apply(image.pixels, spacing_mm=image.pixel_size)
        with watch.step("open"):  # 0 but for the first report
            self._engine.wait()
        with watch.step("perceive"):
            return self._engine.perceive(pixels, override=override)

    def _picture(self, image: Radiograph, perception: Perception) -> Picture:
        size = self._preprocess.size
        top, left, rows, columns = self._preprocess.fitted_box(image.pixels.shape, spacing_mm=image.pixel_size)
        box = (top / size, left / size, rows / size, columns / size)
        height, width = image.pixel_size
        return Picture(image.pixels, perception.heat, box, height / width)

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


class _Verified(NamedTuple):
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


def _choose(source: Source, accept: frozenset[str], watch: _Stopwatch) -> Selection:
    with watch.step("load"):
        if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
            candidates = load_study(source)
        else:
            candidates = [load(source)]
    with watch.step("gate"):
        return select(candidates, accept=accept)


def _read(generation: Generation, engine: Engine) -> Written:
    return read_tokens(generation.ids, generation.logprobs, stopped=generation.stopped, decode=engine.text)


def _verify(written: Written, perception: Perception) -> _Verified:
    clues, peaks = perception.scores, heat_peaks(perception.heat)
    sentences = []
    for item in written.sentences:
        labels = label_sentence(item.text)
        judgement = judge(labels, clues, peaks=peaks)
        sentences.append(Sentence(item.text, item.section, labels, judgement.verdict, judgement.evidence, item.logprob))
    return _Verified(tuple(sentences), omissions((item.labels for item in sentences), clues, peaks=peaks))
