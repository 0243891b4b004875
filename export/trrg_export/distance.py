"""The distance to the training films: fitted through the bundle's own vision graph on the films of the checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trrg_export.model_card import with_gate
from trrg_export.place import beside, put_in_place
from trrg_export.sbom_renewal import MODEL_CARD, SBOM_FILE
from trrg_sdk.backends import onnxruntime, open_graphs
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.distance import Distance
from trrg_sdk.errors import UsageError
from trrg_sdk.gate_specs import DistanceSpec
from trrg_sdk.manifest import Manifest
from trrg_sdk.preprocess import Preprocess
from trrg_sdk.signature import is_signed
from trrg_train.models.checkpoint import read_films

_LOG = logging.getLogger(__name__)
FILE = "distance.npz"
_COMPONENTS = 12
_SHRINK = 0.1  # of the covariance to a multiple of the unit matrix
_VARIED = 1  # changed copies of each film, beside the film as it is
_QUANTILE = 0.99
_MARGIN = 1.1

Films = Mapping[str, NDArray[np.uint8]]
Float32 = NDArray[np.float32]


def add_distance(bundle: Bundle, films: Films) -> DistanceSpec:
    """Fit the distance and write its file.

    Args:
        bundle: Under construction, or finished, with its vision graph.
        films: ``"train/<source>"`` and ``"val/<source>"`` to uint8 (K, S, S), as ``trrg-train`` keeps them.

    Returns:
        What the manifest says about it.
    """
    patches = {name: seen_of(bundle, both(kept, seed=row)) for row, (name, kept) in enumerate(sorted(films.items()))}
    train = {name: seen for name, seen in patches.items() if name.startswith("train/")}
    distance = fit(train)
    held_out = {name: distance.of(seen) for name, seen in patches.items() if name.startswith("val/")}
    threshold = max(float(np.quantile(far, _QUANTILE)) for far in held_out.values()) * _MARGIN
    np.savez(bundle.folder / FILE, basis=distance.basis, means=distance.means, whiten=distance.whiten)
    within = {name: float((far <= threshold).mean()) for name, far in held_out.items()}
    _LOG.info("distance to the training films: threshold %.3g; held-out films within it: %s", threshold, within)
    return DistanceSpec(
        file=FILE,
        components=_COMPONENTS,
        sets=len(train),
        threshold=round(threshold, 4),
        quantile=round(min(within.values()), 4),
        films={name: len(kept) for name, kept in films.items()},
        fitted="",
    )


def refit(path: Path, films: Path) -> Manifest:
    """Fit the gate of a finished bundle anew; it changes as a whole or not at all.

    Args:
        path: Folder of the bundle; the folder around it is writable.
        films: File of ``trrg-train films``.

    Returns:
        The manifest as written. A signature does not survive, and the log says so.

    Raises:
        BundleError: The bundle is damaged.
        UsageError: The films are none, were preprocessed otherwise, or the bundle has a bill of materials, in which
            every file stands: such a one is exported again.
    """
    bundle = Bundle.load(path)
    if SBOM_FILE in bundle.manifest.files:
        raise UsageError(
            f"{path} has a bill of materials of its files: export its checkpoint again with --films {films}"
        )
    kept = {name: film.numpy() for name, film in read_films(films, Preprocess.from_manifest(bundle.preprocess)).items()}
    with beside(path.resolve()) as aside:
        for file in sorted(bundle.manifest.files.keys() - {FILE}):
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / file, aside / file)
        spec = add_distance(dataclasses.replace(bundle, folder=aside), kept)
        complete = dataclasses.replace(bundle.manifest, distance=spec)
        card = aside / MODEL_CARD
        if card.is_file():
            card.write_text(with_gate(card.read_text(encoding="utf-8"), complete), encoding="utf-8")
        written = write_manifest(aside, complete)
        put_in_place(aside, path.resolve())
    if is_signed(bundle):
        _LOG.warning("the signature is gone, it was that of the old gate: sign the bundle again")
    return written


def seen_of(bundle: Bundle, films: NDArray[np.uint8]) -> Float32:
    """Look at films with the vision graph.

    Args:
        bundle: With its vision graph.
        films: uint8 (K, S, S), preprocessed but for mean and deviation.

    Returns:
        Its output ``patches``, float32 (K, P, Dv).
    """
    preprocess = Preprocess.from_manifest(bundle.preprocess)
    graph = open_graphs(onnxruntime.open_backend(device="cpu"), bundle, ("vision",))["vision"]
    found = []
    for film in films:  # one at a time, as the runtime does
        pixels = (film.astype(np.float32) / 255 - np.float32(preprocess.mean)) / np.float32(preprocess.std)
        found.append(graph.run({"pixels": np.repeat(pixels[None], preprocess.channels, axis=0)[None]})["patches"][0])
    return np.stack(found)


def both(films: NDArray[np.uint8], *, seed: int) -> NDArray[np.uint8]:
    """Films as they are, and as another detector and hand might have made them.

    Args:
        films: uint8 (K, S, S).
        seed: Of the changes.

    Returns:
        uint8 (2 K, S, S).
    """
    rng = np.random.default_rng(seed)
    return np.concatenate([films, np.stack([varied(film, rng) for film in films])])


def varied(film: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Turn a film a little, cut its sides, fit what is left into the square again, and change the curve of its greys.

    Training sets are often cut to squares, real films are not: they come with dark bars beside them.
    """
    side = len(film)
    picture = Image.fromarray(film).rotate(float(rng.uniform(-4, 4)), Image.Resampling.BILINEAR)
    cuts = rng.uniform(0, 0.06, 4)
    cuts[int(rng.integers(2)) :: 2] += rng.uniform(0, 0.06)  # more of the sides, or more of top and bottom
    left, top, right, bottom = np.round(cuts * side).astype(int).tolist()
    picture = picture.crop((left, top, side - right, side - bottom))
    scale = side / max(picture.size)
    width, height = round(picture.width * scale), round(picture.height * scale)
    canvas = np.zeros((side, side), np.float32)
    above, before = (side - height) // 2, (side - width) // 2
    canvas[above : above + height, before : before + width] = np.asarray(picture.resize((width, height)))
    curved = 255 * (canvas / 255) ** np.exp(rng.uniform(-0.25, 0.25))
    return np.asarray(np.round(curved), dtype=np.uint8)


def fit(train: Mapping[str, Float32]) -> Distance:
    """Fit a distance.

    Args:
        train: Training set → patches, float32 (K, P, Dv).
    """
    everything = np.concatenate([seen.reshape(-1, seen.shape[-1]) for seen in train.values()])
    _, vectors = np.linalg.eigh(np.cov(everything.T))
    basis = np.ascontiguousarray(vectors[:, ::-1][:, :_COMPONENTS], dtype=np.float32)
    places = {name: (seen @ basis).reshape(len(seen), -1).astype(np.float64) for name, seen in train.items()}
    means = np.stack([rows.mean(axis=0) for rows in places.values()])
    left = np.concatenate([(rows - rows.mean(axis=0)) / np.sqrt(len(rows)) for rows in places.values()])
    within = left.T @ left / len(places)  # each set counts the same, however large
    size = len(within)
    within = (1 - _SHRINK) * within + _SHRINK * np.trace(within) / size * np.eye(size)
    whiten = np.linalg.inv(np.linalg.cholesky(within))
    return Distance(basis, means.astype(np.float32), whiten.astype(np.float32))
