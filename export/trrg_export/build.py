"""From a checkpoint to a bundle: export, quantize, compare, describe, and only then give it its name."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from trrg_export import describe
from trrg_export.disk import room_for
from trrg_export.distance import add_distance
from trrg_export.drafts import add_drafts
from trrg_export.from_pytorch import Wanted, from_pytorch
from trrg_export.graph_plan import GraphPlan
from trrg_export.hollow import Contents, without_weights
from trrg_export.memory import apart, released, return_large
from trrg_export.model_card import model_card
from trrg_export.onnx_file import save
from trrg_export.parity import LIMITS, Exported, ParityError, ParityLimits, ParityReport, compare
from trrg_export.place import beside, put_in_place
from trrg_export.precision import HALF
from trrg_export.precision.half import to_half
from trrg_export.precision.half_decoder import overflow_failures
from trrg_export.precision.int4 import Int4
from trrg_export.precision.int8 import quantize_weights
from trrg_export.precision.lowered import LoweredGraph, drift_table
from trrg_export.precision.static import store_weights, to_static
from trrg_export.sbom import sbom
from trrg_export.sbom_renewal import MODEL_CARD, SBOM_FILE
from trrg_export.signing import read_key, sign_bundle
from trrg_export.summary import summarize
from trrg_export.targets import TARGETS
from trrg_export.targets.base import ProvenSite, Site
from trrg_export.trace import read_trace
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.errors import DeviceError, UsageError
from trrg_sdk.manifest import GRAPH_NAMES, MANIFEST_FILE, Manifest, TargetSpec
from trrg_sdk.strict_json import plain_text
from trrg_sdk.summary import SUMMARY_FILE
from trrg_train.models.stored import StoredCheckpoint, read_stored

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportOptions:
    """What to build.

    Attributes:
        precision: A key of ``LIMITS``; ``"bf16"`` are fp32 graphs that OpenVINO computes in bf16, ``"int8-bf16"`` and
            ``"int8-vnni"`` int8 ones with a vision graph for OpenVINO, of which it computes the rest in bf16 or fp32;
            ``"int4-fp16"`` is fp16 with the language model's weights in four bits.
        targets: Names of ``TARGETS``; the first one is ``"ort"``, which every bundle has.
        force: Replace a bundle that is already there.
        limits: Of parity; None takes the precision's own.
        studies: How many of the checkpoint's parity studies to compare; None takes all.
        sign: Private key to sign with; None leaves the bundle unsigned.
        block_size: Weights of the decoder that share a scale in int4, one of ``int4.BLOCK_SIZES``.
        int4_algorithm: How the decoder's four bits are chosen, one of ``int4.ALGORITHMS``.
        compute_capabilities: Of the GPUs that engines are built for; empty takes the target's own.
        films: File of films to fit the gate's distance on; None takes the checkpoint's own.
        draft_reports: Drafts are made of runs of words in at least so many training reports; None makes none.
    """

    precision: str = "fp32"
    targets: tuple[str, ...] = ("ort",)
    force: bool = False
    limits: ParityLimits | None = None
    studies: int | None = None
    sign: Path | None = None
    block_size: int = 32
    int4_algorithm: str = "rtn"
    compute_capabilities: tuple[str, ...] = ()
    films: Path | None = None
    draft_reports: int | None = 2

    def __post_init__(self) -> None:
        """Refuse what cannot be built."""
        if self.precision not in LIMITS:
            raise UsageError(f"precision: expected one of {', '.join(LIMITS)}, got {self.precision!r}")
        if unknown := sorted(set(self.targets) - TARGETS.keys()):
            raise UsageError(f"targets: expected some of {', '.join(TARGETS)}, got {', '.join(unknown)}")
        if reason := _unfit(self.precision, self.targets):
            raise UsageError(reason)
        if self.studies is not None and self.studies < 1:
            raise UsageError(f"studies: expected at least 1, got {self.studies}")
        if self.draft_reports is not None and self.draft_reports < 1:
            raise UsageError(f"draft-reports: expected at least 1, got {self.draft_reports}")
        self.int4()

    def int4(self) -> Int4:
        """How four bits are chosen.

        Raises:
            UsageError: No quantizer does that here.
        """
        return Int4(self.block_size, self.int4_algorithm)

    def packages(self) -> tuple[str, ...]:
        """Distributions that such a bundle is made with."""
        of_targets = [name for target in self.targets for name in TARGETS[target].PACKAGES]
        return (*describe.creators(), *of_targets, *self.int4().packages)


def allowed_precisions(targets: Sequence[str]) -> tuple[str, ...]:
    """Return the precisions that all of these targets have.

    Args:
        targets: Names of ``TARGETS``.
    """
    return tuple(name for name in LIMITS if _unfit(name, targets) is None)


def _unfit(precision: str, targets: Sequence[str]) -> str | None:
    if stored_precision(precision) != precision and "openvino" not in targets:
        return f"{precision}: only OpenVINO computes so, so add the target: --{precision} --target openvino"
    for name in targets:
        if precision not in (known := TARGETS[name].PRECISIONS):
            return f"--target {name}: expected a precision of {', '.join(known)}, got {precision}"
    return None


def stored_precision(precision: str) -> str:
    """Return the precision of the bundle's own files: the others are something that OpenVINO makes of them."""
    return {"bf16": "fp32", "int8-bf16": "int8", "int8-vnni": "int8"}.get(precision, precision)


@apart()
def export_bundle(checkpoint: Path, out: Path, options: ExportOptions) -> Manifest:
    """Build a bundle; it appears at its place whole and proven, or not at all.

    Args:
        checkpoint: Folder of a stage-2 checkpoint.
        out: The bundle's folder; its parent must exist.
        options: What to build.

    Returns:
        The manifest as written.

    Raises:
        UsageError: No stage-2 checkpoint of the Llama family, ``out`` is taken, no key to sign with, or a full disk.
        ParityError: The graphs do not do what PyTorch does; ``out`` is as it was.
        DeviceError: A target cannot be built or tried here.
    """
    return_large()
    check_place(out, force=options.force)
    check_targets(options)
    key = read_key(options.sign) if options.sign else None
    stored = read_stored(checkpoint)
    stored.films(options.films)  # a wrong file is refused before the work
    with room_for(out, checkpoint), beside(out) as folder, beside(out) as traces:
        site = _site(stored, folder, traces, options)
        lowered = write_graphs(site, limit=(options.limits or LIMITS[options.precision]).value)
        manifest = _proven(site, options, lowered)
        if key:
            sign_bundle(folder, key)
        put_in_place(folder, out)
    return manifest


def _site(checkpoint: StoredCheckpoint, folder: Path, traces: Path, options: ExportOptions) -> Site:
    done = from_pytorch(
        Wanted(
            checkpoint.folder,
            folder,
            traces,
            studies=options.studies,
            precision=stored_precision(options.precision),
            int4=options.int4(),
            drafts=options.draft_reports is not None,
        )
    )
    return Site(
        folder,
        checkpoint,
        traces,
        done.planned,
        done.decoder,
        done.reference,
        done.reference.feeds(),
        options.precision,
        options.compute_capabilities,
    )


def write_graphs(site: Site, *, limit: float | None) -> dict[str, LoweredGraph]:
    """Write the three traced graphs to ``graphs/``, and look for overflows of the decoder beside them.

    Args:
        site: The bundle under construction.
        limit: How far the outputs of a graph in fp16 or int8 may drift; None takes the precision's own.

    Returns:
        What was measured of the graphs that are in fp16 or int8.

    Raises:
        ParityError: A graph has no fp16 form within the limit.
    """
    lowered, failures = {}, list[str]()
    for plan in site.planned:
        _LOG.info("writing %s", plan.name)
        try:
            with released():
                found = _write_graph(plan, site, limit)
        except ParityError as error:
            failures += error.failures
            continue
        if found:
            lowered[plan.name] = found
    if stored_precision(site.precision) in HALF:
        with released():
            failures += _decoder_failures(site)
    if failures:
        raise ParityError(failures)
    return lowered


def _write_graph(plan: GraphPlan, site: Site, limit: float | None) -> LoweredGraph | None:
    """Write one graph in the site's precision; what was measured of it, without the graph itself."""
    path, stored = site.folder / describe.graph_file(plan.name), stored_precision(site.precision)
    outside = site.traces / plan.name
    graph = read_trace(outside)
    if stored == "fp32":
        save(graph, path, outside)
        return None
    if stored == "int4":  # four bits are for what is large
        save(quantize_weights(without_weights(graph), Contents(graph, outside)), path)
        return None
    lower = to_half if stored in HALF else to_static
    found = lower(graph, site.feeds[plan.name], label=plan.name, limit=limit, outside=outside)
    save(found.model, path)
    return dataclasses.replace(found, model=onnx.ModelProto())


def _decoder_failures(site: Site) -> list[str]:
    """Let the decoder read the prompts and reports of the parity studies."""
    reference = site.reference
    table = np.load(site.folder / describe.TOKEN_EMBEDDING, mmap_mode="r")
    sequences = [np.concatenate([p, table[list(ids)]]) for p, ids in zip(reference.prompts, reference.ids, strict=True)]
    return overflow_failures(site.folder / describe.graph_file("decoder"), sequences, site.decoder)


def _compared(
    site: Site, draft: Manifest, lowered: dict[str, LoweredGraph], limits: ParityLimits
) -> tuple[ParityReport, dict[str, LoweredGraph]]:
    """Compare with PyTorch; where int8 arithmetic passes a limit, once more with weights that are only stored in int8.

    Returns:
        Table and failures, and what the graphs are now.
    """
    _LOG.info("comparing with PyTorch on %d studies", len(site.reference.ids))
    exported = Exported(
        Bundle(folder=site.folder, manifest=draft, manifest_sha256=""), stored_precision(site.precision)
    )
    worst = {name: graph.worst for name, graph in lowered.items()}
    report = compare(dataclasses.replace(exported, worst_layers=worst), site.planned, site.reference, limits=limits)
    if not report.failures or stored_precision(site.precision) != "int8":
        return report, lowered
    why = f"with int8 arithmetic {'; '.join(report.failures)}"
    _LOG.info("%s; so weights are only stored in int8, and all layers compute in fp32", why)
    lowered = {}
    for plan in site.planned:
        with released():
            outside = site.traces / plan.name
            stored = store_weights(read_trace(outside), site.feeds[plan.name], why=why, outside=outside)
            save(stored.model, site.folder / describe.graph_file(plan.name))
            lowered[plan.name] = dataclasses.replace(stored, model=onnx.ModelProto())
    return compare(exported, site.planned, site.reference, limits=limits), lowered


def _proven(site: Site, options: ExportOptions, lowered: dict[str, LoweredGraph]) -> Manifest:
    """Compare with PyTorch, add the targets, then write summary, card, SBOM and, last, the manifest."""
    folder, checkpoint, stored = site.folder, site.checkpoint, stored_precision(options.precision)
    with released():
        draft = describe.draft_manifest(checkpoint, folder, site.decoder, precision=stored)
    limits = options.limits or LIMITS[options.precision]
    own_limits = limits if LIMITS[stored] == LIMITS[options.precision] else LIMITS[stored]
    with released():
        report, lowered = _compared(site, draft, lowered, own_limits)
    if report.failures:
        raise ParityError(report.failures)
    bundle = Bundle(folder=folder, manifest=draft, manifest_sha256="")
    bundle = _extended(bundle, site, options)
    proven = ProvenSite(**vars(site), bundle=bundle, limits=limits, tables={stored: report.table})
    targets = {TARGETS[name].TARGET: _added(name, proven) for name in options.targets}
    _write_summary(site)
    complete = dataclasses.replace(
        bundle.manifest,
        provenance=dataclasses.replace(draft.provenance, created_by=describe.versions(options.packages())),
        parity={**proven.tables, stored: {**report.table, **drift_table(lowered)}},
        targets=targets,
        bundle_id=describe.bundle_id(checkpoint.config.name, folder),
    )
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    (folder / MODEL_CARD).write_text(model_card(complete, checkpoint.meta, sizes), encoding="utf-8")
    hashes = describe.shipped_hashes(folder)
    (folder / SBOM_FILE).write_text(sbom(complete.bundle_id, hashes, options.packages()), encoding="utf-8")
    return write_manifest(folder, complete)


def _extended(bundle: Bundle, site: Site, options: ExportOptions) -> Bundle:
    """Add the report store and the distance to the training films."""
    drafts = distance = None
    if options.draft_reports is not None:
        drafts = add_drafts(bundle, site.checkpoint, site.reference, least=options.draft_reports)
    films = site.checkpoint.films(options.films)
    if films is None:
        _LOG.warning(
            "the gate of this bundle does not compare images with the training films: the checkpoint has none (an "
            "older trrg-train wrote it). `trrg-train films CONFIG --out FILE` writes them, --films FILE takes them."
        )
    else:
        distance = add_distance(bundle, films)
    return dataclasses.replace(bundle, manifest=dataclasses.replace(bundle.manifest, drafts=drafts, distance=distance))


def _write_summary(site: Site) -> None:
    _LOG.info("counting parameters and operations")
    files = {name: site.folder / describe.graph_file(name) for name in GRAPH_NAMES}
    summary = summarize(files, describe.run_sizes(site.checkpoint, site.decoder))
    (site.folder / SUMMARY_FILE).write_text(plain_text(summary), encoding="utf-8")


def _added(name: str, site: ProvenSite) -> TargetSpec:
    _LOG.info("target %s", name)
    spec: TargetSpec = TARGETS[name].add(site)
    return spec


def check_targets(options: ExportOptions) -> None:
    """Refuse what cannot be built or tried on this machine.

    Args:
        options: What to build.

    Raises:
        DeviceError: A target lacks its runtime, or the processor the arithmetic of the precision.
    """
    for name in options.targets:
        if reason := TARGETS[name].unavailable_reason(options.precision):
            raise DeviceError(f"target {name}: {reason}")


def check_place(out: Path, *, force: bool) -> None:
    """Refuse a place that is taken, unless by a bundle that ``force`` gives up, or that has no folder around it.

    Args:
        out: Where a bundle shall be.
        force: Whether a bundle there may be replaced.

    Raises:
        UsageError: What is wrong with it.
    """
    if not out.parent.is_dir():
        raise UsageError(f"--out {out}: the folder {out.parent} does not exist, make it first")
    if not os.path.lexists(out):
        return
    if not force:
        raise UsageError(f"--out {out} exists already: choose another place, or --force to replace that bundle")
    if out.is_symlink() or not (out / MANIFEST_FILE).is_file():
        raise UsageError(f"--out {out} is no bundle, so --force does not replace it: choose another place")
