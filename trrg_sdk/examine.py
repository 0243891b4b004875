"""From an input to what the model saw of the image that is reported: load, gate, preprocess, perceive, gate again."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from trrg_sdk.bundle import Bundle
from trrg_sdk.clues import Float32
from trrg_sdk.dicom import Radiograph, Source, load, load_study
from trrg_sdk.engine import Engine, Perception
from trrg_sdk.errors import InputError
from trrg_sdk.preprocess import Preprocess
from trrg_sdk.reading import Picture
from trrg_sdk.stopwatch import Stopwatch
from trrg_sdk.study import Selection, select


class Examined(NamedTuple):
    """The chosen image and what was seen of it."""

    selection: Selection
    perception: Perception


class Examiner:
    """Looks at studies with one model. May be used from several threads."""

    def __init__(self, bundle: Bundle, engine: Engine, accept: frozenset[str]) -> None:
        """Take the model and the codes of the gate that are overridden."""
        self._preprocess = Preprocess.from_manifest(bundle.preprocess)
        self._population = bundle.manifest.population
        self._engine = engine
        self._accept = accept

    def examine(self, source: Source, override: Float32, watch: Stopwatch, *, shared: bool = False) -> Examined:
        """Choose the image of a study that the gate accepts, before and after the model looked at it.

        Args:
            source: As for ``Reporter.report``.
            override: float32 (1, C), forced clue scores.
            watch: Takes the times of the steps.
            shared: Other threads are at work too, see :meth:`~trrg_sdk.engine.Engine.perceive`.

        Raises:
            InputError: It cannot be read, or no image of it may be reported.
            DeviceError: The device failed.
        """
        with watch.step("load"):
            candidates = _read(source)
        seen: dict[int, Perception] = {}
        while True:  # an image that the model's look speaks against gives way to the next one
            against = {place: perception.against for place, perception in seen.items()}
            with watch.step("gate"):
                selection = select(candidates, population=self._population, accept=self._accept, perceived=against)
            place = next(place for place, item in enumerate(candidates) if item is selection.radiograph)
            if place not in seen:
                seen[place] = self._perceive(selection.radiograph, override, watch, shared=shared)
                if seen[place].against:
                    continue
            return Examined(selection, seen[place])

    def picture(self, image: Radiograph, perception: Perception) -> Picture:
        """Keep the image with its heat maps."""
        size = self._preprocess.size
        top, left, rows, columns = self._preprocess.fitted_box(image.pixels.shape, spacing_mm=image.pixel_size)
        box = (top / size, left / size, rows / size, columns / size)
        height, width = image.pixel_size
        return Picture(image.pixels, perception.heat, box, height / width)

    def _perceive(self, image: Radiograph, override: Float32, watch: Stopwatch, *, shared: bool) -> Perception:
        with watch.step("preprocess"):
            pixels = self._preprocess.apply(image.pixels, spacing_mm=image.pixel_size)
        with watch.step("open"):  # 0 but for the first report
            self._engine.wait(shared=shared)
        with watch.step("perceive"):
            return self._engine.perceive(pixels, override=override, shared=shared)


def _read(source: Source) -> Sequence[Radiograph | InputError]:
    if isinstance(source, (str, os.PathLike)) and Path(source).is_dir():
        return load_study(source)
    return [load(source)]
