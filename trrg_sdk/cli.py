"""The command ``trrg``.

Exit codes: 0 done, 2 usage, 3 an input was refused, 4 bundle invalid, 5 device unavailable. Everything that goes
wrong is one line on standard error. Each subcommand imports what it needs only when it was chosen.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trrg_sdk.errors import InputError, TrrgError, UsageError
from trrg_sdk.version import __version__

if TYPE_CHECKING:
    from trrg_sdk.bundle import Bundle
    from trrg_sdk.outputs import Output
    from trrg_sdk.report import Report
    from trrg_sdk.reporter import Reporter


def build_parser() -> argparse.ArgumentParser:
    """Declare every option; nothing heavy is imported."""
    parser = argparse.ArgumentParser(
        prog="trrg",
        description="Draft reports for chest radiographs; every sentence says what supports it.",
        epilog="Exit codes: 0 done, 2 usage, 3 an input was refused, 4 bundle invalid, 5 device unavailable.",
    )
    parser.add_argument("--version", action="version", version=f"trrg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _declare_report(commands.add_parser("report", help="report on radiographs"))
    verify = commands.add_parser("verify", help="check every file of a bundle, and its signature")
    inspect = commands.add_parser("inspect", help="say what is in a bundle")
    for command in (verify, inspect):
        command.add_argument("bundle", nargs="?", metavar="BUNDLE", help="its folder (default: the embedded one)")
    verify.add_argument("--key", metavar="PUB", help="the maker's Ed25519 public key (PEM): check the signature too")
    form = inspect.add_mutually_exclusive_group()
    form.add_argument("--graph", action="store_true", help="parameters, operators and FLOPs of each graph")
    form.add_argument("--json", action="store_true", help="the whole manifest, for programs")
    commands.add_parser("doctor", help="say what this machine can run, and why not the rest")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: The arguments; None takes those of the process.

    Returns:
        The exit code.
    """
    args = build_parser().parse_args(argv)
    commands: dict[str, Callable[[argparse.Namespace], int]] = {
        "report": _report,
        "verify": _verify,
        "inspect": _inspect,
        "doctor": _doctor,
    }
    try:
        return commands[args.command](args)
    except TrrgError as error:
        print(f"trrg: {error}", file=sys.stderr)
        return error.exit_code


def _declare_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", metavar="INPUT", help="a DICOM file, or the folder of one study")
    parser.add_argument("--bundle", metavar="DIR", help="the model to use (default: the embedded one)")
    parser.add_argument(
        "--device", default="auto", metavar="D", help="auto (cpu or cuda, the default), cpu, cuda or openvino"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: the physical cores)")
    parser.add_argument("--out", metavar="DIR", help="write files here instead of to the screen")
    parser.add_argument("--format", default="text", metavar="F[,F]", help="text, json, or both (default: text)")
    parser.add_argument("--stream", action="store_true", help="print each sentence as it is completed, then the report")
    parser.add_argument(
        "--force-clue",
        action="append",
        default=[],
        type=_forced_clue,
        metavar="NAME=P",
        help="set a clue's probability instead of perceiving it, for experiments (repeatable)",
    )


def _forced_clue(text: str) -> tuple[str, float]:
    name, _, probability = text.rpartition("=")
    try:
        return name, float(probability)
    except ValueError:
        raise argparse.ArgumentTypeError(f'expected something like "Pleural Effusion=0.9", got {text!r}') from None


def _report(args: argparse.Namespace) -> int:
    """Report on every input; one that is refused does not stop the others."""
    from trrg_sdk.outputs import open_output

    outputs = [open_output(name.strip()) for name in args.format.split(",")]
    if args.stream and (args.out or args.format != "text"):
        raise UsageError("--stream prints text to the screen: leave out --out and --format")
    from trrg_sdk.reporter import Reporter

    reporter = Reporter(args.bundle, device=args.device, threads=args.threads)
    forced, code = dict(args.force_clue), 0
    for number, name in enumerate(args.input, start=1):
        try:
            made = (_streamed if args.stream else Reporter.report)(reporter, name, clue_scores=forced)
        except InputError as error:
            print(f"trrg: {name}: {error}", file=sys.stderr)
            code = error.exit_code
            continue
        if args.out:
            print(f"{name}: {', '.join(_save(made, outputs, Path(args.out), number=number))}")
        else:
            _show(made, outputs, title=f"{name}:\n" if len(args.input) > 1 else "")
    return code


def _streamed(reporter: Reporter, name: str, *, clue_scores: Mapping[str, float]) -> Report:
    """Print each sentence as it is completed; return the report."""
    from trrg_sdk.report import Report

    parts = reporter.stream(name, clue_scores=clue_scores)
    while not isinstance(part := next(parts), Report):
        print(f"{part.verdict}: {part.text}", flush=True)
    print()
    return part


def _show(made: Report, outputs: Sequence[Output], *, title: str) -> None:
    sys.stdout.flush()
    for output in outputs:
        heading = os.fsencode(title) if output.NAME == "text" else b""  # JSON stays JSON for whoever reads the stream
        sys.stdout.buffer.write(heading + output.render(made))
    sys.stdout.buffer.flush()


def _save(made: Report, outputs: Sequence[Output], folder: Path, *, number: int) -> list[str]:
    """Write each file beside its place and rename it, so that a reader never sees half of one."""
    stem, names = _stem(made, number), []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for output in outputs:
            target = folder / f"{stem}{output.EXTENSION}"
            partial = target.with_name(f".{target.name}.partial")
            partial.write_bytes(output.render(made))
            os.replace(partial, target)
            names.append(target.name)
    except OSError as error:
        raise UsageError(f"--out: cannot write into this folder ({error.strerror}); choose another one") from error
    return names


def _stem(made: Report, number: int) -> str:
    """A name that is always the same for an image and tells nothing about the patient."""
    uid = next(image.sop_instance_uid for image in made.images if image.used)
    return f"report-{hashlib.sha256(uid.encode()).hexdigest()[:16]}" if uid else f"report-input-{number}"


def _verify(args: argparse.Namespace) -> int:
    """Compare every file with the manifest, and the signature with a key; a difference is a ``BundleError``."""
    from trrg_sdk.listing import headline, parity
    from trrg_sdk.signature import is_signed, verify

    bundle = _open_bundle(args)
    if args.key:
        verify(bundle, Path(args.key))
        signed = f"signed by the holder of {args.key}"
    else:
        signed = "signature there, not checked: name the maker's key with --key" if is_signed(bundle) else "not signed"
    print(f"ok: {headline(bundle.manifest)}; every hash agrees; {signed}")
    for line in parity(bundle.manifest):
        print(line)
    return 0


def _inspect(args: argparse.Namespace) -> int:
    """Print what a bundle says about itself."""
    from trrg_sdk.listing import graph_table, overview

    bundle = _open_bundle(args)
    if args.json:
        sys.stdout.write(bundle.manifest.to_json())
        return 0
    for line in graph_table(bundle) if args.graph else overview(bundle):
        print(line)
    return 0


def _doctor(args: argparse.Namespace) -> int:
    """Print a table to paste into an issue; what is missing is a line of it and no error."""
    from trrg_sdk.doctor import examine

    rows = examine()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def _open_bundle(args: argparse.Namespace) -> Bundle:
    from trrg_sdk.bundle import Bundle

    return Bundle.embedded() if args.bundle is None else Bundle.load(args.bundle)
