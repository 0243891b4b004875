"""Fit and measure the gate's image scores on the shared radiographs.

python tests/benchmarks/gate_photometry.py measure        the gate as it is, on every image
python tests/benchmarks/gate_photometry.py crossvalidate  five fits, each measured on other patients
python tests/benchmarks/gate_photometry.py others         the look alone at what is no chest film: real files without
                                                          their tags, noise, pages, films beyond recognition
python tests/benchmarks/gate_photometry.py fit            write trrg_sdk/photometry.json anew
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from trrg_sdk import gate, photometry
from trrg_sdk.dicom import load
from trrg_sdk.errors import DicomError

Array = NDArray[np.float64]

ROOT = Path(__file__).resolve().parents[2]
VARIANTS = 3  # random crops and borders of each film, so that a field of view of its own does not decide
TURNS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "as it is": lambda image: image,
    "inverted": lambda image: image.max() - image,
    "upside down": lambda image: image[::-1, ::-1],
    "turned left": lambda image: np.rot90(image, 1),
    "turned right": lambda image: np.rot90(image, 3),
}


def reframed(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """The film with each side cropped or given a plain border of up to 12 %."""
    sides = (rng.uniform(-0.12, 0.12, 4) * len(image)).astype(int)
    top, bottom, left, right = np.maximum(sides, 0)
    border = float(rng.choice([image.min(), image.max(), 0.0, np.median(image)]))
    framed = np.pad(image, ((top, bottom), (left, right)), constant_values=border)
    top, bottom, left, right = np.maximum(-sides, 0)
    return photometry.thumbnail(framed[top : framed.shape[0] - bottom, left : framed.shape[1] - right])


def logistic(positive: Array, negative: Array, *, constant: bool, decay: float = 1e-3) -> Array:
    """Weights of a balanced logistic regression with weight decay on scaled inputs, by Newton's method."""
    inputs = np.vstack([positive, negative])
    scale = inputs.std(axis=0)
    inputs = inputs / scale
    if constant:
        inputs = np.hstack([inputs, np.ones((len(inputs), 1))])
    penalty = np.full(inputs.shape[1], 2 * decay)
    penalty[len(scale) :] = 1e-9
    target = np.r_[np.ones(len(positive)), np.zeros(len(negative))]
    share = np.r_[np.full(len(positive), 0.5 / len(positive)), np.full(len(negative), 0.5 / len(negative))]
    weights = np.zeros(inputs.shape[1])
    for _ in range(50):
        probability = 1 / (1 + np.exp(-inputs @ weights))
        gradient = inputs.T @ (share * (probability - target)) + penalty * weights
        curvature = (inputs.T * (share * probability * (1 - probability))) @ inputs + np.diag(penalty)
        step = np.linalg.solve(curvature, gradient)
        weights = weights - step
        if np.abs(step).max() < 1e-8:
            break
    return np.concatenate([weights[: len(scale)] / scale, weights[len(scale) :]])


def fitted(thumbs: list[Array]) -> dict[str, Any]:
    """The content of photometry.json, from standardised films."""
    shapes = np.array([photometry.coefficients(thumb) for thumb in thumbs])
    turned = np.array([photometry.coefficients(np.rot90(thumb, k)) for thumb in thumbs for k in (1, 2, 3)])
    even = photometry.symmetric(shapes)
    covariance = np.cov(shapes.T) + 1e-4 * np.eye(shapes.shape[1])
    whiten = np.linalg.inv(np.linalg.cholesky(covariance))
    numbers = {
        "polarity": logistic(even, -even, constant=False),
        "upright": logistic(shapes, turned, constant=True),
        "mean": shapes.mean(axis=0),
        "whiten": whiten[np.tril_indices(len(whiten))],
    }
    return {name: [float(f"{value:.6g}") for value in values] for name, values in numbers.items()}


def films(shared: Path) -> tuple[list[NDArray[np.float32]], list[str]]:
    """Every film as float32 and the patient it is of."""
    files = sorted((shared / "images").glob("*/*.jpg"))
    images = [np.asarray(Image.open(file).convert("L"), dtype=np.float32) for file in files]
    return images, [file.stem.split("_")[0] for file in files]


def variants(images: list[NDArray[np.float32]]) -> list[list[Array]]:
    """For each film its standardised thumbnail and those of its reframed copies."""
    rng = np.random.default_rng(1)
    thumbs = [photometry.thumbnail(image) for image in images]
    return [
        [photometry.standardised(t) for t in (thumb, *(reframed(thumb, rng) for _ in range(VARIANTS)))]
        for thumb in thumbs
    ]


def measure(images: list[NDArray[np.float32]], *, fit: photometry.Fit | None = None) -> dict[str, Counter[str]]:
    """What the gate's image check says of every film, as it is and changed."""
    table: dict[str, Counter[str]] = {}
    for name, change in TURNS.items():
        outcomes = table[name] = Counter()
        for image in images:
            reasons = gate.judge(photometry.look(change(image), fit=fit))
            outcomes[reasons[0].code if reasons else "passed"] += 1
    return table


def crossvalidate(images: list[NDArray[np.float32]], patients: list[str]) -> dict[str, Counter[str]]:
    """As ``measure``, each film judged by a fit that saw none of its patient's films."""
    thumbs = variants(images)
    names = sorted(set(patients))
    fold = dict(zip(names, np.random.default_rng(0).integers(0, 5, len(names)), strict=True))
    table: dict[str, Counter[str]] = {name: Counter() for name in TURNS}
    for held_out in range(5):
        train = [t for ts, p in zip(thumbs, patients, strict=True) if fold[p] != held_out for t in ts]
        test = [image for image, p in zip(images, patients, strict=True) if fold[p] == held_out]
        for name, outcomes in measure(test, fit=photometry.unpacked(fitted(train))).items():
            table[name].update(outcomes)
    return table


def written_page(rng: np.random.Generator) -> NDArray[np.float32]:
    """A page of letters on a plain ground, smoothed as a screen does."""
    side = int(rng.integers(300, 900))
    page = Image.new("L", (side, side), 0)
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(int(rng.integers(10, 28)))
    for row in range(int(rng.integers(3, 25))):
        draw.text((10, 10 + row * 30), "".join(map(chr, rng.integers(48, 122, int(rng.integers(8, 40))))), 255, font)
    values = np.asarray(page, dtype=np.float32)
    return values if rng.random() < 0.5 else 255 - values


def drawn(images: list[NDArray[np.float32]]) -> dict[str, Callable[[np.random.Generator], NDArray[np.float32]]]:
    """Kinds of image that are no film, each from a random generator."""

    def some(rng: np.random.Generator) -> NDArray[np.float32]:
        return images[int(rng.integers(len(images)))]

    def smooth(rng: np.random.Generator) -> NDArray[np.float32]:
        coarse = Image.fromarray(rng.random((int(rng.integers(2, 12)),) * 2).astype(np.float32))
        return np.asarray(coarse.resize((512, 512), Image.Resampling.BICUBIC))

    def in_a_corner(rng: np.random.Generator) -> NDArray[np.float32]:
        film = np.asarray(Image.fromarray(some(rng)).resize((100, 100)), dtype=np.float32)
        black = rng.normal(4, 2, (512, 512)).astype(np.float32)
        black[200:300, 200:300] = film
        return black

    return {
        "noise, each pixel its own": lambda rng: rng.normal(size=(512, 512)).astype(np.float32),
        "noise, smooth": smooth,
        "ramp": lambda rng: np.add.outer(*(np.linspace(0, end, 512) for end in rng.normal(size=2))).astype(np.float32),
        "page of writing": written_page,
        "film of 4 % of the area, the rest black": in_a_corner,
        "film with its rows shuffled": lambda rng: rng.permutation(some(rng)),
        "film, mirrored (a left-right error)": lambda rng: some(rng)[:, ::-1],
        "film, upside down, not mirrored": lambda rng: some(rng)[::-1],
    }


def others(images: list[NDArray[np.float32]], folder: Path, *, count: int = 200) -> dict[str, Counter[str]]:
    """What the look at the image alone says of what is no upright chest film."""
    table: dict[str, Counter[str]] = {}
    for file in sorted(folder.iterdir()):
        try:
            film = load(file)
        except DicomError:
            continue
        if min(film.pixels.shape) >= gate.MIN_SIDE:
            kind = f"{film.modality or 'no modality'} {film.body_part or 'no body part'}".lower()
            table.setdefault(f"file, {kind}", Counter())[said(film.pixels)] += 1
    for name, make in drawn(images).items():
        rng = np.random.default_rng(2)
        table[name] = Counter(said(make(rng)) for _ in range(count))
    return table


def said(pixels: NDArray[np.float32]) -> str:
    """The first code that the look finds, or "passed"."""
    reasons = gate.judge(photometry.look(np.ascontiguousarray(pixels)))
    return reasons[0].code if reasons else "passed"


def main() -> None:
    """Run one of the four."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("measure", "crossvalidate", "others", "fit"))
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    options = parser.parse_args()
    images, patients = films(options.shared)
    if options.command == "fit":
        content = fitted([thumb for thumbs in variants(images) for thumb in thumbs])
        source = f"fitted by tests/benchmarks/gate_photometry.py on {len(images)} films (NIH ChestX-ray14, Hannover)"
        target = ROOT / "trrg_sdk" / "photometry.json"
        target.write_text(json.dumps({"source": source, **content}) + "\n", encoding="utf-8")
        return
    if options.command == "others":
        table = others(images, options.shared / "dicom")
    else:
        table = measure(images) if options.command == "measure" else crossvalidate(images, patients)
    for name, outcomes in table.items():
        print(f"{name:40}", ", ".join(f"{code} {count}" for code, count in outcomes.most_common()))


if __name__ == "__main__":
    main()
