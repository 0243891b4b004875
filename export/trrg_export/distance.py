"""The distance to the training films: fitted through the bundle's own vision graph on the films of the checkpoint."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits

from trrg_export.comparing_backend import comparing_backend
from trrg_export.describe import bundle_id
from trrg_export.model_card import with_gate
from trrg_export.place import beside, put_in_place
from trrg_export.sbom_renewal import MODEL_CARD, SBOM_FILE
from trrg_sdk.backends import open_graphs
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.distance import Distance, Far, thumbnail
from trrg_sdk.errors import UsageError
from trrg_sdk.gate_specs import DistanceSpec
from trrg_sdk.manifest import Manifest
from trrg_sdk.preprocess import Preprocess
from trrg_sdk.signature import is_signed
from trrg_train.models.stored import read_films

_LOG = logging.getLogger(__name__)
FILE = "distance.npz"
_COMPONENTS = 384  # at most; a wider encoder is compared in the directions in which its vectors vary most
_SHRINK = 0.003  # of the covariance to a multiple of the unit matrix
_THUMBNAILS = 128  # of a training set, at most; a mean of at least four films each
_ROUNDS = 10  # of the search for them
_QUANTILE = 0.99  # of the held-out films of the set that is farthest away
_COPIES = 1  # of each film, changed a little, beside the film as it is

Films = Mapping[str, NDArray[np.uint8]]
Float32 = NDArray[np.float32]


class Seen(NamedTuple):
    """K films: mean patch vectors, float32 (K, Dv), and thumbnails, float32 (K, 144)."""

    patches: Float32
    thumbnails: Float32


def add_distance(bundle: Bundle, films: Films) -> DistanceSpec:
    """Fit the distance and write its file.

    Args:
        bundle: Under construction, or finished, with its vision graph.
        films: ``"train/<source>"`` and ``"val/<source>"`` to uint8 (K, S, S), as ``trrg-train`` keeps them.

    Returns:
        What the manifest says about it.

    Raises:
        UsageError: There are no films of one of the splits.
    """
    if {name.partition("/")[0] for name in films} != {"train", "val"}:
        raise UsageError(f"the gate is fitted on films of the splits train and val, these are {sorted(films)}")
    _LOG.info("fitting the gate on %d films", sum(map(len, films.values())))
    seen = {
        name: look(bundle, varied_too(kept, copies=_COPIES, seed=row))
        for row, (name, kept) in enumerate(sorted(films.items()))
    }
    distance = fit([rows for name, rows in seen.items() if name.startswith("train/")])
    far = {name: distance.of(*rows) for name, rows in seen.items() if name.startswith("val/")}
    scales = _scales(list(far.values()))
    near = {name: float((values.together(scales) <= 1).mean()) for name, values in far.items()}
    _LOG.info("held-out films that are near enough: %s", ", ".join(f"{name} {part:.1%}" for name, part in near.items()))
    np.savez(bundle.folder / FILE, **{field.name: getattr(distance, field.name) for field in fields(distance)})
    return DistanceSpec(
        file=FILE,
        components=len(distance.whiten),
        sets=len(distance.means),
        thumbnails=len(distance.thumbnails),
        encoder_scale=scales[0],
        thumbnail_scale=scales[1],
        quantile=round(min(near.values()), 4),
        films={name: len(kept) for name, kept in sorted(films.items())},
    )


def _scales(held_out: Sequence[Far]) -> tuple[float, float]:
    """Scales at which the set that is farthest away has its quantile at 1, both distances counting alike."""
    alone = [max(float(np.quantile(far[kind], _QUANTILE)) for far in held_out) for kind in range(2)]
    together = max(float(np.quantile(far.together((alone[0], alone[1])), _QUANTILE)) for far in held_out)
    return round(alone[0] * together, 4), round(alone[1] * together, 4)


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
    signed = is_signed(bundle)
    if SBOM_FILE in bundle.manifest.files:
        raise UsageError(
            f"{path} has a bill of materials of its files: export its checkpoint again with --films {films}"
        )
    kept = read_films(films, Preprocess.from_manifest(bundle.preprocess))
    with beside(path.resolve()) as aside:
        for file in sorted(bundle.manifest.files.keys() - {FILE, MODEL_CARD}):
            (aside / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path / file, aside / file)
        spec = add_distance(dataclasses.replace(bundle, folder=aside), kept)
        name = bundle_id(bundle.manifest.model.name, aside)
        complete = dataclasses.replace(bundle.manifest, distance=spec, bundle_id=name)
        if MODEL_CARD in bundle.manifest.files:
            card = (path / MODEL_CARD).read_text(encoding="utf-8").replace(bundle.manifest.bundle_id, name)
            (aside / MODEL_CARD).write_text(with_gate(card, complete), encoding="utf-8")
        written = write_manifest(aside, complete)
        put_in_place(aside, path.resolve())
    if signed:
        _LOG.warning("the signature is gone, it was that of the old gate: sign the bundle again")
    return written


def look(bundle: Bundle, films: NDArray[np.uint8]) -> Seen:
    """Look at films as the runtime does.

    Args:
        bundle: With its vision graph.
        films: uint8 (K, S, S), preprocessed but for mean and deviation.
    """
    preprocess = Preprocess.from_manifest(bundle.preprocess)
    graph = open_graphs(comparing_backend(bundle.manifest.graphs["vision"].precision), bundle, ("vision",))["vision"]
    patches, thumbnails = [], []
    for film in films:
        pixels = (film.astype(np.float32) / 255 - np.float32(preprocess.mean)) / np.float32(preprocess.std)
        image = np.repeat(pixels[None], preprocess.channels, axis=0)
        patches.append(graph.run({"pixels": image[None]})["patches"][0].mean(axis=0))
        thumbnails.append(thumbnail(image))
    return Seen(np.stack(patches), np.stack(thumbnails))


def varied_too(films: NDArray[np.uint8], *, copies: int, seed: int) -> NDArray[np.uint8]:
    """Films as they are, and as another detector and hand might have made them.

    Args:
        films: uint8 (K, S, S).
        copies: Changed ones of each film.
        seed: Of the changes.

    Returns:
        uint8 (K + copies * K, S, S).
    """
    rng = np.random.default_rng(seed)
    return np.concatenate([films, *(np.stack([varied(film, rng) for film in films]) for _ in range(copies))])


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


def fit(train: Sequence[Seen]) -> Distance:
    """Fit a distance; each training set counts the same, however large.

    On one thread: with several, LAPACK's last bits depend on how many, and two exports would not give the same file.

    Args:
        train: What was seen of each set.
    """
    with threadpool_limits(1):
        return _fit(train)


def _fit(train: Sequence[Seen]) -> Distance:
    means = np.stack([rows.patches.mean(axis=0) for rows in train])
    left = np.concatenate(
        [(rows.patches - mean) / np.sqrt(len(rows.patches)) for rows, mean in zip(train, means, strict=True)]
    ).astype(np.float64)
    within = left.T @ left / len(train)
    size = len(within)
    within = (1 - _SHRINK) * within + _SHRINK * np.trace(within) / size * np.eye(size)
    values, vectors = np.linalg.eigh(within)
    kept = slice(max(0, size - _COMPONENTS), size)
    whiten = (vectors[:, kept] / np.sqrt(values[kept])).T
    thumbnails = np.concatenate([centres(rows.thumbnails) for rows in train])
    return Distance(means, whiten.astype(np.float32), thumbnails)


def centres(rows: Float32, *, seed: int = 0) -> Float32:
    """Means of like rows, by Lloyd's method.

    Args:
        rows: float32 (K, D).
        seed: Of the rows to begin with.

    Returns:
        float32 (M, D), a mean of K / M rows each on average, at least four.
    """
    count = max(1, min(_THUMBNAILS, len(rows) // 4))
    found = rows[np.random.default_rng(seed).choice(len(rows), count, replace=False)]
    for _ in range(_ROUNDS):
        nearest = (np.square(found).sum(axis=1) - 2 * rows @ found.T).argmin(axis=1)
        members = [rows[nearest == place] for place in range(count)]
        found = np.stack([own.mean(axis=0) if len(own) else old for own, old in zip(members, found, strict=True)])
    return found
