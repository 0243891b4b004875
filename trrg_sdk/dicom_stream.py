"""Parsing DICOM with its cost bounded: a hostile file may not keep the parser busy or fill the memory.

pydicom reads what a file's length fields say. Here it reads through a stream that counts: so many reads (each element
costs at least one), so many bytes where only the header is wanted, so many bytes out of a deflated data set.
"""

from __future__ import annotations

import io
import zlib
from typing import TYPE_CHECKING, BinaryIO

from trrg_sdk.errors import DicomError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

MAX_READS = (
    200_000  # about two seconds of pydicom; a header has some hundred elements, a frame in fragments some thousand
)
MAX_HEADER_BYTES = 4 << 20  # what is read of a header; values that nobody asked for are skipped and do not count
MAX_INFLATED = 256 << 20  # the largest image that is decoded has 200 MB

_PIXEL_DATA = 0x7FE00010
_PIXELS = (0x7FE00008, 0x7FE00009, _PIXEL_DATA)


class _Bounded:
    """A binary stream that refuses to be read without end."""

    def __init__(self, stream: BinaryIO, *, max_bytes: int | None = None) -> None:
        self._stream = stream
        self._reads = MAX_READS
        self._bytes = max_bytes
        self.seek, self.tell = stream.seek, stream.tell

    def read(self, size: int = -1) -> bytes:
        """As of any stream; ``DicomError`` when the budget is spent."""
        self._reads -= 1
        if self._reads < 0:
            raise _too_much("more elements than any image has")
        if size < 0:  # pydicom asks for the whole rest only to inflate it (read_partial), and does so without a limit
            return self._deflated()
        content = self._stream.read(size if self._bytes is None else min(size, self._bytes + 1))
        if self._bytes is not None:
            self._bytes -= len(content)
            if self._bytes < 0:
                raise _too_much(f"a header of more than {MAX_HEADER_BYTES >> 20} MiB")
        return content

    def _deflated(self) -> bytes:
        """The deflated rest, after it was inflated and parsed within bounds."""
        from pydicom.filereader import read_dataset

        content = self._stream.read()
        try:
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, MAX_INFLATED + 1)
        except zlib.error as error:
            raise DicomError("the deflated data set is broken; send the file again", code="corrupt") from error
        if len(inflated) > MAX_INFLATED:
            raise _too_much(f"more than {MAX_INFLATED >> 20} MiB in a deflated data set")
        bounded: BinaryIO = _Bounded(io.BytesIO(inflated))  # type: ignore[assignment]
        read_dataset(bounded, False, True, stop_when=_after_pixels)
        return content


def read_all(stream: BinaryIO) -> Dataset:
    """Parse a file up to and with its Pixel Data; what stands behind is not an image's (PS3.3 has only padding there).

    Raises:
        DicomError: It costs more than any image does (code ``too_complex``).
        Exception: What pydicom raises for a broken structure.
    """
    from pydicom.filereader import read_partial

    return read_partial(_Bounded(stream), stop_when=_after_pixels, force=True)  # type: ignore[arg-type]


def read_elements(stream: BinaryIO, keywords: tuple[str, ...]) -> Dataset:
    """Parse some elements of a file's header; the others are skipped, Pixel Data is not reached.

    Raises:
        DicomError: The header is larger than any image's (code ``too_complex``).
        Exception: What pydicom raises for a broken structure.
    """
    from pydicom import dcmread

    bounded: BinaryIO = _Bounded(stream, max_bytes=MAX_HEADER_BYTES)  # type: ignore[assignment]
    return dcmread(bounded, stop_before_pixels=True, force=True, specific_tags=list(keywords))


def _after_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return int(tag) > _PIXEL_DATA


def _too_much(what: str) -> DicomError:
    return DicomError(f"the file holds {what}: it is damaged or hostile. Export the image again.", code="too_complex")
