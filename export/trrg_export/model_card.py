"""The model card: what a person must know before using a bundle, from the checkpoint's own facts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from trrg_sdk.manifest import Manifest
from trrg_train.models.stored import CheckpointMeta

_MEBIBYTE = 2**20
_TEXT = "text"
"""Where ``trrg-train evaluate`` puts the scores of the written reports."""
_SCORE_HEAD = ("score", "value", "95 %", "constant report", "lead over it, 95 %", "not in train", "constant there")

_LIMITS = """\
- It was trained on drawn radiographs (phantoms) and on few real ones with labels from text mining; its figures say
  nothing about patients of another hospital.
- It looks at one image of the chest: no second view, no earlier study, no clinical question.
- It knows the 14 observations of the CheXpert set and writes sentences of a small grammar. What is not among them it
  does not see, and a report without it is no proof of absence.
- Part of what looks like perception of disease is the view (AP at the bedside, PA upright), with which labels of real
  data correlate; see the figures within each view.
- "supported" means that the model's own clue score agrees with its sentence: consistent, not therefore true.
"""


def model_card(manifest: Manifest, meta: CheckpointMeta, sizes: Mapping[str, int]) -> str:
    """Write the card.

    Args:
        manifest: Complete but for ``files``.
        meta: Of the checkpoint.
        sizes: Bytes of each file but card, SBOM and manifest.

    Returns:
        Markdown.
    """
    sections = (
        f"# {manifest.bundle_id}\n\n**Not for clinical use.** {manifest.intended_use}\n",
        f"## How it was made\n\n{_commands(meta)}",
        f"## Data\n\n{meta.data or 'The checkpoint does not say.'}\n",
        f"## Evaluation on held-out studies\n\n{_evaluation(manifest.evaluation)}",
        f"## Limits\n\n{_LIMITS}",
        f"## Gate\n\n{_gate(manifest)}",
        f"## Clues\n\n{_clues(manifest)}",
        f"## Agreement with PyTorch\n\n{_parity(manifest.parity)}",
        f"## Files\n\n{_files(sizes)}",
        f"## Provenance\n\n{_provenance(manifest)}",
    )
    return "\n".join(sections)


def with_gate(card: str, manifest: Manifest) -> str:
    """Put the manifest's gate into a card that was written before.

    Args:
        card: Markdown with a heading "Clues".
        manifest: Of the bundle.
    """
    before, clues, after = re.sub(r"(?ms)^## Gate\n.*?(?=^## )", "", card).partition("## Clues\n")
    return f"{before}## Gate\n\n{_gate(manifest)}\n{clues}{after}"


def table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Write a Markdown table.

    Args:
        header: Column names.
        rows: As many cells each.

    Returns:
        Lines, each with its line end.
    """
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _gate(manifest: Manifest) -> str:
    """What the runtime refuses."""
    age, distance = manifest.population.minimum_age, manifest.distance
    people = "Patients of any age." if age is None else f"Patients younger than {age:g} years are refused."
    views = f"Views: {', '.join(manifest.population.views)} (LL: lateral of either side)."
    far = (
        f"Images that are far from the training films are refused. The distance was {distance.described()}."
        if distance
        else "**Images are not compared with the training films**: the checkpoint was exported without them."
    )
    return f"- {people} {views}\n- {far}\n"


def _commands(meta: CheckpointMeta) -> str:
    commands = "\n".join(meta.commands) or "# the checkpoint does not say"
    return f"Seed {meta.seed}.\n\n```\n{commands}\n```\n"


def _evaluation(figures: Mapping[str, Any]) -> str:
    """One heading and table for each group (phantoms, real patients apart), nested names joined."""
    if not figures:
        return "The checkpoint holds no figures.\n"
    alone = {name: value for name, value in figures.items() if not isinstance(value, Mapping)}
    groups = {name: value for name, value in figures.items() if isinstance(value, Mapping)}
    text = _figures(alone) + "\n" if alone else ""
    return text + "\n".join(f"### {_words(name)}\n\n{_group(group)}" for name, group in groups.items())


def _group(group: Mapping[str, Any]) -> str:
    figures = _figures({name: value for name, value in group.items() if name != _TEXT})
    return figures + (f"\n{_written_reports(group[_TEXT])}" if _TEXT in group else "")


def _written_reports(text: Mapping[str, Any]) -> str:
    """Scores of the written reports, of the clinical ones F1 only; each beside the best constant report of train."""
    facts = text["facts"]
    scores = [*text["text"], *(score for score in text["clinical"] if "F1" in score["name"])]
    return (
        f"Written reports of {facts['studies']} studies beside those of the data set. {facts['in_train']:.1%} of the "
        f"latter stand word for word in train. Labels by {text['choices']['labeler']}, tokens: "
        f"{text['choices']['tokenizer']}.\n\n{table(_SCORE_HEAD, [_score(score) for score in scores])}"
    )


def _score(score: Mapping[str, Any]) -> tuple[str, ...]:
    if score["note"]:
        return (score["name"], score["note"], *[""] * (len(_SCORE_HEAD) - 2))
    ranges = [
        "" if score[low] is None else f"{score[low]:{form}} to {score[high]:{form}}"
        for low, high, form in (("low", "high", ".3f"), ("lead_low", "lead_high", "+.3f"))
    ]
    value, floor, new, new_floor = (
        "" if score[name] is None else f"{score[name]:.3f}" for name in ("value", "floor", "new", "new_floor")
    )
    return (score["name"], value, ranges[0], floor, ranges[1], new, new_floor)


def _figures(group: Mapping[str, Any]) -> str:
    return table(("figure", "value"), [(name, _value(value)) for name, value in _flat(group, "")])


def _flat(group: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for name, value in group.items():
        label = f"{prefix}{_words(name)}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label}: ")
        else:
            yield label, value


def _words(name: str) -> str:
    return name.replace("_", " ")


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(_value(item) for item in value)
    return "not known" if value is None else str(value)


def _clues(manifest: Manifest) -> str:
    rows = [(c.name, c.positive, c.negative, f"{c.threshold:.3f}") for c in manifest.clues]
    return table(("clue", "present", "absent", "present from probability"), rows)


def _parity(parity: Mapping[str, Mapping[str, Any]]) -> str:
    text = ""
    for precision, figures in parity.items():
        summary = {name: value for name, value in figures.items() if name not in ("graphs", "precision")}
        rows = [
            (f"{graph}.{output}", *(f"{gap[key]:.2g}" for key in ("max_abs", "mean_abs", "relative")))
            for graph, outputs in figures["graphs"].items()
            for output, gap in outputs.items()
        ]
        header = ("output", "largest difference", "mean difference", "largest, relative")
        kept = summary.pop("fp32_layers", {})
        text += f"Precision {precision}, PyTorch in fp32.\n\n{_figures(summary)}\n{table(header, rows)}"
        lines = [f"- {graph}: {line}\n" for graph, lines in kept.items() for line in lines]
        text += "".join(["\n", *lines] if lines else [])
    return text


def _files(sizes: Mapping[str, int]) -> str:
    rows = [(name, f"{size / _MEBIBYTE:.2f}") for name, size in sorted(sizes.items())]
    return table(("file", "MiB"), [*rows, ("together", f"{sum(sizes.values()) / _MEBIBYTE:.2f}")])


def _provenance(manifest: Manifest) -> str:
    origin = manifest.provenance
    rows = [("trrg-sdk", origin.sdk_version), ("code", origin.code_version), ("checkpoint", origin.checkpoint_sha256)]
    return table(("what", "which"), [*rows, *sorted(origin.created_by.items())])
