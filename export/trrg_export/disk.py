"""A disk that fills up while a bundle is built: one sentence instead of whatever a library says then."""

from __future__ import annotations

import errno
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trrg_sdk.errors import UsageError

_FULL = {errno.ENOSPC, errno.EDQUOT}
# numpy's array writer gives no error number, safetensors no OSError at all.
_SAYS_FULL = re.compile(r"No space left on device|Disk quota exceeded|\d+ requested and \d+ written")


@contextmanager
def room_for(out: Path, checkpoint: Path) -> Iterator[None]:
    """Translate a full disk; what was written so far is for the caller to remove, inside of this.

    Args:
        out: Where the bundle will be.
        checkpoint: What it is made of; its size says how much room an export takes.

    Raises:
        UsageError: The disk is full.
    """
    try:
        yield
    except Exception as error:  # libraries raise what they like: RuntimeError, SafetensorError, OSError without errno
        if not _is_full(error):
            raise
        raise UsageError(_advice(out, checkpoint)) from error


def _is_full(error: BaseException | None) -> bool:
    while error is not None:
        if getattr(error, "errno", None) in _FULL or _SAYS_FULL.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _advice(out: Path, checkpoint: Path) -> str:
    size = sum(path.stat().st_size for path in checkpoint.iterdir() if path.is_file())
    scratch = Path(tempfile.gettempdir())
    return (
        f"the disk is full, and nothing was left behind: {_free(out.parent)} MB are free in {out.parent}, for the "
        f"bundle and what it is made of, and {_free(scratch)} MB in {scratch} for small files (TMPDIR moves them); a "
        f"checkpoint of {size / 1e6:.0f} MB needs about three times as much in the first"
    )


def _free(folder: Path) -> str:
    return f"{shutil.disk_usage(folder).free / 1e6:.0f}"
