"""How far is an image from the training films, as the vision encoder sees them and as a coarse thumbnail?

Two distances, each divided by its scale, make one, as the sides of a right angle do; above 1 the image is refused:

- **encoder**: Mahalanobis' distance of the mean patch vector to the nearest of the training sets' means, with one
  covariance within the sets. It knows textures and parts: noise and pages are far.
- **thumbnail**: distance of the 12 x 12 thumbnail (mean 0, deviation 1) to the nearest of some hundred mean ones. It
  knows where things are: a hand, a skull or a breast is bright where a chest is dark.

Both are root mean squares. All numbers are fitted by ``trrg-export`` (``trrg_export.distance``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import BundleError
from trrg_sdk.gate_codes import reason
from trrg_sdk.report import GateReason

Float32 = NDArray[np.float32]
THUMB = 12


class Far(NamedTuple):
    """Both distances of B images, float32 (B,) each."""

    encoder: Float32
    thumbnail: Float32

    def together(self, scales: tuple[float, float]) -> Float32:
        """Both as one, float32 (B,), each in units of its scale."""
        return np.asarray(np.hypot(self.encoder / scales[0], self.thumbnail / scales[1]), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Distance:
    """The fitted numbers.

    Attributes:
        means: float32 (sets, Dv), mean patch vectors of the training sets.
        whiten: float32 (K, Dv); its product with what is left of the mean has unit covariance.
        thumbnails: float32 (M, 144), means of like training films.
    """

    means: Float32
    whiten: Float32
    thumbnails: Float32

    def of(self, patches: Float32, thumbnails: Float32) -> Far:
        """Measure images.

        Args:
            patches: float32 (B, Dv), means over the patches that the vision graph gives.
            thumbnails: float32 (B, 144), of :func:`thumbnail`.
        """
        left = (patches[:, None] - self.means) @ self.whiten.T  # (B, sets, K)
        others = np.square(thumbnails).sum(axis=1)[:, None] + np.square(self.thumbnails).sum(axis=1)
        squares = (others - 2 * thumbnails @ self.thumbnails.T).min(axis=1).clip(0) / THUMB**2
        return Far(np.sqrt(np.square(left).mean(axis=2).min(axis=1)), np.sqrt(squares))


@dataclass(frozen=True, slots=True)
class Judge:
    """A distance with its scales."""

    distance: Distance
    scales: tuple[float, float]

    def against(self, pixels: Float32, patches: Float32) -> tuple[GateReason, ...]:
        """Judge one image.

        Args:
            pixels: float32 (channels, size, size), preprocessed.
            patches: float32 (P, Dv), what the vision graph gives for it.

        Returns:
            The reason against reporting it, or nothing.
        """
        far = self.distance.of(patches.mean(axis=0)[None], thumbnail(pixels)[None])
        share = float(far.together(self.scales)[0])
        return () if share <= 1 else (reason("unlike_training", far=share),)


def thumbnail(pixels: Float32) -> Float32:
    """The image as float32 (144,), mean 0 and deviation 1.

    Args:
        pixels: float32 (channels, size, size), preprocessed; the channels are equal.
    """
    from PIL import Image  # late, so that `import trrg_sdk` stays fast

    small = Image.fromarray(np.ascontiguousarray(pixels[0])).resize((THUMB, THUMB), Image.Resampling.BOX)
    values = np.asarray(small, dtype=np.float32).ravel()
    return np.asarray((values - values.mean()) / (values.std() + 1e-6), dtype=np.float32)


def open_judge(bundle: Bundle) -> Judge | None:
    """Read the numbers of a bundle; None where it has none.

    Raises:
        BundleError: The file is no ``.npz`` of the arrays and shapes that the manifest says.
    """
    spec = bundle.manifest.distance
    if spec is None:
        return None
    try:
        with np.load(bundle.folder / spec.file, allow_pickle=False) as archive:
            found = Distance(archive["means"], archive["whiten"], archive["thumbnails"])
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as error:
        raise BundleError(f"{spec.file} cannot be read ({type(error).__name__}); restore the bundle") from error
    width = next(output.axes[-1] for output in bundle.manifest.graphs["vision"].outputs if output.name == "patches")
    expected = ((spec.sets, width), (spec.components, width), (spec.thumbnails, THUMB**2))
    got = tuple(array.shape for array in (found.means, found.whiten, found.thumbnails))
    if got != expected or any(array.dtype != np.float32 for array in (found.means, found.whiten, found.thumbnails)):
        raise BundleError(f"{spec.file}: expected float32 arrays of {expected}, got {got}; export the bundle again")
    return Judge(found, (spec.encoder_scale, spec.thumbnail_scale))
