"""What a reading can be written as: one module a format, all with the same names.

``NAME`` is what ``--format`` calls it, ``EXTENSION`` ends its file names, ``render(reading) -> bytes`` writes it, and
``SHOWS_IMAGE`` tells whether it needs the picture in full size, and
``unavailable_reason()`` says in one sentence what has to be installed first.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Protocol, cast

from trrg_sdk.errors import UsageError
from trrg_sdk.reading import Reading

_MODULES = {
    "text": "text",
    "json": "json",
    "html": "html",
    "sr": "dicom_sr",
    "sr-basic": "dicom_sr_basic",
    "sr-3d": "dicom_sr_3d",
    "heat": "dicom_heat",
    "fhir": "fhir",
    "fhir-r5": "fhir_r5",
    "hl7": "hl7",
}
FORMATS = tuple(_MODULES)


class Output(Protocol):
    """A module of this package.

    Attributes:
        NAME: The format's name.
        EXTENSION: Of its files, with the dot; no two formats share one.
        SHOWS_IMAGE: Whether it shows the picture or places in it, and so needs it in its full size.
    """

    NAME: str
    EXTENSION: str
    SHOWS_IMAGE: bool

    def render(self, reading: Reading) -> bytes:
        """Write the reading.

        Raises:
            InputError: The format needs what this input does not have, such as the patient's context.
        """
        ...

    def unavailable_reason(self) -> str | None:
        """What is missing on this machine, or None."""
        ...


def open_output(name: str) -> Output:
    """Import a format's module only when it is asked for.

    Args:
        name: One of ``FORMATS``.

    Raises:
        UsageError: There is no such format, or a package that it needs is not installed.
    """
    if name not in _MODULES:
        raise UsageError(f"no output format {name!r}; there are {', '.join(FORMATS)}")
    output = cast(Output, import_module(f"trrg_sdk.outputs.{_MODULES[name]}"))
    if reason := output.unavailable_reason():
        raise UsageError(reason)
    return output


def missing_package(package: str, *, extra: str, output: str) -> str | None:
    """One sentence when ``package`` is not installed, else None."""
    try:
        if find_spec(package) is not None:
            return None
    except ModuleNotFoundError:  # the parent of a package with a dot
        pass
    return f"output {output} needs {package}, which is not installed; pip install 'trrg-sdk[{extra}]'"
