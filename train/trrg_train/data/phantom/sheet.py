"""Contact sheets: many films on one page, for the eye that must judge them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from trrg_train.data.phantom.study import PhantomStudy


def contact_sheet(
    studies: Sequence[PhantomStudy], out_png: Path, *, columns: int = 3, cell: int = 512, boxes: bool = False
) -> Path:
    """Write studies side by side with their findings underneath.

    Args:
        studies: What to show, in reading order.
        out_png: File to write; its folder must exist.
        columns: Films in a row.
        cell: Width of a film on the sheet in pixels.
        boxes: Whether to draw the findings' boxes.

    Returns:
        ``out_png``.
    """
    caption = 14
    rows = -(-len(studies) // columns)
    sheet = Image.new("L", (columns * cell, rows * (cell + caption)))
    pen = ImageDraw.Draw(sheet)
    for number, study in enumerate(studies):
        x, y = (number % columns) * cell, (number // columns) * (cell + caption)
        film = Image.fromarray((study.bright() * 255).astype(np.uint8))
        sheet.paste(film.resize((cell, cell), Image.Resampling.BILINEAR, reducing_gap=3.0), (x, y))
        pen.text((x + 2, y + cell + 1), _caption(study), fill=255)
        for finding in study.findings if boxes else ():
            if finding.box:
                pen.rectangle(
                    [(x if i % 2 == 0 else y) + edge * cell for i, edge in enumerate(finding.box)], outline=255
                )
    sheet.save(out_png)
    return out_png


def _caption(study: PhantomStudy) -> str:
    """Return number, view and findings of a study in one line."""
    parts = [" ".join(filter(None, (f.severity, f.side, f.place, f.kind))) for f in study.findings]
    return f"{study.index} {study.view} {', '.join(parts) or 'no finding'}"
