"""What this machine can run, and why not the rest."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version

from trrg_sdk.backends.large_pages import setting
from trrg_sdk.backends.onnxruntime import NARROW
from trrg_sdk.errors import BundleError, DeviceError, UsageError
from trrg_sdk.processors import instructions, processors
from trrg_sdk.version import __version__

_PACKAGES = (
    "blake3",
    "numpy",
    "pillow",
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
    "tokenizers",
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "cuda-bindings",
)
_CODECS = (
    "JPEGBaseline8Bit",
    "JPEGExtended12Bit",
    "JPEGLossless",
    "JPEGLosslessSV1",
    "JPEGLSLossless",
    "JPEGLSNearLossless",
    "JPEG2000Lossless",
    "JPEG2000",
    "HTJ2KLossless",
    "RLELossless",
)
"""The compressed transfer syntaxes in which radiographs come, as ``pydicom.uid`` names them."""
_ARITHMETIC = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_BACKENDS = ("onnxruntime", "openvino", "tensorrt")


def examine() -> list[tuple[str, str]]:
    """Look at this machine.

    Returns:
        What was looked at and what was found; what is missing is found too, and no error.
    """
    return [*_machine(), *_packages(), *_codecs(), *_backends(), *_devices(), *_outputs(), _embedded()]


def _machine() -> Iterator[tuple[str, str]]:
    yield "trrg-sdk", __version__
    yield "python", platform.python_version()
    yield "system", f"{platform.system()} {platform.machine()}"
    yield from _processors()


def _processors() -> Iterator[tuple[str, str]]:
    found = processors()
    yield "processors", str(found.logical)
    yield "arithmetic", ", ".join(name for name in _ARITHMETIC if name in instructions()) or "not known on this system"
    yield "affinity", "not known on this system" if found.allowed is None else f"{found.allowed} of them allowed"
    yield "physical cores", "not known: processors are counted" if found.cores is None else f"{found.cores} allowed"
    yield "container limit", "none" if found.limit is None else f"{found.limit:g} processors"
    yield (
        "threads",
        f"{found.threads} for a graph, 1 for a decoder narrower than {NARROW}, none pinned; --threads sets it",
    )
    yield "large pages", setting()
    yield "threads reading ahead", f"{found.threads}, as many as --threads says"


def _packages() -> Iterator[tuple[str, str]]:
    for name in _PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not installed"


def _codecs() -> Iterator[tuple[str, str]]:
    import pydicom.uid
    from pydicom.pixels.decoders.base import get_decoder

    for keyword in _CODECS:
        uid = getattr(pydicom.uid, keyword)
        decoder = get_decoder(uid)
        missing = "; ".join(decoder.missing_dependencies)
        yield f"codec {keyword}", "ok" if decoder.is_available else f"no decoder: {missing}"


def _backends() -> Iterator[tuple[str, str]]:
    for name in _BACKENDS:
        reason = import_module(f"trrg_sdk.backends.{name}").unavailable_reason()
        yield f"backend {name}", reason or "ok"


def _devices() -> Iterator[tuple[str, str]]:
    from trrg_sdk.backends import DEVICES, open_backend

    for device in DEVICES:
        try:
            yield f"device {device}", f"ok ({open_backend(device=device).name})"
        except DeviceError as error:
            yield f"device {device}", str(error)


def _outputs() -> Iterator[tuple[str, str]]:
    from trrg_sdk.outputs import FORMATS, open_output

    for name in FORMATS:
        try:
            yield f"output {open_output(name).NAME}", "ok"
        except UsageError as error:
            yield f"output {name}", str(error)


def _embedded() -> tuple[str, str]:
    from trrg_sdk.bundle import Bundle

    try:
        return "embedded bundle", f"ok: {Bundle.embedded().manifest.bundle_id}"
    except BundleError as error:
        return "embedded bundle", str(error)
