"""All that came of one study: the report, whose it is and what was seen where. What every output is written from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.context import StudyContext
from trrg_sdk.report import Report


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """The reported image and where in it each clue was perceived. The ``repr`` shows no pixels.

    Attributes:
        pixels: float32 (H, W), 0 to 1, larger is brighter: the image as it was loaded, in its full size.
        heat: Clue → float32 (rows, columns), probability per patch of the square model input.
        box: Top, left, rows and columns of the image within the square, in units of the square's side.
        aspect: Height of a pixel divided by its width.
    """

    pixels: NDArray[np.float32] = field(repr=False)
    heat: Mapping[str, NDArray[np.float32]] = field(repr=False)
    box: tuple[float, float, float, float]
    aspect: float = 1.0

    def patch(self, row: int, column: int, *, rows: int, columns: int) -> tuple[float, float, float, float]:
        """A patch of the square in the image's own pixels.

        Args:
            row: Its row, 0 at the top.
            column: Its column, 0 at the left.
            rows: Rows of the grid.
            columns: Columns of the grid.

        Returns:
            Top, left, bottom and right in pixels of ``pixels``, cut at the image's edges.
        """
        height, width = self.pixels.shape
        top, left, tall, wide = self.box

        def vertical(edge: float) -> float:
            return float(min(max((edge / rows - top) / tall, 0.0), 1.0) * height)

        def horizontal(edge: float) -> float:
            return float(min(max((edge / columns - left) / wide, 0.0), 1.0) * width)

        return vertical(row), horizontal(column), vertical(row + 1), horizontal(column + 1)


@dataclass(frozen=True, slots=True, eq=False)
class Reading:
    """One study, read. A ``Reading(report)`` made by hand is enough for the outputs that need no DICOM.

    Attributes:
        report: The draft report.
        context: Whose study it is; None for an array, which is nobody's.
        picture: The image and its heat maps; None for a report that was read back from JSON. Keep a reading no longer
            than its outputs need: this is the whole image.
        made_at: When it was made, with its time zone: the content date of whatever is written; None takes the time of
            writing.
    """

    report: Report
    context: StudyContext | None = field(default=None, repr=False)
    picture: Picture | None = field(default=None, repr=False)
    made_at: datetime | None = None
