"""One page to look at: the image, the clues as bars, the sentences coloured by verdict. Opens from disk, alone.

Nothing is loaded from anywhere: style and pictures stand in the page, there is no script, and its own content security
policy forbids both. It names no patient; the picture is the patient's all the same.
"""

from __future__ import annotations

import base64
from html import escape
from io import BytesIO
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.outputs import text
from trrg_sdk.outputs.overlay import grey, overlaid
from trrg_sdk.reading import Picture, Reading
from trrg_sdk.report import ClueScore, Report, Sentence

NAME = "html"
EXTENSION = ".html"
SHOWS_IMAGE = True

_LONGEST_SIDE = 640
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """
:root { color-scheme: light dark; --line: #8884; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1rem; }
.banner { border: 2px solid #b45309; border-radius: .4rem; padding: .6rem 1rem; margin-bottom: 1rem; }
.columns { display: flex; flex-wrap: wrap; gap: 2rem; }
.columns > * { flex: 1 1 22rem; min-width: 0; }
img { max-width: 100%; height: auto; display: block; background: #000; }
figure { margin: 0 0 1rem; } figcaption, .small { font-size: .85rem; opacity: .8; }
p.sentence { border-left: .35rem solid; padding: .1rem .7rem; margin: .5rem 0; }
p.supported { border-color: #15803d; } p.contradicted { border-color: #b91c1c; }
p.unsupported { border-color: #d97706; } p.not_checkable { border-color: #6b7280; }
.verdict { font-weight: 600; }
table { border-collapse: collapse; width: 100%; } td, th { text-align: left; padding: .15rem .5rem .15rem 0; }
.bar { position: relative; height: .8rem; min-width: 6rem; background: var(--line); }
.bar i { position: absolute; inset: 0 auto 0 0; background: #2563eb; } .present .bar i { background: #b91c1c; }
.bar b { position: absolute; top: -.15rem; bottom: -.15rem; width: 2px; background: currentColor; }
"""


def render(reading: Reading) -> bytes:
    """A UTF-8 page; without a picture in the reading it has none."""
    report = reading.report
    left = "".join(_figures(reading.picture, report)) if reading.picture else ""
    right = "".join((*_sections(report), _missed(report), _notes(report)))
    page = f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><title>Draft report</title>
<style>{_STYLE}</style></head><body>
<h1>Draft report</h1>
{_banner(report)}
<div class="columns"><div>{left}<h2>Clues</h2>{_clues(report)}</div><div>{right}</div></div>
<p class="small">{escape(text.provenance_line(report))}</p>
</body></html>
"""
    return page.encode()


def unavailable_reason() -> None:
    """Nothing is needed."""


def data_uri(image: NDArray[np.uint8]) -> str:
    """A picture that stands in the page itself; ``image``: uint8 (H, W, 3)."""
    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _figures(picture: Picture, report: Report) -> list[str]:
    shown = [_figure(grey(picture, longest_side=_LONGEST_SIDE), "The reported image")]
    for clue in report.clues:
        if clue.present and not clue.forced:
            image = overlaid(picture, clue.name, longest_side=_LONGEST_SIDE // 2)
            shown.append(_figure(image, f"{clue.name} {clue.probability:.2f}: where it was perceived"))
    return shown


def _figure(image: NDArray[np.uint8], caption: str) -> str:
    words = escape(text.printable(caption))
    return f'<figure><img src="{data_uri(image)}" alt="{words}"><figcaption>{words}</figcaption></figure>\n'


def _banner(report: Report) -> str:
    warning = "".join(f" {escape(text.printable(line))}" for line in text.warnings(report))
    use = escape(text.printable(report.provenance.intended_use))
    return f'<div class="banner"><strong>{text.BANNER}</strong>{warning}<br>{use}</div>'


def _sections(report: Report) -> list[str]:
    grouped = groupby(report.sentences, key=lambda sentence: sentence.section)
    return [f"<h2>{escape((name or 'report').title())}</h2>{''.join(map(_sentence, items))}" for name, items in grouped]


def _sentence(sentence: Sentence) -> str:
    support = "; ".join(text.describe_clue(evidence) for evidence in sentence.evidence)
    verdict = sentence.verdict.replace("_", " ")
    said = escape(text.printable(sentence.text))
    return (
        f'<p class="sentence {sentence.verdict}">{said}<br>'
        f'<span class="small"><span class="verdict">{verdict}</span> {escape(support)}</span></p>\n'
    )


def _missed(report: Report) -> str:
    return _list("Perceived, but not said", [text.describe_clue(item) for item in report.omissions])


def _notes(report: Report) -> str:
    reasons = [f"{reason.message} {reason.action}" for reason in report.gate.reasons]
    return _list("Notes", [*report.notes, *reasons])


def _list(title: str, lines: list[str]) -> str:
    items = "".join(f"<li>{escape(text.printable(line))}</li>" for line in lines)
    return f"<h2>{title}</h2><ul>{items}</ul>" if lines else ""


def _clues(report: Report) -> str:
    head = "<tr><th>clue</th><th>probability, threshold</th><th></th></tr>"
    return f"<table>{head}{''.join(map(_clue, report.clues))}</table>"


def _clue(clue: ClueScore) -> str:
    words = " ".join(word for word, said in (("present", clue.present), ("(forced)", clue.forced)) if said)
    bar = (
        f'<div class="bar"><i style="width:{clue.probability:.1%}"></i><b style="left:{clue.threshold:.1%}"></b></div>'
    )
    return (
        f'<tr class="{"present" if clue.present else "absent"}"><td>{escape(text.printable(clue.name))}</td>'
        f"<td>{bar}</td><td>{clue.probability:.3f} {words}</td></tr>\n"
    )
