"""Every error that the SDK raises on purpose.

    TrrgError
    ├── UsageError            an argument makes no sense                          exit 2
    ├── InputError            this input cannot be reported                       exit 3
    │   ├── DicomError        the file cannot be read or decoded
    │   └── RefusedError      it was read, and the gate refuses it (has reasons)
    ├── BundleError           the bundle is missing, changed or unknown           exit 4
    └── DeviceError           the device that was asked for does not work here    exit 5

A message says what was expected, what came and what to do. It never holds patient data: no name, no
identifier, no free text of a DICOM file.
"""

from __future__ import annotations

from collections.abc import Sequence


class TrrgError(Exception):
    """The root: catch this one to catch all of ours."""

    exit_code = 1


class UsageError(TrrgError):
    """An argument or an option makes no sense."""

    exit_code = 2


class InputError(TrrgError):
    """This input cannot be reported."""

    exit_code = 3

    def __init__(self, message: str, *, code: str) -> None:
        """Keep the machine-readable reason.

        Args:
            message: One sentence a technician understands, and what to do.
            code: A stable identifier such as ``"no_pixels"``.
        """
        super().__init__(message)
        self.code = code


class DicomError(InputError):
    """The file cannot be read or decoded as DICOM."""


class RefusedError(InputError):
    """The image was read, and the gate refuses to have it reported.

    Attributes:
        reasons: Every reason, the first one is the message's. Each is a ``trrg_sdk.report.GateReason``.
    """

    def __init__(self, message: str, *, code: str, reasons: Sequence[object] = ()) -> None:
        """Keep all reasons, not only the first."""
        super().__init__(message, code=code)
        self.reasons = tuple(reasons)


class BundleError(TrrgError):
    """The bundle is missing, incomplete, changed or of an unknown kind."""

    exit_code = 4


class DeviceError(TrrgError):
    """The device that was asked for does not work on this machine."""

    exit_code = 5
