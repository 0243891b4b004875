"""What a bundle tells the gate: whom it was trained on, in which views, and how far from its films is too far."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

View = Literal["PA", "AP", "LL"]


@dataclass(frozen=True, slots=True)
class PopulationSpec:
    """Whom and what the bundle was trained on; an image of others is refused.

    Attributes:
        minimum_age: Years; a younger patient is refused where the file says the age. None: any age.
        views: Of the images that it was trained to report, as View Position (0018,5101) names them. ``"LL"`` stands
            for a lateral one of either side; without it laterals are left out.
    """

    minimum_age: float | None
    views: tuple[View, ...]

    def __post_init__(self) -> None:
        """Refuse an age that is none and a list without any view or with one twice."""
        age = self.minimum_age
        if age is not None and not (type(age) in (int, float) and 0 < age < 150):
            raise ValueError(f"expected a minimum_age in years above 0, or none, got {age!r}")
        known = set(get_args(View))
        if not self.views or not known.issuperset(self.views) or len(set(self.views)) != len(self.views):
            raise ValueError(f"expected views, each once, of {sorted(known)}, got {list(self.views)}")

    @property
    def laterals(self) -> bool:
        """Whether it was trained on lateral views too."""
        return "LL" in self.views


ANYBODY = PopulationSpec(minimum_age=None, views=("PA", "AP"))
"""Frontal films of any age: what can be judged without knowing a bundle."""

ADULTS = PopulationSpec(minimum_age=18, views=("PA", "AP"))
"""Frontal films of adults: what a training is taken to have seen unless it says something else."""


@dataclass(frozen=True, slots=True)
class DistanceSpec:
    """The distance of an image to the training films (``trrg_sdk.distance``); one beyond 1 is refused.

    Attributes:
        file: Its numbers, ``.npz``.
        components: Directions in which the encoder's vectors are compared.
        sets: Training sets, each with a mean of its own.
        thumbnails: How many mean thumbnails there are.
        encoder_scale: Of the distance of the encoder's vectors: it would be 1 at this.
        thumbnail_scale: Of the distance of the thumbnails.
        quantile: The part of the held-out films that are not beyond 1, in the data set where it is least.
        films: Split and data set, such as ``"train/nih"`` → how many films it was fitted on (``train``), or the scales
            were chosen on (``val``).
    """

    file: str
    components: int
    sets: int
    thumbnails: int
    encoder_scale: float
    thumbnail_scale: float
    quantile: float
    films: Mapping[str, int]

    def __post_init__(self) -> None:
        """Refuse scales that let nothing pass, a part that is none, and sizes below 1."""
        scales, sizes = (self.encoder_scale, self.thumbnail_scale), (self.components, self.sets, self.thumbnails)
        if min(scales) <= 0:
            raise ValueError(f"expected scales above 0, got {scales}")
        if not 0 <= self.quantile <= 1:
            raise ValueError(f"expected a quantile from 0 to 1, got {self.quantile}")
        if min(sizes) < 1:
            raise ValueError(f"expected at least 1 of components, sets and thumbnails, got {sizes}")

    def described(self) -> str:
        """How it was fitted, in words."""
        fitted, held_out = self._counts("train/"), self._counts("val/")
        return (
            f"fitted on films of the training ({fitted}); of those held out ({held_out}) at least {self.quantile:.1%} "
            "of each set are near enough"
        )

    def _counts(self, split: str) -> str:
        found = {name.removeprefix(split): count for name, count in self.films.items() if name.startswith(split)}
        return ", ".join(f"{count} of {name}" for name, count in found.items())
