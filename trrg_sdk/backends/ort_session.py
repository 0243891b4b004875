"""Sessions of ONNX Runtime: how they are opened, described and run, and what its exceptions become."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from trrg_sdk.errors import BundleError, DeviceError, UsageError
from trrg_sdk.manifest import TensorSpec

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
# What is said to be float32 is: with TF32, ONNX Runtime's default, the patches of a mini bundle lay 1e-4 of the
# largest from the CPU's, without it 4e-7 (H200).
_SETTINGS: dict[str, dict[str, str]] = {"cpu": {}, "cuda": {"use_tf32": "0"}}

EXACT_SUMS = ("session.x64quantprecision", "1")
"""An option for graphs whose int8 weights use all their bits, as decoders' do, on processors without VNNI.

They add two products of eight bits in sixteen and cut off what does not fit: half of a sum can be lost. With this
option ONNX Runtime takes kernels whose sums are exact. It takes them with VNNI too, where a pass over 16 positions of
45 M weights then lasts 10.7 ms in place of 6.3 and nothing is won.
"""

_LOG_ERRORS_ONLY = 3  # ONNX Runtime's severities: 0 verbose, 1 info, 2 warning, 3 error, 4 fatal
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(int64)": "int64"}


class OrtGraph:
    """One session; ONNX Runtime lets several threads run it at once."""

    def __init__(self, session: Any, label: str) -> None:
        """Keep an opened session.

        Args:
            session: An ``onnxruntime.InferenceSession``.
            label: The file's name, for messages.
        """
        self._session = session
        self._label = label
        self.inputs = tensor_specs(session.get_inputs())
        self.outputs = tensor_specs(session.get_outputs())

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once; see :class:`trrg_sdk.backends.base.Graph`.

        Raises:
            UsageError: An input is missing, unknown or of the wrong dtype or shape.
            DeviceError: The runtime failed.
        """
        with translated(self._label):
            values = self._session.run(None, dict(inputs))
        return {spec.name: value for spec, value in zip(self.outputs, values, strict=True)}


def tensor_specs(arguments: list[Any]) -> tuple[TensorSpec, ...]:
    """Convert ONNX Runtime's descriptions of tensors; a free axis without a name becomes ``"?"``."""
    return tuple(
        TensorSpec(
            name=argument.name,
            dtype=_DTYPES.get(argument.type, argument.type),
            axes=tuple(axis if isinstance(axis, int | str) else "?" for axis in argument.shape),
        )
        for argument in arguments
    )


def open_session(
    model: str | bytes, label: str, device: str, threads: int, options: Any = None, *, captured: bool = False
) -> Any:
    """Open a session and make sure that it runs on the device that was asked for.

    Args:
        model: A file, or its bytes.
        label: The file's name, for messages.
        device: ``"cpu"`` or ``"cuda"``.
        threads: That it may use; 0 leaves that to ONNX Runtime.
        options: Further ``onnxruntime.SessionOptions``; changed.
        captured: Whether runs on a GPU are captured as CUDA graphs; one that computes on the CPU in between is refused.

    Raises:
        BundleError: The model is no ONNX graph that this version runs.
        DeviceError: The device refuses it.
    """
    import onnxruntime

    options = options or onnxruntime.SessionOptions()
    options.log_severity_level = _LOG_ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry(*waiting(onnxruntime.__version__))
    try:
        providers = [(PROVIDERS[device], _SETTINGS[device] | ({"enable_cuda_graph": "1"} if captured else {}))]
        session = onnxruntime.InferenceSession(model, options, providers=providers)
    except foreign_errors() as error:
        if device != "cpu":
            raise DeviceError(f"{label} cannot be opened on {device}: {error}") from error
        raise BundleError(
            f"{label}: expected an ONNX graph that ONNX Runtime {onnxruntime.__version__} runs, got: {error}. Restore "
            "the bundle from its source, or install the version that its manifest names."
        ) from error
    _check_device(session, label, device)
    return session


def _check_device(session: Any, label: str, device: str) -> None:
    """Refuse a session that ONNX Runtime opened on another device than was asked for, which it does by itself."""
    import onnxruntime

    if PROVIDERS[device] not in (got := session.get_providers()):
        raise DeviceError(
            f"{label}: expected it to run on {device}, got {got}. The NVIDIA driver, CUDA or cuDNN that "
            f"onnxruntime-gpu {onnxruntime.__version__} needs is missing. Install them, or use device cpu."
        )


def waiting(version: str) -> tuple[str, str]:
    """How long threads of a session wait for work at full speed before they sleep.

    The next product of a pass comes within some 10 us, and waking a thread takes longer than that. Without a limit they
    take the time of whatever else the machine does: int4 of 100 M weights with two threads beside 15 busy processes
    took 7.9 ms of CPU a token when they slept at once, 7.0 with 100 us, 14.1 without a limit.

    Args:
        version: Of ONNX Runtime; before 1.27 it knew no limit, and threads sleep at once.

    Returns:
        An entry for the session's configuration, name and value.
    """
    if tuple(map(int, version.split(".")[:2])) < (1, 27):
        return "session.intra_op.allow_spinning", "0"
    return "session.intra_op.spin_duration_us", "100"


@functools.cache
def foreign_errors() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises: its own exceptions, which share no base, and those of its Python layer."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*own, RuntimeError, ValueError, TypeError)


@contextmanager
def translated(label: str) -> Iterator[None]:
    """Turn ONNX Runtime's exceptions while running into ours."""
    try:
        yield
    except foreign_errors() as error:
        raise translation(label, error) from error


def translation(label: str, error: Exception) -> UsageError | DeviceError:
    """Return our exception for one of :func:`foreign_errors` that was raised while running.

    Args:
        label: The file's name, for messages.
        error: What was raised.
    """
    if type(error).__name__ in ("InvalidArgument", "ValueError", "TypeError"):
        return UsageError(f"{label}: expected inputs that fit the graph, got: {error}")
    return DeviceError(f"{label}: ONNX Runtime failed while running: {error}")
