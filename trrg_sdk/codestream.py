"""The little of a compressed frame that must be known before a decoder may see it: its size and its end.

A decoder allocates what the frame's own header claims, and some decoders fill what is missing of a cut-off frame
with grey. Both are checked here, on the bytes.
"""

from __future__ import annotations

import struct

_SOF = {*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0), 0xF7}  # T.81 B.1.1.3, T.87
_JP2_SIGNATURE = b"\x00\x00\x00\x0cjP  "  # T.800 I.5.1: a whole file instead of the bare codestream
_SOC_SIZ = b"\xff\x4f\xff\x51"  # T.800 A.4.1, A.5.1
_END = b"\xff\xd9"  # EOI (T.81) and EOC (T.800) are the same two bytes


def frame_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 frame declares; None when it is none of these.

    Args:
        frame: One compressed frame.
    """
    try:
        if frame[:2] == b"\xff\xd8":
            return _jpeg_size(frame)
        start = 0 if frame[:4] == _SOC_SIZ else frame.find(_SOC_SIZ) if frame[:8] == _JP2_SIGNATURE else -1
        if start < 0:
            return None
        right, lower, left, upper = struct.unpack_from(">4I", frame, start + 8)  # Xsiz Ysiz XOsiz YOsiz
        return max(0, lower - upper), max(0, right - left)
    except (struct.error, IndexError):
        return None


def is_complete(frame: bytes) -> bool:
    """True when the frame ends with its end marker (a few bytes of padding may follow).

    Args:
        frame: One JPEG, JPEG-LS or JPEG 2000 frame. Entropy-coded data cannot hold the marker by chance.
    """
    return _END in frame.rstrip(b"\0")[-16:]


def _jpeg_size(frame: bytes) -> tuple[int, int] | None:
    """Rows and columns in the first start-of-frame segment (T.81 B.2.2, T.87 C.2.2)."""
    at = 2
    while at + 9 <= len(frame):
        if frame[at] != 0xFF:
            return None
        marker = frame[at + 1]
        if marker == 0xFF:  # fill byte, T.81 B.1.1.2
            at += 1
        elif marker in _SOF:
            rows, columns = struct.unpack_from(">2H", frame, at + 5)
            return int(rows), int(columns)
        else:
            at += 2 + int(struct.unpack_from(">H", frame, at + 2)[0])
    return None
