"""``trrg verify`` and ``trrg inspect``: is this bundle whole, and what is in it?"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator

from trrg_sdk.bundle import Bundle
from trrg_sdk.manifest import Manifest


def verify(args: argparse.Namespace) -> int:
    """Compare every file with the manifest; a difference is a ``BundleError`` that names it."""
    bundle = _open(args)
    for line in (f"ok: {_summary(bundle.manifest)}, every hash agrees", *_parity(bundle.manifest)):
        print(line)
    return 0


def inspect(args: argparse.Namespace) -> int:
    """Print what a bundle says about itself."""
    bundle = _open(args)
    manifest = bundle.manifest
    print(f"{_summary(manifest)}, manifest {bundle.manifest_sha256}")
    print(f"intended use  {manifest.intended_use}")
    for name, graph in manifest.graphs.items():
        print(f"graph         {name}: {graph.precision}, {graph.file}, {manifest.files[graph.file].bytes / 1e6:.1f} MB")
    for name, target in manifest.targets.items():
        print(f"target        {name}: {target.runtime} {target.version}")
    for clue in manifest.clues:
        print(f"clue          {clue.name} (threshold {clue.threshold:.3f}): {clue.positive} / {clue.negative}")
    print(f"decoding      {manifest.decoding.strategy}, at most {manifest.decoding.max_new_tokens} tokens")
    print(f"data          {manifest.provenance.data}")
    print(f"made by       {json.dumps(dict(manifest.provenance.created_by), ensure_ascii=False)}")
    print(f"evaluation    {json.dumps(dict(manifest.evaluation), ensure_ascii=False, indent=2)}")
    for line in _parity(manifest):
        print(line)
    return 0


def _open(args: argparse.Namespace) -> Bundle:
    return Bundle.embedded() if args.bundle is None else Bundle.load(args.bundle)


def _summary(manifest: Manifest) -> str:
    size = sum(file.bytes for file in manifest.files.values()) / 1e6
    return f"bundle {manifest.bundle_id} (model {manifest.model.name}), {len(manifest.files)} files, {size:.1f} MB"


def _parity(manifest: Manifest) -> Iterator[str]:
    for precision, figures in manifest.parity.items():
        yield f"parity        {precision}: {json.dumps(dict(figures), ensure_ascii=False)}"
