"""A bundle appears at its place whole or not at all: it is built beside it and renamed."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A folder on the same file system, so that one rename makes it the bundle; gone afterwards in any case.

    Args:
        out: The bundle's place.
    """
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".partial", dir=out.parent))
    folder.chmod(0o755)  # mkdtemp gives 0700, a bundle is for everybody on the machine
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put_in_place(folder: Path, out: Path) -> None:
    """Rename the finished folder; a bundle that was there is moved aside first and put back when that fails."""
    if not out.exists():
        folder.rename(out)
        return
    with beside(out) as aside:
        old = out.rename(aside / "replaced")
        try:
            folder.rename(out)
        except OSError:
            old.rename(out)
            raise
