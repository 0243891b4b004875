"""How far is an image from the training films, as the vision encoder sees both?

The encoder's patch vectors are reduced to their main directions, place by place: an upside-down chest has the patches
of a chest, but not where they belong. Their distance is Mahalanobis' to the nearest of the training sets' means, with
one covariance within the sets; as a root mean square, so that 1 is typical of a training film. All numbers are fitted
by ``trrg-export`` (``trrg_export.distance``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import BundleError
from trrg_sdk.gate_codes import reason
from trrg_sdk.gate_specs import DistanceSpec
from trrg_sdk.report import GateReason

Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Distance:
    """The fitted numbers. P patches of width Dv are reduced to K numbers each.

    Attributes:
        basis: float32 (Dv, K).
        means: float32 (sets, P * K), of the reduced patches.
        whiten: float32 (P * K, P * K); its product with what is left of the mean has unit covariance.
    """

    basis: Float32
    means: Float32
    whiten: Float32

    def of(self, patches: Float32) -> Float32:
        """Measure images.

        Args:
            patches: float32 (B, P, Dv), the output ``patches`` of the vision graph.

        Returns:
            float32 (B,), without unit, 1 is typical.
        """
        places = (patches @ self.basis).reshape(len(patches), -1)
        left = (places[:, None] - self.means) @ self.whiten.T  # (B, sets, P * K)
        return np.asarray(np.sqrt(np.square(left).mean(axis=2).min(axis=1)), dtype=np.float32)


def read_distance(bundle: Bundle) -> Distance | None:
    """Read the numbers of a bundle; None where it has none.

    Raises:
        BundleError: The file is no ``.npz`` of the arrays and shapes that the manifest says.
    """
    spec = bundle.manifest.distance
    if spec is None:
        return None
    try:
        with np.load(bundle.folder / spec.file, allow_pickle=False) as archive:
            found = Distance(archive["basis"], archive["means"], archive["whiten"])
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise BundleError(f"{spec.file} cannot be read ({type(error).__name__}); restore the bundle") from error
    arrays = {"basis": found.basis, "means": found.means, "whiten": found.whiten}
    width = bundle.manifest.patch_grid[0] * bundle.manifest.patch_grid[1] * spec.components
    shapes = {"basis": (None, spec.components), "means": (spec.sets, width), "whiten": (width, width)}
    if any(not _fits(array, shapes[name]) for name, array in arrays.items()):
        got = {name: array.shape for name, array in arrays.items()}
        raise BundleError(f"{spec.file}: expected float32 arrays of {shapes}, got {got}; export the bundle again")
    return found


def _fits(array: NDArray[np.generic], shape: tuple[int | None, ...]) -> bool:
    sizes = zip(array.shape, shape, strict=False)
    return array.dtype == np.float32 and array.ndim == len(shape) and all(b in (None, a) for a, b in sizes)


def judge(distance: Distance | None, spec: DistanceSpec | None, seen: Mapping[str, Float32]) -> tuple[GateReason, ...]:
    """Judge one image by what the vision graph gave for it.

    Args:
        distance: Of the bundle; None judges nothing.
        spec: Its entry in the manifest.
        seen: Outputs of the vision graph for one image.

    Returns:
        The reason against reporting it, or nothing.
    """
    if distance is None or spec is None:
        return ()
    far = float(distance.of(seen["patches"])[0])
    return () if far <= spec.threshold else (reason("unlike_training", far=far / spec.threshold),)
