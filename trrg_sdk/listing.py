"""A bundle as tables to read: what is in it, what it was measured to do, what its graphs cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import UsageError
from trrg_sdk.gate_specs import DistanceSpec, PopulationSpec
from trrg_sdk.manifest import SIGNATURE_FILE, Manifest, TargetSpec
from trrg_sdk.signature import is_signed
from trrg_sdk.summary import SUMMARY_FILE, Component, read_summary

Rows = Sequence[Sequence[str]]

_FIGURES: Mapping[str, tuple[str, ...]] = {
    "studies": ("studies",),
    "patients": ("patients",),
    "clue AUC": ("clue_auc", "macro"),
    "report F1": ("report_labels", "macro_f1"),
    "shuffled": ("report_labels", "macro_f1_images_shuffled"),
    "constant": ("report_labels", "macro_f1_constant_normal_report"),
    "side right": ("laterality", "same"),
    "wrong": ("laterality", "other"),
    "not said": ("laterality", "none"),
}
"""Column → where ``trrg-train evaluate`` puts the figure. F1 means little without its two floors beside it."""


def headline(manifest: Manifest) -> str:
    """Say in one line which bundle this is."""
    size = sum(file.bytes for file in manifest.files.values())
    return f"bundle {manifest.bundle_id} (model {manifest.model.name}), {len(manifest.files)} files, {_mb(size)} MB"


def overview(bundle: Bundle) -> Iterator[str]:
    """Show a bundle.

    Args:
        bundle: As loaded.

    Yields:
        Lines without line ends.
    """
    manifest = bundle.manifest
    yield f"{headline(manifest)}; manifest {bundle.manifest_sha256}"
    yield from _table(_facts(bundle))
    for title, rows in (
        ("graphs", _graphs(manifest)),
        ("targets", _targets(manifest)),
        ("clues", _clues(manifest)),
        ("evaluation", _evaluation(manifest.evaluation)),
    ):
        yield from ("", title, *_table(rows, indent="  "))
    yield from ("", "agreement with PyTorch", *(f"  {line}" for line in parity(manifest)))
    yield from ("", "everything: trrg inspect --json; what the graphs cost: trrg inspect --graph")


def parity(manifest: Manifest) -> Iterator[str]:
    """Say how far the graphs agree with PyTorch: one line for each precision, and one for its graphs' drift."""
    for precision, figures in manifest.parity.items():
        plain = {
            name: value for name, value in figures.items() if not isinstance(value, Mapping) and name != "precision"
        }
        yield f"{precision}: {_listed(plain) or 'no figures'}"
        drift = {name: _largest(outputs) for name, outputs in _mapping(figures.get("graphs")).items()}
        if drift:
            yield f"{precision}, largest relative difference: {_listed(drift)}"


def graph_table(bundle: Bundle) -> Iterator[str]:
    """Show what each graph costs.

    Args:
        bundle: As loaded.

    Yields:
        Lines without line ends.

    Raises:
        UsageError: The bundle was made without a summary.
        BundleError: The summary cannot be read.
    """
    summary = read_summary(bundle)
    if summary is None:
        raise UsageError(
            f"bundle {bundle.manifest.bundle_id} holds no {SUMMARY_FILE}: it was made by an older trrg-export; export "
            "the checkpoint again to get one"
        )
    parts = summary.components
    head = ("component", "parameters", "MB", "MFLOP", "for")
    yield from _table([head, *(_cost(name, part) for name, part in parts.items())])
    yield from ("", *_table(_operators(parts)), "", summary.counted)


def _operators(parts: Mapping[str, Component]) -> Rows:
    """How often each component uses each operator, the most used ones first."""
    totals: Counter[str] = Counter()
    for part in parts.values():
        totals.update(part.operators)
    ordered = sorted(totals, key=lambda operator: (-totals[operator], operator))
    rows = [(name, *(str(part.operators.get(name, "-")) for part in parts.values())) for name in ordered]
    return [("operator", *parts), *rows]


def _cost(name: str, part: Component) -> tuple[str, ...]:
    return (name, f"{part.parameters:,}", _mb(part.bytes), f"{part.flops / 1e6:,.1f}", _listed(part.sizes))


def _facts(bundle: Bundle) -> Rows:
    manifest = bundle.manifest
    origin = manifest.provenance
    signed = f"{SIGNATURE_FILE}, not checked here: trrg verify --key PUB" if is_signed(bundle) else "none"
    return [
        ("intended use", manifest.intended_use),
        ("trained on", _population(manifest.population)),
        ("gate", _distance(manifest.distance)),
        ("signature", signed),
        ("decoding", f"{manifest.decoding.strategy}, at most {manifest.decoding.max_new_tokens} tokens"),
        ("drafts", manifest.drafts.text if manifest.drafts else "none"),
        ("data", origin.data),
        ("reproducible", _reproducible(manifest)),
        ("made by", f"trrg-sdk {origin.sdk_version}, code {origin.code_version}, {_listed(origin.created_by)}"),
    ]


def _reproducible(manifest: Manifest) -> str:
    varying = [name for name, file in manifest.files.items() if not file.reproducible]
    return f"every file but {', '.join(varying)}" if varying else "every file"


def _population(population: PopulationSpec) -> str:
    age = population.minimum_age
    return f"{'any age' if age is None else f'{age:g} years and older'}; views {', '.join(population.views)}"


def _distance(distance: DistanceSpec | None) -> str:
    if distance is None:
        return "images are not compared with the training films"
    return f"images that are far from the training films are refused; {distance.described()}"


def _graphs(manifest: Manifest) -> Rows:
    rows = [
        (name, graph.precision, f"{_mb(_size(manifest, graph.file))} MB", graph.file)
        for name, graph in manifest.graphs.items()
    ]
    return rows


def _targets(manifest: Manifest) -> Rows:
    rows = []
    for name, target in manifest.targets.items():
        rows.append((name, f"{target.runtime} {target.version}", "" if _own(target) else "the graphs above"))
        rows += [
            ("", f"graph {graph}", f"{spec.precision}, {_mb(_size(manifest, spec.file))} MB, {spec.file}")
            for graph, spec in target.graphs.items()
        ]
        rows += [
            ("", f"engine {e.graph}", f"compute capability {e.compute_capability}, {_mb(_size(manifest, e.file))} MB")
            for e in target.engines
        ]
    return rows


def _own(target: TargetSpec) -> bool:
    return bool(target.graphs or target.engines)


def _clues(manifest: Manifest) -> Rows:
    rows = [(clue.name, f"{clue.threshold:.3f}", f"{clue.positive} / {clue.negative}") for clue in manifest.clues]
    return [("clue", "present from", "prompts: present / absent"), *rows]


def _evaluation(figures: Mapping[str, object]) -> Rows:
    """One row for each data set with its headline figures; what is no data set stands below."""
    sets = {name: value for name, value in figures.items() if isinstance(value, Mapping)}
    if not figures:
        return [("the bundle holds no figures",)]
    rows = [(name, *(_cell(_at(value, where)) for where in _FIGURES.values())) for name, value in sets.items()]
    alone = [(f"{_words(name)}: {_text(value)}",) for name, value in figures.items() if name not in sets]
    return [("", *_FIGURES), *rows, *alone] if rows else alone


def _at(value: object, keys: Sequence[str]) -> object:
    for key in keys:
        value = _mapping(value).get(key)
    return value


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _largest(outputs: object) -> float:
    """The largest relative difference among the outputs of one graph."""
    gaps = [_at(gap, ("relative",)) for gap in _mapping(outputs).values()]
    return max((float(gap) for gap in gaps if isinstance(gap, int | float)), default=0.0)


def _cell(value: object) -> str:
    return "-" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _listed(values: Mapping[str, object]) -> str:
    return ", ".join(f"{_words(name)} {_text(value)}" for name, value in values.items())


def _words(name: str) -> str:
    return name.replace("_", " ")


def _size(manifest: Manifest, file: str) -> int:
    """Bytes of a graph with its external data, which lies beside it as ``<file>.data``."""
    return sum(manifest.files[name].bytes for name in (file, f"{file}.data") if name in manifest.files)


def _mb(size: int) -> str:
    return f"{size / 1e6:.1f}"


def _table(rows: Rows, *, indent: str = "") -> Iterator[str]:
    """Align columns; the last one of a row is as long as it is."""
    columns = max((len(row) for row in rows), default=0)
    full = [row for row in rows if len(row) == columns]
    widths = [max(len(row[column]) for row in full) for column in range(columns)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False)] if len(row) == columns else row
        yield f"{indent}{'  '.join(cells)}".rstrip()
