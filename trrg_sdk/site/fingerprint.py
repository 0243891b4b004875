"""What tells the images of a study from any others: a hash over their bytes.

It is BLAKE3, since all bytes of all films are hashed: on processors without instructions for SHA-256 that one takes
ten times as long (``tests/benchmarks/results/site_batch.md``). Ledgers that were begun earlier hold SHA-256; what
stands in them is compared by it, so that no study is reported again for another hash.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import BinaryIO

from blake3 import blake3

_MARK = b"blake3 "
_BLOCK = 1 << 20


def of_bytes(content: bytes) -> bytes:
    """Hash the bytes of one image, for :func:`of_parts`."""
    return blake3(content).digest()


def of_stream(stream: BinaryIO, *, like: bytes = b"") -> bytes:
    """Hash what is left of a stream, for :func:`of_parts`, as the fingerprint ``like`` was made."""
    digest = hashlib.sha256() if _is_sha256(like) else blake3()
    while block := stream.read(_BLOCK):
        digest.update(block)
    return digest.digest()


def of_parts(parts: Iterable[bytes], *, like: bytes = b"") -> bytes:
    """Fingerprint a study, in whatever order its parts are given.

    Args:
        parts: Hashes of its images, or what else it is known by.
        like: The fingerprint that it will be compared with; b"" for none.
    """
    content = b"".join(sorted(parts))
    return hashlib.sha256(content).digest() if _is_sha256(like) else _MARK + blake3(content).digest()


def _is_sha256(fingerprint: bytes) -> bool:
    return bool(fingerprint) and not fingerprint.startswith(_MARK)
