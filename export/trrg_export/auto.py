"""``--auto``: try the precisions on this machine, and take the smallest bundle whose drift is within its limits."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trrg_export.build import ExportOptions, check_place, check_targets, export_bundle
from trrg_export.from_pytorch import pytorch_reference
from trrg_export.parity import ParityError
from trrg_export.place import beside, put_in_place
from trrg_export.reference import Reference
from trrg_export.speed import Speed, measure
from trrg_sdk.backends import open_backend
from trrg_sdk.bundle import Bundle
from trrg_sdk.errors import DeviceError
from trrg_sdk.manifest import Manifest

_LOG = logging.getLogger(__name__)
_STUDIES = 8
"""Studies whose components are timed; all parity studies are compared."""
_DEVICES = {"ort": "cpu", "openvino": "openvino"}
"""Target → the device of the runtime that runs it on the machine that exports."""


@dataclass(frozen=True)
class Trial:
    """What became of one precision.

    Attributes:
        precision: Which.
        mib: Size of the bundle; None where it failed.
        speeds: Device → times of the components; empty where it failed.
        parity: Precision → its table in the manifest; empty where it failed.
        failures: Limits that were passed; empty where it may be taken.
    """

    precision: str
    mib: float | None = None
    speeds: Mapping[str, Speed] = field(default_factory=dict)
    parity: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[str, ...] = ()


def export_smallest(
    checkpoint: Path, out: Path, candidates: Sequence[ExportOptions]
) -> tuple[Manifest, tuple[Trial, ...]]:
    """Export in several precisions, and keep the smallest bundle that passes.

    Args:
        checkpoint: Folder of a stage-2 checkpoint.
        out: The bundle's folder; its parent must exist.
        candidates: At least one, each with another precision; the first decides about ``force``, and must be one that
            this machine can build. Others that it cannot are refused in the table.

    Returns:
        The manifest of the bundle at ``out``, and every trial in the order tried.

    Raises:
        ParityError: None passed; all failures are listed, and ``out`` is as it was.
        UsageError: No stage-2 checkpoint, ``out`` is taken, or a full disk.
        DeviceError: A target cannot be built or tried here.
    """
    check_place(out, force=candidates[0].force)
    check_targets(candidates[0])
    reference = pytorch_reference(checkpoint, _STUDIES)
    best: Trial | None = None
    trials = []
    with beside(out) as scratch:
        for options in candidates:
            trial = _try(checkpoint, scratch / options.precision, options, reference)
            trials.append(trial)
            if trial.mib is None:
                continue
            if best is None or best.mib is None or trial.mib < best.mib:
                best, trial = trial, best  # a disk need hold two at a time, not all
            if trial:
                shutil.rmtree(scratch / trial.precision)
        if best is None:
            raise ParityError([f"{trial.precision}: {failure}" for trial in trials for failure in trial.failures])
        put_in_place(scratch / best.precision, out)
    return Bundle.load(out).manifest, tuple(trials)


def table(trials: Sequence[Trial]) -> Iterator[str]:
    """Lines of a table, one a precision and device; the arrow is at the smallest that passed."""
    mib = [trial.mib for trial in trials if trial.mib is not None]
    heads = f"{'MiB':>8}{'vision ms':>11}{'fusion ms':>11}{'prefill ms':>12}{'token ms':>10}"
    yield f"   {'precision':<10}{'device':<9}{heads}  against PyTorch"
    for trial in trials:
        mark = "->" if trial.mib is not None and trial.mib == min(mib) else "  "
        if trial.mib is None:
            yield f"{mark} {trial.precision:<10}refused: {'; '.join(trial.failures)}"
        for device, speed in trial.speeds.items():
            times = f"{speed.vision:11.2f}{speed.fusion:11.2f}{speed.prefill:12.2f}{speed.step:10.2f}"
            yield f"{mark} {trial.precision:<10}{device:<9}{trial.mib:8.1f}{times}  {drift(trial)}"


def drift(trial: Trial) -> str:
    """Say in words how far a bundle is from PyTorch in fp32, by the worst of its tables."""
    tables = trial.parity.values()
    texts = min(table["greedy_identical"] for table in tables)
    labels = min(table["label_agreement"] for table in tables)
    flips = max(table["clue_flips"] for table in tables)
    studies = next(iter(tables))["studies"]
    return f"{texts} of {studies} texts identical, labels agree in {labels:.2%}, clue flips {flips}"


def _try(checkpoint: Path, folder: Path, options: ExportOptions, reference: Reference) -> Trial:
    _LOG.info("trying %s", options.precision)
    try:
        check_targets(options)
    except DeviceError as error:
        return Trial(options.precision, failures=(str(error),))
    try:
        manifest = export_bundle(checkpoint, folder, options)
    except ParityError as error:
        return Trial(options.precision, failures=error.failures)
    mib = sum(file.bytes for file in manifest.files.values()) / 2**20
    devices = [_DEVICES[name] for name in options.targets if name in _DEVICES]
    speeds = {name: measure(Bundle.load(folder), open_backend(device=name), reference) for name in devices}
    return Trial(options.precision, mib, speeds, manifest.parity)
