"""``index.html``: all studies to look through, from disk, without network, script or patient identification."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from trrg_sdk.errors import UsageError
from trrg_sdk.site.ledger import Row

PAGE = 250
"""Studies on a page."""

_POLICY = "default-src 'none'; img-src 'self' file: data:; style-src 'unsafe-inline'"
_STYLE = """
:root { color-scheme: light; --edge: #d5dae1; --ink: #1c2430; --soft: #5b6675 }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 76rem; padding: 1rem; font: 15px/1.45 system-ui, sans-serif; color: var(--ink);
  background: #f3f5f8 }
h1 { font-size: 1.4rem; margin: 0 0 .3rem }
.draft { background: #fff4d6; border: 1px solid #e5c768; border-radius: 6px; padding: .5rem .8rem;
  margin: .5rem 0 }
.key span, nav a, nav b { display: inline-block; margin: .15rem .3rem .15rem 0; padding: .1rem .5rem;
  border-radius: 4px }
nav a, nav b { border: 1px solid var(--edge); background: #fff }
nav b { background: var(--ink); color: #fff }
article { background: #fff; border: 1px solid var(--edge); border-left: 6px solid #8b96a5; border-radius: 6px;
  margin: .8rem 0; padding: .7rem .9rem; content-visibility: auto; contain-intrinsic-size: auto 22rem }
article.contradicted { border-left-color: #c62828 }
article.unsupported { border-left-color: #e08a00 }
article.supported { border-left-color: #2e7d32 }
article.refused, article.failed { border-left-color: #4a5568 }
article header { display: flex; flex-wrap: wrap; gap: .2rem .9rem; align-items: baseline }
h2 { font: 600 .95rem ui-monospace, monospace; margin: 0 }
time, header span { color: var(--soft); font-size: .85rem }
.row { display: grid; grid-template-columns: 15rem minmax(0, 1fr) 20rem; gap: 1rem; margin-top: .6rem;
  align-items: start }
.picture img { display: block; width: 100%; height: auto; background: #000; border-radius: 4px }
.none { background: #e7ebf0; color: var(--soft); border-radius: 4px; padding: .9rem 0; text-align: center }
h3 { margin: .5rem 0 .2rem; font-size: .75rem; letter-spacing: .06em; text-transform: uppercase;
  color: var(--soft) }
.said h3:first-child { margin-top: 0 }
.said p { margin: .2rem 0; padding: .15rem .5rem; border-radius: 4px; overflow-wrap: anywhere }
.supported.v, p.supported { background: #e3f2e4 }
.unsupported.v, p.unsupported { background: #fdebcf }
.contradicted.v, p.contradicted { background: #fbdcdc; font-weight: 600 }
.not_checkable.v, p.not_checkable { background: #eceff3 }
p.omitted, p.overridden { border: 1px dashed #c62828 }
details { margin-top: .5rem; color: var(--soft); font-size: .85rem }
details ul { margin: .3rem 0; padding-left: 1.2rem }
.clues { list-style: none; margin: 0; padding: 0; font-size: .8rem }
.clue { display: grid; grid-template-columns: 12.8rem minmax(3rem, 1fr) 2.2rem; gap: .4rem; align-items: center;
  color: var(--soft); padding: .05rem 0 }
.clue span { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.clue b { text-align: right; font-weight: 400 }
.clue svg { width: 100%; height: .55rem; background: #e7ebf0; border-radius: 2px }
.clue rect { fill: #8b96a5 }
.clue line { stroke: #1c2430; stroke-width: 1.2; vector-effect: non-scaling-stroke }
.clue.present { color: var(--ink); font-weight: 600 }
.clue.present rect { fill: #1e66b8 }
.clue.present b { font-weight: 600 }
.reasons { grid-column: 2 / -1; margin: 0; padding-left: 1.1rem }
.reasons li { margin: .2rem 0 }
.reasons b { font: 600 .85rem ui-monospace, monospace }
.reasons i { color: var(--soft) }
@media (max-width: 60rem) {
  .row { grid-template-columns: 11rem minmax(0, 1fr) }
  .clues { grid-column: 1 / -1 }
}
@media (max-width: 36rem) {
  .row { grid-template-columns: minmax(0, 1fr) }
  .picture { max-width: 16rem }
  .clues, .reasons { grid-column: auto }
}
"""
_KEY = "supported unsupported contradicted not_checkable".split()


def pages(rows: Mapping[str, Row], cards: Path) -> dict[str, bytes]:
    """Build the pages.

    Args:
        rows: Study's name → what became of it, in the order in which they were finished.
        cards: The folder of their pieces.

    Returns:
        File name → content: ``index.html``, then ``index-2.html`` and so on. The newest study comes first.

    Raises:
        UsageError: A piece cannot be read.
    """
    names = list(rows)[::-1]
    parts = [names[start : start + PAGE] for start in range(0, len(names), PAGE)] or [[]]
    counted: Counter[str] = Counter(row.state for row in rows.values())
    return {
        file_name(number): _page(part, cards, number=number, count=len(parts), counted=counted)
        for number, part in enumerate(parts, start=1)
    }


def file_name(number: int) -> str:
    """Name of page ``number``, from 1."""
    return "index.html" if number == 1 else f"index-{number}.html"


def _page(names: Sequence[str], cards: Path, *, number: int, count: int, counted: Counter[str]) -> bytes:
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="robots" content="noindex">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(_POLICY)}">'
        f'<link rel="icon" href="data:,"><title>Draft reports</title><style>{_STYLE}</style></head><body>'
    )
    key = "".join(f'<span class="{verdict} v">{verdict.replace("_", " ")}</span>' for verdict in _KEY)
    total = ", ".join(f"{counted[state]} {word}" for state, word in _WORDS.items() if counted[state]) or "no study yet"
    top = (
        f"<h1>Draft reports</h1><p>{total}. Studies are named by a hash of their UID; nothing here names a patient.</p>"
        '<p class="draft">Drafts, written by a program. A radiologist has to check every sentence against the image.'
        " Research software, not a medical device.</p>"
        f'<p class="key">Sentences: {key}</p>{_navigation(number, count)}'
    )
    return b"".join((head.encode(), top.encode(), *_read(names, cards), _navigation(number, count).encode(), _END))


_WORDS = {"done": "reported", "refused": "refused", "failed": "cannot be read"}
_END = b"</body></html>\n"


def _read(names: Sequence[str], cards: Path) -> list[bytes]:
    try:
        return [(cards / f"{name}.html").read_bytes() for name in names]
    except OSError as error:
        raise UsageError(
            f"--out: a file of cards/ cannot be read ({error.strerror}); restore it, or begin with an empty folder"
        ) from error


def _navigation(number: int, count: int) -> str:
    if count == 1:
        return ""
    links = (f"<b>{n}</b>" if n == number else f'<a href="{file_name(n)}">{n}</a>' for n in range(1, count + 1))
    return f"<nav>Pages {''.join(links)}</nav>"
