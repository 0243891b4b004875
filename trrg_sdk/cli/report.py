"""``trrg report``: radiographs to the screen or to files."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from trrg_sdk.errors import InputError, UsageError
from trrg_sdk.outputs import Output, open_output
from trrg_sdk.report import Report


def report(args: argparse.Namespace) -> int:
    """Report on every input; one that is refused does not stop the others.

    Returns:
        0, or 3 when an input was refused.
    """
    outputs = [open_output(name.strip()) for name in args.format.split(",")]
    from trrg_sdk.reporter import Reporter

    reporter = Reporter(args.bundle, device=args.device, threads=args.threads)
    forced, code = dict(args.force_clue), 0
    for number, name in enumerate(args.input, start=1):
        try:
            made = reporter.report(name, clue_scores=forced)
        except InputError as error:
            print(f"trrg: {name}: {error}", file=sys.stderr)
            code = error.exit_code
            continue
        if args.out:
            print(f"{name}: {', '.join(_save(made, outputs, Path(args.out), number=number))}")
        else:
            _show(made, outputs, title=f"{name}:\n" if len(args.input) > 1 else "")
    return code


def _show(made: Report, outputs: Sequence[Output], *, title: str) -> None:
    sys.stdout.flush()
    for output in outputs:
        heading = title if output.NAME == "text" else ""  # JSON stays JSON for whoever reads the stream
        sys.stdout.buffer.write(heading.encode(errors="surrogateescape") + output.render(made))
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
