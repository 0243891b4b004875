"""``trrg batch`` and ``trrg watch``: their options, and what they say."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from trrg_sdk.errors import InputError, UsageError

if TYPE_CHECKING:
    from trrg_sdk.reporter import Reporter
    from trrg_sdk.site.batch import Tally
    from trrg_sdk.site.config import SiteConfig
    from trrg_sdk.site.job import Job

_DEFAULTS: dict[str, object] = {
    "device": "auto",
    "workers": 4,
    "format": "text",
    "settle": 5.0,
    "rescan": 60.0,
    "accept": [],
}
"""What is done where neither the command line nor a site's configuration says anything."""

INTERRUPTED = 130
"""Exit code of a batch that was stopped before it was done, as of any program that Ctrl-C ends."""


def declare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare both commands."""
    batch = commands.add_parser("batch", help="report on a folder of studies; run again to go on")
    watch = commands.add_parser("watch", help="report on studies as they arrive in a folder")
    for parser in (batch, watch):  # no defaults here: a site's configuration comes before them
        parser.add_argument("folder", nargs="?", metavar="FOLDER", help="studies: any tree, also ZIP archives")
        parser.add_argument("--out", metavar="DIR", help="reports, index.html, summary.csv, the ledger")
        parser.add_argument(
            "--site",
            metavar="TOML",
            help="a site's configuration says what other options do not; DICOM outputs are queued as it says",
        )
        parser.add_argument("--bundle", metavar="DIR", help="the model to use (default: the embedded one)")
        parser.add_argument("--device", metavar="D", help="as of trrg report (default: auto)")
        parser.add_argument("--threads", type=int, metavar="N", help="processor threads (default: the physical cores)")
        parser.add_argument(
            "--workers", type=_positive, metavar="N", help="threads that read headers and hash files (default: 4)"
        )
        parser.add_argument("--format", metavar="F[,F]", help="as of trrg report (default: text)")
        parser.add_argument(
            "--settle",
            type=_seconds,
            metavar="S",
            help="leave files alone that changed less than so many seconds ago (default: 5)",
        )
        parser.add_argument(
            "--accept", action="append", metavar="CODE", help="override a code of the gate (repeatable)"
        )
        parser.add_argument(
            "--deidentify", metavar="KEYFILE", help="take the patient out of every output; as of trrg report"
        )
    batch.add_argument("--limit", type=_positive, metavar="N", help="report so many studies at most")
    batch.add_argument("--dry-run", action="store_true", help="say what would be done, and write nothing")
    watch.add_argument("--rescan", type=_seconds, metavar="S", help="look anyway every so many seconds (default: 60)")


def run_batch(args: argparse.Namespace) -> int:
    """Report on everything in a folder."""
    from trrg_sdk.site.dicom_cli import queueing
    from trrg_sdk.site.lock import Stop
    from trrg_sdk.site.progress import open_progress

    args, site = _settled(args)
    job = _job(args)
    job = replace(job, options=replace(job.options, limit=args.limit))
    if args.dry_run:
        return _dry_run(job, args)
    job.tree()  # a wrong folder is said before the model opens
    job = replace(job, options=replace(job.options, filed=queueing(site)))
    stop = Stop()
    try:
        with stop.on_signals(), job.opened(_reporter(args)) as opened:
            tally = opened.run(open_progress(sys.stderr), stop)
    except KeyboardInterrupt:
        return INTERRUPTED
    for line in _said(tally):
        print(line)
    if stop():
        print("stopped before the end; run again to go on", file=sys.stderr)
        return INTERRUPTED
    return InputError.exit_code if tally.standing["refused"] or tally.standing["failed"] else 0


def run_watch(args: argparse.Namespace) -> int:
    """Report on what arrives, until somebody stops it."""
    from trrg_sdk.site.dicom_cli import queueing
    from trrg_sdk.site.lock import Stop
    from trrg_sdk.site.progress import open_progress
    from trrg_sdk.site.watch import AT_ONCE, watch

    named = args.folder
    args, site = _settled(args)
    if named is None and site and site.watch.folder is None:
        Path(args.folder).mkdir(mode=0o700, parents=True, exist_ok=True)  # the receiver may not have started yet
    job = _job(args)
    job.tree()
    job = replace(job, options=replace(job.options, limit=AT_ONCE, filed=queueing(site)))
    stop = Stop()
    try:
        with stop.on_signals(), job.opened(_reporter(args)) as opened:
            print("watching; Ctrl-C or SIGTERM ends it after the study at hand", file=sys.stderr)
            for tally in watch(job, opened, open_progress(sys.stderr), stop, rescan_s=args.rescan):
                for line in _said(tally):
                    print(line, flush=True)
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _settled(args: argparse.Namespace) -> tuple[argparse.Namespace, SiteConfig | None]:
    """Each option as the command line says, else as the site's configuration does, else its default.

    Raises:
        UsageError: The configuration has problems, or nothing says what to read and where to write.
    """
    from trrg_sdk.site.config import read_site
    from trrg_sdk.site.dicom_cli import options_of

    site = read_site(Path(args.site)) if args.site else None
    given = {name: value for name, value in vars(args).items() if value is not None}
    said = options_of(site) if site else {}
    settled = argparse.Namespace(**dict.fromkeys(vars(args)) | _DEFAULTS | said | given)
    if site and settled.folder is None:
        raise UsageError(f"{args.site} names no folder to read: give it watch.folder or a table [receive], or name one")
    if settled.folder is None or settled.out is None:
        raise UsageError("name the folder of the studies and --out DIR, or a configuration with --site TOML")
    return settled, site


def _job(args: argparse.Namespace) -> Job:
    from trrg_sdk.gate_codes import accepted
    from trrg_sdk.outputs.deidentify import read_key
    from trrg_sdk.site.job import Job, open_outputs

    key = read_key(args.deidentify) if args.deidentify else b""
    options = replace(
        open_outputs(args.format),
        workers=args.workers,
        settle_s=args.settle,
        key=key,
        accept=accepted(args.accept),
    )
    return Job(Path(args.folder), Path(args.out), options)


def _reporter(args: argparse.Namespace) -> Reporter:
    from trrg_sdk.reporter import Reporter

    return Reporter(args.bundle, device=args.device, threads=args.threads, accept=args.accept)


def _dry_run(job: Job, args: argparse.Namespace) -> int:
    """One line a study that would be reported, by its hash; and how many are done, arriving or left out."""
    from trrg_sdk.bundle import Bundle

    bundle = Bundle.embedded() if args.bundle is None else Bundle.load(args.bundle)
    seen = job.preview(bundle)
    for study in seen.todo[: job.options.limit]:
        why = sorted({image.code for image in study.left_out})
        left = f", left out: {', '.join(why)}" if why else ""
        print(f"{study.name}  images to try: {len(study.candidates)} of {len(study.images)}{left}")
    done = len(seen.studies) - len(seen.todo)
    print(f"would report {len(seen.todo[: job.options.limit])} of {len(seen.studies)} studies; {done} are done already")
    for line in _files(seen.waiting, seen.left_out):
        print(line)
    return 0


def _said(tally: Tally) -> Sequence[str]:
    from trrg_sdk.site.progress import listed

    lines = [f"this time: {listed(tally.finished)}; in all: {listed(tally.standing)}"]
    return [*lines, *_files(tally.waiting, tally.left_out)]


def _files(waiting: int, left_out: dict[str, int]) -> Sequence[str]:
    lines = [f"studies still arriving, left for the next time: {waiting}"] if waiting else []
    words = ", ".join(f"{number} {code}" for code, number in sorted(left_out.items()))
    return [*lines, f"files passed over: {words}"] if words else lines


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 86_400:
        raise ValueError(text)
    return number
