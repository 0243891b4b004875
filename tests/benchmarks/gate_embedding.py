"""What a bundle's gate says of images, by their grey values and by their distance to the training films.

    python -m tests.benchmarks.gate_embedding [--bundle BUNDLE] [--config TOML] [--films 150] [--count 50]

Every image is judged as if its file said nothing. Chest films are those of the split ``test`` of CONFIG, whose patients
are in no training. Hands, skulls, breasts, knees and pelves are DRAWN (tests/benchmarks/drawn_bodies.py); files of
other modalities are the shared ones. Prints Markdown.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.benchmarks.drawn_bodies import BODIES
from tests.benchmarks.gate_photometry import written_page
from trrg_export.distance import varied
from trrg_sdk import gate
from trrg_sdk.backends import Graph, onnxruntime, open_graphs
from trrg_sdk.bundle import Bundle
from trrg_sdk.dicom import load
from trrg_sdk.distance import Judge, open_judge
from trrg_sdk.errors import DicomError, InputError
from trrg_sdk.photometry import look
from trrg_sdk.preprocess import Preprocess
from trrg_train.config import read_config
from trrg_train.data.pixels import is_plain, read_plain
from trrg_train.data.sources import read_sources

ROOT = Path(__file__).resolve().parents[2]
Film = NDArray[np.float32]

TURNS: dict[str, Callable[[Film], NDArray[Any]]] = {
    "inverted": lambda film: film.max() - film,
    "upside down": lambda film: film[::-1, ::-1],
    "rows reversed": lambda film: film[::-1],
    "turned left": lambda film: np.rot90(film, 1),
    "turned right": lambda film: np.rot90(film, 3),
}


class Gate:
    """Both looks of a bundle's gate, apart."""

    def __init__(self, bundle: Bundle) -> None:
        """Open the vision graph."""
        judge = open_judge(bundle)
        assert judge is not None, "the bundle has no distance"
        self.judge: Judge = judge
        self.preprocess = Preprocess.from_manifest(bundle.preprocess)
        backend = onnxruntime.open_backend(device="cpu", threads=1)
        self.vision: Graph = open_graphs(backend, bundle, ("vision",))["vision"]
        self.seconds: list[float] = []

    def refuses(self, film: Film) -> tuple[bool, bool]:
        """Whether the grey values, and whether the distance, speak against it."""
        try:
            pixels = self.preprocess.apply(film)
        except InputError:
            return True, True
        patches = self.vision.run({"pixels": pixels[None]})["patches"][0]
        start = time.thread_time()
        far = bool(self.judge.against(pixels, patches))
        self.seconds.append(time.thread_time() - start)
        return bool(gate.judge(look(film))), far


def test_films(config: Path, count: int) -> dict[str, list[Film]]:
    """Films of patients who are in no training, by source; at most ``count`` of each."""
    films: dict[str, list[Film]] = {}
    for study in read_sources(read_config(config).sources):
        if study.split == "test" and len(films.get(study.source, ())) < count:
            film = read_plain(study.image) if is_plain(study.image) else load(study.image).pixels
            films.setdefault(study.source, []).append(film)
    return films


def changed(film: Film, rng: np.random.Generator) -> Film:
    """The film turned a little, cut, with bars beside it and another curve of greys."""
    low, high = np.percentile(film, (0.5, 99.5))
    plain = np.round(255 * np.clip((film - low) / (high - low), 0, 1)).astype(np.uint8)
    rows, columns = (max(plain.shape) - side for side in plain.shape)
    square = np.pad(plain, ((rows // 2, rows - rows // 2), (columns // 2, columns - columns // 2)))
    return varied(square, rng).astype(np.float32)


def noises() -> dict[str, Callable[[np.random.Generator], Film]]:
    """Kinds of image without a subject."""

    def coarse(low: int, high: int) -> Callable[[np.random.Generator], Film]:
        def make(rng: np.random.Generator) -> Film:
            grid = rng.random((int(rng.integers(low, high)),) * 2).astype(np.float32)
            return np.asarray(Image.fromarray(grid).resize((512, 512), Image.Resampling.BICUBIC))

        return make

    return {
        "noise, each pixel its own": lambda rng: rng.normal(size=(512, 512)).astype(np.float32),
        "noise, grains of 6 to 40 pixels": coarse(12, 90),
        "noise, clouds": coarse(3, 12),
        "page of writing": written_page,
    }


def files(folder: Path) -> dict[str, list[Film]]:
    """Shared files of other kinds than CR and DX of the chest, by modality."""
    found: dict[str, list[Film]] = {}
    for path in sorted(folder.glob("*")):
        try:
            film = load(path)
        except DicomError:
            continue
        chest = film.modality in ("CR", "DX") and film.body_part in ("CHEST", "")
        if min(film.pixels.shape) >= gate.MIN_SIDE:
            kind = "chest film, a file of its own" if chest else f"file, modality {film.modality or 'not said'}"
            found.setdefault(kind, []).append(film.pixels)
    return found


def kinds(films: dict[str, list[Film]], shared: Path, count: int) -> Iterator[tuple[str, list[Film]]]:
    """Every kind of image with its images; chest films as they should be first."""
    rng = np.random.default_rng(11)
    for source, some in films.items():
        yield f"chest, {source}", some
    for source, some in films.items():
        yield f"chest, {source}, cut, tilted, other greys", [changed(film, rng) for film in some]
    everything = [film for some in films.values() for film in some]
    for name, change in TURNS.items():
        yield f"chest, {name}", [np.ascontiguousarray(change(film)) for film in everything]
    for name, make in BODIES.items():
        yield f"{name} (drawn)", [make(np.random.default_rng([23, number])) for number in range(count)]
    for name, make in noises().items():
        yield name, [make(rng) for _ in range(count)]
    yield from files(shared / "dicom").items()


def rows(judge: Gate, named: Iterator[tuple[str, list[Film]]]) -> Iterator[tuple[str, ...]]:
    """A row for each kind: images, and how many are refused by what."""
    for name, films in named:
        said = np.array([judge.refuses(film) for film in films])
        counts = (said[:, 0].sum(), said[:, 1].sum(), said.any(axis=1).sum())
        yield (name, str(len(films)), *(f"{count} ({count / len(films):.1%})" for count in counts))


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default the embedded one")
    parser.add_argument("--config", type=Path, default=ROOT / "train" / "configs" / "mini.toml")
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--films", type=int, default=150, help="at most so many chest films a source")
    parser.add_argument("--count", type=int, default=50, help="images of each other kind")
    options = parser.parse_args(argv)
    bundle = Bundle.load(options.bundle) if options.bundle else Bundle.embedded()
    judge = Gate(bundle)
    print(f"Bundle {bundle.manifest.bundle_id}, {platform.machine()}, ONNX Runtime on one thread\n")
    print("| shown | images | refused by grey values | by distance | by either |\n|---|---|---|---|---|")
    for row in rows(judge, kinds(test_films(options.config, options.films), options.shared, options.count)):
        print(f"| {' | '.join(row)} |", flush=True)
    print(f"\nThe distance took {np.median(judge.seconds) * 1e3:.2f} ms of processor time an image (median).")


if __name__ == "__main__":
    main()
