"""The target for TensorRT RTX of the tiny bundle: under construction, and as an export leaves it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

from trrg_export.engine_builder import LIBRARIES
from trrg_export.parity import LIMITS, ParityLimits
from trrg_export.pytorch_run import run_pytorch
from trrg_export.targets import tensorrt_rtx
from trrg_export.targets.base import ProvenSite
from trrg_export.to_onnx import checkpoint_plans, write_trace
from trrg_sdk.bundle import Bundle, write_manifest
from trrg_sdk.manifest import MANIFEST_FILE, TargetSpec, parse_manifest
from trrg_train.models.checkpoint import load_checkpoint

RTX = LIBRARIES["tensorrt-rtx"]


def site_maker(checkpoint: Path, exported: Path, traces: Path) -> Callable[..., ProvenSite]:
    """What copies an exported bundle as one under construction, with graphs traced as an export does."""
    loaded = load_checkpoint(checkpoint)
    reference = run_pytorch(loaded, loaded.parity_pixels())
    planned = checkpoint_plans(loaded, loaded.trrg)

    def make(folder: Path, precision: str, limits: ParityLimits | None = None) -> ProvenSite:
        shutil.copytree(exported, folder)
        feeds, own = reference.feeds(), limits or LIMITS[precision]
        bundle = Bundle.load(folder)
        sizes = bundle.manifest.decoder
        return ProvenSite(folder, loaded, traces, planned, sizes, reference, feeds, precision, (), bundle, own)

    for plan in planned:
        (traces / plan.name).mkdir()
        write_trace(plan, traces / plan.name)
    return make


def add_target(site: ProvenSite) -> Path:
    """Build the target, and name it in the manifest."""
    spec = tensorrt_rtx.add(site)
    manifest = parse_manifest((site.folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    write_manifest(site.folder, dataclasses.replace(manifest, targets={**manifest.targets, tensorrt_rtx.TARGET: spec}))
    return site.folder


def target(folder: Path) -> TargetSpec:
    return Bundle.load(folder).manifest.targets[tensorrt_rtx.TARGET]
