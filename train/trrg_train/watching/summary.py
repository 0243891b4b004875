"""The summary of a run: one HTML file that needs nothing else, with pictures, figures and sample reports."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.config import LAST, RunConfig
from trrg_train.models.stored import CheckpointMeta
from trrg_train.watching import plots
from trrg_train.watching.record import Asserted, Fitted, Perceived, StageRecord, read_records, write_record
from trrg_train.watching.samples import Sample
from trrg_train.watching.validation import aucs, rows_of, write_aside

SUMMARY_FILE = "summary.html"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0 } td, th { padding: .25rem .7rem; border-bottom: 1px solid #ddd;
text-align: left; vertical-align: top } img { max-width: 100% }
pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px } figure { margin: 1rem 0 }
figcaption, .note { color: #555; font-size: 13px }
"""
STAGES = {1: "Stage 1: perception", 2: "Stage 2: report writing"}
OWN_STUDIES = (
    "Held-out studies also chose the calibration, the thresholds and, where it was chosen, the step, so these figures "
    "flatter: the test split, with trrg-train evaluate, tells what the model is worth."
)


def sum_up(out: Path, record: StageRecord) -> Path:
    """Keep the record of a stage and write the summary of all stages that are there.

    Args:
        out: The run's folder.
        record: Of the stage that has ended.

    Returns:
        ``summary.html``, written beside its place and renamed.
    """
    write_record(out, record)
    write_aside(out / SUMMARY_FILE, "\n".join(_page(read_records(out))))
    return out / SUMMARY_FILE


def stage_record(config: RunConfig, meta: CheckpointMeta, fitted: Fitted, found: Perceived | Asserted) -> StageRecord:
    """Put together what a stage leaves.

    Args:
        config: Of the run.
        meta: Of the checkpoint that was saved.
        fitted: See there.
        found: See :class:`StageRecord`.
    """
    settings = config.stage1 if meta.stage == 1 else config.stage2
    return StageRecord(
        stage=meta.stage,
        step=fitted.step,
        selected_by=settings.select_by if settings.optim.eval_steps else LAST,
        history=fitted.history,
        settings=dataclasses.asdict(config),
        commands=meta.commands,
        data=meta.data,
        found=found,
    )


def _page(records: Sequence[StageRecord]) -> Iterator[str]:
    newest = records[-1]
    yield "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Training run</title>"
    yield f"<style>{STYLE}</style></head><body><h1>Training run: {escape(str(newest.settings['model']['name']))}</h1>"
    yield "<p class='note'>Holds reports of held-out studies: keep it where the data may be.</p>"
    yield f"<h2>Data</h2><p>{escape(newest.data)}</p>"
    yield "<h2>Commands</h2>" + _pre("\n".join(newest.commands))
    for record in records:
        yield from _stage(record)
    yield "<h2>Configuration</h2>" + _pre(json.dumps(newest.settings, indent=1))
    yield "</body></html>\n"


def _stage(record: StageRecord) -> Iterator[str]:
    last = max((int(entry["step"]) for entry in record.history), default=record.step)
    why = "the last one" if record.selected_by == LAST else f"the best {record.selected_by} on held-out studies"
    yield f"<h2>{STAGES[record.stage]}</h2><p>The weights are those of step {record.step} of {last}, {why}.</p>"
    if record.history:
        yield _picture(plots.curves(record.history, step=record.step), "Training; the dotted line is the step kept.")
    yield f"<p class='note'>{OWN_STUDIES}</p>"
    yield from _perceived(record.found) if isinstance(record.found, Perceived) else _written(record.found)


def _perceived(found: Perceived) -> Iterator[str]:
    table = aucs(found.probabilities, found.labels, found.sources)
    rows = [[name, *(_number(table[source].get(name)) for source in table)] for name in OBSERVATIONS]
    yield "<h3>AUC of each clue on held-out studies</h3>" + _table(["observation", *table], rows)
    yield _picture(plots.roc(found), "ROC. A clue with fewer than five studies of either kind has no curve.")
    yield _picture(plots.reliability(found), "Calibration: the nearer to the diagonal, the truer the probability.")
    said = found.probabilities >= found.thresholds
    yield from _confusion("Clues at their thresholds", said, found.labels, found.sources)


def _written(found: Asserted) -> Iterator[str]:
    yield from _confusion("What the written reports assert", found.said, found.truth.astype(np.float64), found.sources)
    yield "<h3>Sample reports</h3>" + _samples(found.samples)


def _confusion(
    title: str, said: NDArray[np.bool_], truth: NDArray[np.float64], sources: Sequence[str]
) -> Iterator[str]:
    for source, rows in rows_of(sources).items():
        yield f"<h3>{title}: {escape(source)}, {len(rows)} held-out studies</h3>"
        caption = "Studies by what the label or the reference says (rows) and what the model says (columns)."
        yield _picture(plots.confusion(said[rows], truth[rows]), caption)
        yield _table(["observation", "present", "precision", "recall", "F1"], _scores(said[rows], truth[rows]))


def _scores(said: NDArray[np.bool_], truth: NDArray[np.float64]) -> list[list[str]]:
    rows = []
    for at, name in enumerate(OBSERVATIONS):
        (hit, missed), (wrong, _) = plots.confusion_counts(said[:, at], truth[:, at]).tolist()
        if hit + missed + wrong:
            parts = ((hit, hit + wrong), (hit, hit + missed), (2 * hit, 2 * hit + wrong + missed))
            shares = [above / below if below else None for above, below in parts]
            rows.append([name, str(hit + missed), *(_number(share) for share in shares)])
    return rows


def _samples(samples: Sequence[Sample]) -> str:
    rows = [[sample.source, sample.reference, sample.written] for sample in samples]
    return _table(["source", "reference", "written"], rows)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>{body}</table>"


def _picture(png: bytes, caption: str) -> str:
    data = base64.b64encode(png).decode("ascii")
    return f"<figure><img src='data:image/png;base64,{data}' alt=''><figcaption>{caption}</figcaption></figure>"


def _pre(text: str) -> str:
    return f"<pre>{escape(text, quote=False)}</pre>"


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.3f}"
