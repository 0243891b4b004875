"""The command ``trrg``.

Exit codes: 0 done, 2 usage, 3 an input was refused, 4 bundle invalid, 5 device unavailable. Everything that goes
wrong is one line on standard error. Each subcommand imports what it needs only when it is chosen.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from trrg_sdk.errors import TrrgError
from trrg_sdk.version import __version__

_COMMANDS = {"report": "report", "verify": "bundles", "inspect": "bundles", "doctor": "doctor"}
"""Subcommand → module of this package; the function has the subcommand's name."""


def build_parser() -> argparse.ArgumentParser:
    """Declare every option; nothing heavy is imported."""
    parser = argparse.ArgumentParser(
        prog="trrg",
        description="Draft reports for chest radiographs; every sentence says what supports it.",
        epilog="Exit codes: 0 done, 2 usage, 3 an input was refused, 4 bundle invalid, 5 device unavailable.",
    )
    parser.add_argument("--version", action="version", version=f"trrg {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_report(commands.add_parser("report", help="report on radiographs"))
    for name, summary in (("verify", "check every file of a bundle"), ("inspect", "say what is in a bundle")):
        command = commands.add_parser(name, help=summary)
        command.add_argument("bundle", nargs="?", metavar="BUNDLE", help="its folder (default: the embedded one)")
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
    module = import_module(f"trrg_sdk.cli.{_COMMANDS[args.command]}")
    try:
        return int(getattr(module, args.command)(args))
    except TrrgError as error:
        print(f"trrg: {error}", file=sys.stderr)
        return error.exit_code


def _add_report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("input", nargs="+", metavar="INPUT", help="a DICOM file, or the folder of one study")
    parser.add_argument("--bundle", metavar="DIR", help="the model to use (default: the embedded one)")
    parser.add_argument("--device", default="auto", metavar="D", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: the physical cores)")
    parser.add_argument("--out", metavar="DIR", help="write files here instead of the screen")
    parser.add_argument("--format", default="text", metavar="F,F", help="text, json, or both (default: text)")
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
