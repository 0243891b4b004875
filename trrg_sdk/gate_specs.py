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
    """The distance of an image to the training films, as the vision encoder sees both (``trrg_sdk.distance``).

    Attributes:
        file: Its numbers, ``.npz``.
        components: Directions that a patch is reduced to.
        sets: Training sets, each with a mean of its own.
        threshold: An image that is farther is refused.
        quantile: The part of the held-out films (of the data set where it is least) that lies within the threshold.
        films: Data set and split → how many films it was fitted on, or the threshold was chosen on.
        fitted: How, in words.
    """

    file: str
    components: int
    sets: int
    threshold: float
    quantile: float
    films: Mapping[str, int]
    fitted: str

    def __post_init__(self) -> None:
        """Refuse a threshold that lets nothing pass, a part that is none, and sizes below 1."""
        if self.threshold <= 0:
            raise ValueError(f"expected a threshold above 0, got {self.threshold}")
        if not 0 < self.quantile <= 1:
            raise ValueError(f"expected a quantile above 0 and at most 1, got {self.quantile}")
        if min(self.components, self.sets) < 1:
            raise ValueError(f"expected at least 1 of components and sets, got {self.components} and {self.sets}")
