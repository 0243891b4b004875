"""``--rebuild-engines``: the engines of a bundle anew, for the GPU and the library of this machine.

Needs the bundle and the library; no checkpoint, no PyTorch.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from trrg_export.engine_builder import LIBRARIES, BuildLibrary, axis_ranges, build_engines, present_capability
from trrg_export.engine_kernels import keep_kernels
from trrg_export.place import beside, put_in_place
from trrg_export.sbom_renewal import MODEL_CARD, SBOM_FILE, renewed_card, renewed_sbom
from trrg_sdk.bundle import Bundle, sha256_file, write_manifest
from trrg_sdk.errors import DeviceError, UsageError
from trrg_sdk.manifest import ENGINES, SIGNATURE_FILE, Manifest, TargetSpec

_LOG = logging.getLogger(__name__)
_ROOM = "the folder around the bundle must be writable and have room for the engines"


def rebuild_engines(path: Path, *, compute_capabilities: Sequence[str] = ()) -> Manifest:
    """Build a bundle's engines from the clean graphs that it holds, and put them in the place of the old ones.

    Where the GPU of this machine runs them, the kernels that TensorRT-RTX compiles for it are kept beside them; model
    card, bill of materials and manifest say which version of the library it was. The bundle changes as a whole or not
    at all: a second folder beside it takes over its files as links, new engines and a new manifest, and then the
    bundle's name. A signature does not survive, and the log says so.

    Args:
        path: Folder of the bundle; the folder around it is writable.
        compute_capabilities: To build for, such as ``"8.9"``; empty takes the GPU of this machine, and without one
            those that the bundle has engines for.

    Returns:
        The manifest as written.

    Raises:
        BundleError: The bundle is damaged.
        UsageError: It has nothing to build engines from, or the library cannot build for a compute capability.
        DeviceError: No library that it was made for is installed, or the library refuses a graph.
    """
    bundle = Bundle.load(path)
    signed = (path / SIGNATURE_FILE).exists()
    targets = _buildable(bundle.manifest, path)
    try:
        written = _replaced(bundle, path.resolve(), targets, compute_capabilities)
    except OSError as error:
        raise UsageError(
            f"{path} was left as it was, a file could not be written ({error.strerror}): {_ROOM}"
        ) from error
    if signed:
        _LOG.warning("the signature is gone, it was that of the old engines: sign the bundle again")
    return written


def _buildable(manifest: Manifest, path: Path) -> dict[str, TargetSpec]:
    """The targets that have clean graphs and whose library is here; those whose library is not stay as they are."""
    made = {name: target for name, target in manifest.targets.items() if target.runtime in LIBRARIES}
    if not made:
        raise UsageError(f"{path} was exported for no target with engines ({', '.join(LIBRARIES)}): export it for one")
    reasons = {name: LIBRARIES[target.runtime].unavailable_reason() for name, target in made.items()}
    if all(reasons.values()):
        raise DeviceError("; ".join(f"target {name}: {reason}" for name, reason in reasons.items()))
    for name, reason in reasons.items():
        if reason:
            _LOG.warning("target %s keeps the engines that it has: %s", name, reason)
    return {name: target for name, target in made.items() if not reasons[name]}


def _replaced(bundle: Bundle, folder: Path, targets: Mapping[str, TargetSpec], asked: Sequence[str]) -> Manifest:
    manifest = bundle.manifest
    with beside(folder) as aside:
        _take_over(folder, aside, sorted(manifest.files.keys() - _of_engines(manifest, targets)))
        rebuilt = {name: _rebuilt(bundle, target, aside, asked) for name, target in targets.items()}
        versions = {LIBRARIES[target.runtime].package: target.version for target in rebuilt.values()}
        for package, version in versions.items():
            _renew(aside, package, version)
        origin = dataclasses.replace(
            manifest.provenance, created_by=dict(sorted({**manifest.provenance.created_by, **versions}.items()))
        )
        complete = dataclasses.replace(manifest, targets={**manifest.targets, **rebuilt}, provenance=origin)
        written = write_manifest(aside, complete)
        put_in_place(aside, folder)
    return written


def _of_engines(manifest: Manifest, targets: Mapping[str, TargetSpec]) -> set[str]:
    """Files that go with the old engines, the kernels that were kept for them among them."""
    folders = tuple(f"{ENGINES}/{target.runtime}/" for target in targets.values())
    return {file for file in manifest.files if file.startswith(folders)}


def _renew(folder: Path, package: str, version: str) -> None:
    """Say in the model card and in the bill of materials which version built the engines that are there now."""
    card, bill = folder / MODEL_CARD, folder / SBOM_FILE
    if card.is_file():
        _write_anew(card, renewed_card(card.read_text(encoding="utf-8"), package, version))
    if bill.is_file():
        files = {MODEL_CARD: sha256_file(card)} if card.is_file() else {}
        _write_anew(bill, renewed_sbom(bill.read_text(encoding="utf-8"), package, files))


def _write_anew(path: Path, text: str) -> None:
    """Write another file of that name: the one that is there is also the old bundle's."""
    path.unlink()
    path.write_text(text, encoding="utf-8")


def _take_over(source: Path, out: Path, files: Sequence[str]) -> None:
    """Give the files a second name, which takes no room; copy where the file system has no such names."""
    for file in files:
        (out / file).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / file, out / file)
        except OSError:
            shutil.copyfile(source / file, out / file)


def _rebuilt(bundle: Bundle, target: TargetSpec, out: Path, asked: Sequence[str]) -> TargetSpec:
    library = LIBRARIES[target.runtime]
    engines = build_engines(
        library,
        target.graphs,
        axis_ranges(bundle.manifest),
        source=bundle.folder,
        out=out,
        capabilities=asked or _present(library, target),
    )
    keep_kernels(library, engines, target.graphs, bundle.manifest.decoder, folder=out)
    return dataclasses.replace(target, version=library.version, engines=engines)


def _present(library: BuildLibrary, target: TargetSpec) -> tuple[str, ...]:
    """What to build for when nobody says: the GPU of this machine, else what the bundle has engines for."""
    try:
        return (present_capability(),)
    except DeviceError as error:
        before = tuple(dict.fromkeys(engine.compute_capability for engine in target.engines))
        _LOG.info("%s: %s Building for %s.", library.name, error, ", ".join(before or library.capabilities))
        return before
