"""The command ``trrg``.

Exit codes: 0 done, 2 usage, 3 an input was refused, 4 bundle invalid, 5 device unavailable. Everything that goes
wrong is one line on standard error. Each subcommand imports what it needs only when it was chosen.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from trrg_sdk.errors import InputError, TrrgError, UsageError
from trrg_sdk.site import cli as site_cli
from trrg_sdk.site import dicom_cli
from trrg_sdk.version import __version__

if TYPE_CHECKING:
    from trrg_sdk.bundle import Bundle
    from trrg_sdk.outputs import Output
    from trrg_sdk.reading import Reading
    from trrg_sdk.report import Report
    from trrg_sdk.reporter import Reporter


_CLOSED_PIPE = 141
"""Exit code of a program whose reader went away, as a shell gives it for SIGPIPE."""


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
    site_cli.declare(commands)
    verify = commands.add_parser("verify", help="check every file of a bundle, and its signature")
    inspect = commands.add_parser("inspect", help="say what is in a bundle")
    for command in (verify, inspect):
        command.add_argument("bundle", nargs="?", metavar="BUNDLE", help="its folder (default: the embedded one)")
    verify.add_argument("--key", metavar="PUB", help="the maker's Ed25519 public key (PEM): check the signature too")
    form = inspect.add_mutually_exclusive_group()
    form.add_argument("--graph", action="store_true", help="parameters, operators and FLOPs of each graph")
    form.add_argument("--json", action="store_true", help="the whole manifest, for programs")
    doctor = commands.add_parser("doctor", help="say what this machine can run, and why not the rest")
    doctor.add_argument("--site", metavar="TOML", help="try a site's configuration instead: folders, port, nodes, ...")
    dicom_cli.declare_receive(commands.add_parser("receive", help="receive radiographs by DICOM C-STORE"))
    dicom_cli.declare_send(commands.add_parser("send", help="send DICOM files to a node, with retries"))
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
        "batch": site_cli.run_batch,
        "watch": site_cli.run_watch,
        "verify": _verify,
        "inspect": _inspect,
        "doctor": _doctor,
        "receive": dicom_cli.receive,
        "send": dicom_cli.send,
    }
    try:
        code = commands[args.command](args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python says it once more at exit
        return _CLOSED_PIPE
    except TrrgError as error:
        print(f"trrg: {error}", file=sys.stderr)
        return error.exit_code


def _declare_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", metavar="INPUT", help="a DICOM file, or the folder of one study")
    parser.add_argument("--bundle", metavar="DIR", help="the model to use (default: the embedded one)")
    parser.add_argument(
        "--device",
        default="auto",
        metavar="D",
        help="auto (cpu or cuda, the default), cpu, cuda, openvino, tensorrt or tensorrt-rtx",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: the physical cores)")
    parser.add_argument("--out", metavar="DIR", help="write files here instead of to the screen")
    parser.add_argument(
        "--format", default="text", metavar="F[,F]", help="formats of the table in the README (default: text)"
    )
    parser.add_argument(
        "--deidentify",
        metavar="KEYFILE",
        help="take the patient out of every output (PS3.15 basic profile); a secret file of at least 32 random bytes",
    )
    parser.add_argument("--stream", action="store_true", help="print each sentence as it is completed, then the report")
    parser.add_argument(
        "--accept",
        action="append",
        default=[],
        metavar="CODE",
        help="report although the gate refuses with this code; the report says so (repeatable)",
    )
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
    from trrg_sdk.outputs.deidentify import deidentify, read_key

    outputs = [open_output(name.strip()) for name in args.format.split(",")]
    if not args.out and any(output.EXTENSION.endswith(".dcm") for output in outputs):
        raise UsageError("a DICOM file is not for the screen; name a folder with --out")
    key = read_key(args.deidentify) if args.deidentify else b""
    if args.stream and (args.out or args.format != "text"):
        raise UsageError("--stream prints text to the screen: leave out --out and --format")
    from trrg_sdk.reporter import Reporter

    reporter = Reporter(args.bundle, device=args.device, threads=args.threads, accept=args.accept)
    forced, code = dict(args.force_clue), 0
    for number, (name, made) in enumerate((_streamed if args.stream else _made)(reporter, args.input, forced), start=1):
        try:
            if isinstance(made, InputError):
                raise made
            made = deidentify(made, key) if key else made
            written = [(output, output.render(made)) for output in outputs]
        except InputError as error:
            print(f"trrg: {name}: {error}", file=sys.stderr)
            code = error.exit_code
            continue
        if args.out:
            print(f"{name}: {', '.join(_save(written, Path(args.out), stem=_stem(made.report, number)))}")
        else:
            _show(written, title=f"{name}:\n" if len(args.input) > 1 else "")
    return code


def _made(
    reporter: Reporter, names: Sequence[str], forced: Mapping[str, float]
) -> Iterator[tuple[str, Reading | InputError]]:
    """Make the reports, in order; several studies are worked on at once, a single one needs no other threads."""
    many = reporter.report_many(names, clue_scores=forced, batch_size=1 if len(names) == 1 else None, readings=True)
    for name, outcome in zip(names, many, strict=True):
        made = outcome.reading or outcome.error
        assert made is not None
        yield name, made


def _streamed(
    reporter: Reporter, names: Sequence[str], forced: Mapping[str, float]
) -> Iterator[tuple[str, Reading | InputError]]:
    """Make the reports one after the other, and print each sentence as it is completed."""
    from trrg_sdk.reading import Reading
    from trrg_sdk.report import Report

    for name in names:
        try:
            parts = reporter.stream(name, clue_scores=forced)
            while not isinstance(part := next(parts), Report):
                print(f"{part.verdict}: {part.text}", flush=True)
        except InputError as error:
            yield name, error
        else:
            print()
            yield name, Reading(part)


def _show(written: Sequence[tuple[Output, bytes]], *, title: str) -> None:
    sys.stdout.flush()
    for output, content in written:
        heading = os.fsencode(title) if output.NAME == "text" else b""  # JSON stays JSON for whoever reads the stream
        sys.stdout.buffer.write(heading + content)
    sys.stdout.buffer.flush()


def _save(written: Sequence[tuple[Output, bytes]], folder: Path, *, stem: str) -> list[str]:
    """Write each file beside its place and rename it, so that a reader never sees half of one."""
    names = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for output, content in written:
            target = folder / f"{stem}{output.EXTENSION}"
            partial = target.with_name(f".{target.name}.partial")
            partial.write_bytes(content)
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
    if args.site:
        return dicom_cli.doctor(args)
    from trrg_sdk.doctor import examine

    rows = examine()
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        print(f"{name:<{width}}  {value}")
    return 0


def _open_bundle(args: argparse.Namespace) -> Bundle:
    from trrg_sdk.bundle import Bundle

    return Bundle.embedded() if args.bundle is None else Bundle.load(args.bundle)
