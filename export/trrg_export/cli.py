"""``trrg-export``: a thin shell over :func:`trrg_export.build.export_bundle`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trrg_sdk.errors import TrrgError, UsageError

if TYPE_CHECKING:
    from trrg_export.build import ExportOptions
    from trrg_sdk.manifest import Manifest

_NEEDED = (
    *("torch", "transformers", "safetensors", "onnx", "onnxscript", "onnxruntime", "onnxruntime_genai"),
    *("optimum", "cyclonedx", "packageurl", "packaging", "threadpoolctl"),
)
_TARGETS = (
    "ort",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "trtllm",
)  # the keys of trrg_export.targets.TARGETS, which needs PyTorch to be imported
_USAGE = 2
_AUTO = "auto"
_PRECISIONS = {
    "fp16": "half the size; layers that measurements say cannot stand it stay in fp32 (default fp32)",
    "int8": "a quarter of the size and integer arithmetic, calibrated; layers that drift stay in fp32",
    "int4": "4-bit weights of the language model, 8-bit of the rest",
    "int4-fp16": "4-bit weights of the language model; it and the rest compute in fp16, for GPUs",
    "bf16": "fp32 files, computed in bf16 by --target openvino",
    "int8-bf16": "int8, and for --target openvino a vision encoder that is in bf16 where it is not in int8",
    "int8-vnni": "int8, and for --target openvino a vision encoder with all bits of its weights, for a CPU with VNNI",
}


def build_parser() -> argparse.ArgumentParser:
    """Make the parser."""
    parser = argparse.ArgumentParser(
        prog="trrg-export",
        description="Build a bundle from a stage-2 checkpoint and prove that it does what the PyTorch model does.",
        epilog="exit codes: 0 done, 2 usage, 4 bundle invalid, 5 a runtime is unavailable, 6 parity failed",
    )
    parser.add_argument("checkpoint", type=Path, nargs="?", help="folder that `trrg-train stage2` wrote")
    parser.add_argument("--out", type=Path, metavar="BUNDLE", help="folder to make")
    parser.add_argument(
        "--rebuild-engines", type=Path, metavar="BUNDLE", help="build its TensorRT engines anew; takes no checkpoint"
    )
    parser.add_argument(
        "--compute-capability",
        action="append",
        default=[],
        metavar="X.Y",
        help="GPU to build engines for, can be repeated (default 8.6, 8.9 and 12.0; when rebuilding, this machine's)",
    )
    _add_forms(parser)
    _add_gate(parser)
    parser.add_argument("--force", action="store_true", help="replace the bundle that is there")
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign it with this Ed25519 private key (PEM)")
    parser.add_argument("--studies", type=int, metavar="N", help="parity studies to compare (default all)")
    _add_limits(parser)
    return parser


def _add_limits(parser: argparse.ArgumentParser) -> None:
    """What may differ from PyTorch."""
    parser.add_argument(
        "--value-limit",
        type=float,
        metavar="X",
        help="largest difference of a number (default fp32 1e-3, fp16 1e-2, bf16 0.1, others none; int8 arithmetic "
        "of a graph 0.04)",
    )
    parser.add_argument(
        "--label-agreement",
        type=float,
        metavar="X",
        help="least share of study-observation pairs with the same label (default fp32 1, others 0.99)",
    )
    parser.add_argument(
        "--clue-flips",
        type=float,
        metavar="X",
        help="largest share of study-clue pairs on the other side of the threshold (default fp32 0, others 0.01)",
    )
    parser.add_argument(
        "--differing-texts",
        type=int,
        metavar="N",
        help="most parity studies whose tokens may differ (default fp32 0, others any)",
    )


def _add_gate(parser: argparse.ArgumentParser) -> None:
    """What the gate of the bundle is fitted on."""
    parser.add_argument(
        "--films", type=Path, metavar="FILE", help="of `trrg-train films`, for the gate (default the checkpoint's own)"
    )
    parser.add_argument(
        "--fit-gate", type=Path, metavar="BUNDLE", help="fit its gate on --films FILE anew; takes no checkpoint"
    )


def _add_forms(parser: argparse.ArgumentParser) -> None:
    """In which precision, and for which runtimes."""
    precision = parser.add_mutually_exclusive_group()
    for name, what in _PRECISIONS.items():
        precision.add_argument(f"--{name}", dest="precision", action="store_const", const=name, help=what)
    precision.add_argument(
        "--auto",
        dest="precision",
        action="store_const",
        const=_AUTO,
        help="try all of these here, print size, speed and drift of each, and take the smallest that passes",
    )
    parser.set_defaults(precision="fp32")
    parser.add_argument("--block-size", type=int, metavar="N", help="--int4: weights that share a scale (default 32)")
    parser.add_argument(
        "--int4-algorithm", metavar="NAME", help="--int4: rtn (default), k-quant, hqq, or gptq, which is calibrated"
    )
    drafts = parser.add_mutually_exclusive_group()
    drafts.add_argument("--no-drafts", action="store_true", help="leave out the report store: it is training text")
    drafts.add_argument(
        "--draft-reports",
        type=int,
        metavar="N",
        help="the store holds runs of words that stand in at least N training reports (default 2)",
    )
    parser.add_argument(
        "--target", action="append", default=[], choices=_TARGETS, help="also build and prove it for this runtime"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        argv: Arguments without the program's name; None takes the process's.

    Returns:
        The exit code.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.rebuild_engines is not None:
        if others := sorted(_given(arguments, parser) - {"rebuild_engines", "compute_capability"}):
            parser.error(f"--rebuild-engines takes --compute-capability and nothing else, not {', '.join(others)}")
        return _rebuild(arguments)
    fitting = arguments.fit_gate is not None
    if fitting and _given(arguments, parser) != {"fit_gate", "films"}:
        parser.error("--fit-gate BUNDLE takes --films FILE and nothing else")
    if not fitting and (arguments.checkpoint is None or arguments.out is None):
        parser.error("a checkpoint and --out BUNDLE are needed, or --rebuild-engines BUNDLE, or --fit-gate BUNDLE")
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        print(f"trrg-export needs {', '.join(missing)}: pip install 'trrg-sdk[cpu,export]'", file=sys.stderr)
        return _USAGE
    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # to stderr
    logging.getLogger("trrg_export").setLevel(logging.INFO)
    try:
        manifest = _export(arguments)
    except TrrgError as error:
        print(f"trrg-export: {error}", file=sys.stderr)
        return error.exit_code
    size = sum(file.bytes for file in manifest.files.values()) / 2**20
    print(f"{arguments.fit_gate or arguments.out}: bundle {manifest.bundle_id}, {size:.1f} MiB")
    return 0


def _given(arguments: argparse.Namespace, parser: argparse.ArgumentParser) -> set[str]:
    """Options that are not as they are by default."""
    return {name for name, value in vars(arguments).items() if value != parser.get_default(name)}


def _export(arguments: argparse.Namespace) -> Manifest:
    if arguments.fit_gate is not None:
        from trrg_export.distance import refit

        return refit(arguments.fit_gate, arguments.films)
    from trrg_export.auto import export_smallest, table
    from trrg_export.build import allowed_precisions, export_bundle

    if arguments.precision != _AUTO:
        return export_bundle(arguments.checkpoint, arguments.out, _options(arguments, arguments.precision))
    candidates = [_options(arguments, name) for name in allowed_precisions(_targets(arguments))]
    manifest, trials = export_smallest(arguments.checkpoint, arguments.out, candidates)
    print("\n".join(table(trials)))
    return manifest


def _rebuild(arguments: argparse.Namespace) -> int:
    from trrg_export.engines import rebuild_engines

    logging.basicConfig(level=logging.WARNING, format="%(message)s")  # to stderr
    logging.getLogger("trrg_export").setLevel(logging.INFO)
    bundle, capabilities = arguments.rebuild_engines, arguments.compute_capability
    try:
        manifest = rebuild_engines(bundle, compute_capabilities=capabilities)
    except TrrgError as error:
        print(f"trrg-export: {error}", file=sys.stderr)
        return error.exit_code
    for target in manifest.targets.values():
        built = ", ".join(dict.fromkeys(engine.compute_capability for engine in target.engines))
        if built:
            print(f"{bundle}: engines of {target.runtime} {target.version} for compute capability {built}")
    return 0


def _targets(arguments: argparse.Namespace) -> tuple[str, ...]:
    return tuple(dict.fromkeys(("ort", *arguments.target)))


def _options(arguments: argparse.Namespace, precision: str) -> ExportOptions:
    from trrg_export.build import ExportOptions
    from trrg_export.parity import LIMITS

    given = {
        "value": arguments.value_limit,
        "label_agreement": arguments.label_agreement,
        "clue_flips": arguments.clue_flips,
        "differing_texts": arguments.differing_texts,
    }
    for name in ("label_agreement", "clue_flips"):
        if given[name] is not None and not 0 <= given[name] <= 1:
            raise UsageError(f"--{name.replace('_', '-')}: expected a share from 0 to 1, got {given[name]}")
    limits = dataclasses.replace(LIMITS[precision], **_said(given))
    int4 = _said({"block_size": arguments.block_size, "int4_algorithm": arguments.int4_algorithm})
    if int4 and arguments.precision not in ("int4", "int4-fp16", _AUTO):
        raise UsageError("--block-size and --int4-algorithm belong to --int4 and --int4-fp16")
    drafts = {"draft_reports": None} if arguments.no_drafts else _said({"draft_reports": arguments.draft_reports})
    targets = _targets(arguments)
    if arguments.compute_capability and not {"tensorrt", "tensorrt-rtx"} & set(targets):
        raise UsageError("--compute-capability belongs to --target tensorrt-rtx or tensorrt")
    return ExportOptions(
        precision,
        targets=targets,
        force=arguments.force,
        limits=limits,
        studies=arguments.studies,
        films=arguments.films,
        sign=arguments.sign,
        compute_capabilities=tuple(arguments.compute_capability),
        **int4,
        **drafts,
    )


def _said(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that the user gave."""
    return {name: value for name, value in options.items() if value is not None}
