"""What `index.html` shows of one study: a piece of HTML without any script and without identification.

Everything that did not come from this program is escaped; the page's style stands in ``index_page``.
"""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from html import escape

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.outputs.text import warnings
from trrg_sdk.reading import Picture
from trrg_sdk.report import ClueScore, GateReason, Omission, Report, Sentence
from trrg_sdk.site.ledger import Row

PICTURE_SIDE, LONGEST_SIDE = 300, 1000

_VERDICTS = {
    "contradicted": "contradicted: a clue says the opposite",
    "unsupported": "unsupported: no clue stands behind it",
    "supported": "supported by the clues",
    "not_checkable": "not checkable: no clue could answer",
}


def reduced(picture: Picture) -> Picture:
    """What ``thumbnail`` needs of a picture, without most of its pixels."""
    return replace(picture, pixels=_thinned(picture.pixels).copy())


def thumbnail(pixels: NDArray[np.float32]) -> bytes:
    """A small JPEG of an image, float32 (H, W) from 0 to 1; its shorter side is about ``PICTURE_SIDE``."""
    from PIL import Image

    thinned = _thinned(pixels)
    grey = np.empty(thinned.shape, np.uint8)
    np.multiply(thinned, 255.99, out=grey, casting="unsafe")  # without an image of floats in between
    picture = Image.fromarray(grey)
    # means of whole pixels: a fifth of the time of a resampling to the very size
    picture = picture.reduce(
        max(1, round(min(picture.size) / PICTURE_SIDE), math.ceil(max(picture.size) / LONGEST_SIDE))
    )
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return stream.getvalue()


def _thinned(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Every so manyth pixel, at least twice as many as a thumbnail shows; of what is thinned already, all."""
    step = max(1, min(pixels.shape) // (2 * PICTURE_SIDE))
    return pixels[::step, ::step]


def facts(report: Report) -> dict[str, float]:
    """The numbers of a report that the summary lists: sentences of each verdict, then the clues' probabilities."""
    counted: Counter[str] = Counter(sentence.verdict for sentence in report.sentences)
    verdicts = {verdict: float(counted[verdict]) for verdict in sorted(_VERDICTS)}
    return {**verdicts, **{f"clue {clue.name}": round(clue.probability, 4) for clue in report.clues}}


def report_card(name: str, row: Row, report: Report) -> bytes:
    """Show a study with a report; ``name`` is the hash that its files are called by."""
    worst = next((v for v in _VERDICTS if any(sentence.verdict == v for sentence in report.sentences)), "not_checkable")
    side = f'<img src="pictures/{name}.jpg" alt="the reported image" loading="lazy">'
    body = [
        *(f'<p class="overridden">{_text(line)}</p>' for line in warnings(report)),
        *_sections(report.sentences),
        _omissions(report.omissions),
        _notes((*report.notes, *(f"{reason.message} {reason.action}" for reason in report.gate.reasons))),
    ]
    clues = "".join(map(_clue, report.clues))
    return _card(name, row, worst, side, f'<div class="said">{"".join(body)}</div><ul class="clues">{clues}</ul>')


def refusal_card(name: str, row: Row, reasons: Sequence[GateReason]) -> bytes:
    """Show a study without a report, and why."""
    listed = reasons or (GateReason(row.code, row.message, ""),)
    unique = dict.fromkeys(listed)
    items = "".join(f"<li><b>{escape(r.code)}</b> {escape(r.message)} <i>{escape(r.action)}</i></li>" for r in unique)
    side = '<div class="none">no report</div>'
    return _card(name, row, row.state, side, f'<ul class="reasons">{items}</ul>')


def _card(name: str, row: Row, kind: str, side: str, body: str) -> bytes:
    words = {"done": "draft", "refused": "refused", "failed": "cannot be read"}[row.state]
    time = escape(row.finished[:16].replace("T", " "))
    head = f"<h2>{name}</h2><span>{words}</span><time>{time} UTC</time>"
    return (
        f'<article id="{name}" class="{kind}"><header>{head}</header><div class="row"><div class="picture">{side}</div>'
        f"{body}</div></article>\n"
    ).encode()


def _sections(sentences: Iterable[Sentence]) -> list[str]:
    parts, section = [], None
    for sentence in sentences:
        if sentence.section != section:
            section = sentence.section
            parts.append(f"<h3>{escape(section or 'report')}</h3>")
        rests = ", ".join(f"{e.clue} {e.probability:.2f} (from {e.threshold:.2f})" for e in sentence.evidence)
        title = escape(_VERDICTS[sentence.verdict] + (f"; {rests}" if rests else ""), quote=True)
        parts.append(f'<p class="{sentence.verdict}" title="{title}">{_text(sentence.text)}</p>')
    return parts or ["<p>The draft is empty.</p>"]


def _omissions(omissions: Sequence[Omission]) -> str:
    said = ", ".join(f"{escape(item.clue)} {item.probability:.2f}" for item in omissions)
    return f'<p class="omitted">Perceived, but not said: {said}</p>' if said else ""


def _notes(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<details><summary>Notes: {len(notes)}</summary><ul>{items}</ul></details>" if notes else ""


def _clue(clue: ClueScore) -> str:
    here = " present" if clue.present else ""
    title = escape(f"{clue.probability:.3f}; present from {clue.threshold:.3f}", quote=True)
    return (
        f'<li class="clue{here}" title="{title}"><span>{escape(clue.name)}</span>'
        f'<svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{clue.probability * 100:.1f}" height="8"/>'
        f'<line x1="{clue.threshold * 100:.1f}" x2="{clue.threshold * 100:.1f}" y2="8"/></svg>'
        f"<b>{clue.probability:.2f}</b></li>"
    )


def _text(text: str) -> str:
    """Escaped; what is no printable sign is shown as such, because a byte-level vocabulary can spell anything."""
    return escape("".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text))
