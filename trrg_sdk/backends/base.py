"""What a backend is: it opens graphs, and a decoder that keeps its own keys and values.

Every backend module has the same three names: ``NAME``, ``unavailable_reason() -> str | None`` and
``open_backend(*, device, threads) -> Backend``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.errors import UsageError
from trrg_sdk.manifest import DecoderSpec, GraphSpec, Manifest, TensorSpec


class Graph(Protocol):
    """One opened graph without state; several threads may run it at once."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the runtime says about the inputs."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the runtime says about the outputs."""
        ...

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run the graph once.

        Args:
            inputs: Every input by name, in its dtype and shape.

        Returns:
            Every output by name; new arrays that belong to the caller.

        Raises:
            UsageError: An input is missing, unknown or of the wrong dtype or shape.
            DeviceError: The runtime failed.
        """
        ...


class Decoder(Protocol):
    """One sequence being written: a causal language model with its keys and values. One thread at a time.

    The keys and values of positions that were read stay until others are written over them, so forgetting the last
    ones (:meth:`truncate`) costs nothing: they are no longer looked at.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the runtime says about the inputs."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the runtime says about the outputs."""
        ...

    @property
    def length(self) -> int:
        """How many positions were read and not forgotten."""
        ...

    @property
    def free(self) -> int:
        """How many more positions fit."""
        ...

    @property
    def all_rows(self) -> bool:
        """Whether :meth:`read` gives the logits of every position; some graphs are cut down to those of the last."""
        ...

    def prefill(self, embeds: NDArray[np.floating], *, rows: int = 1) -> NDArray[np.float32]:
        """Forget everything, then read a prompt.

        Args:
            embeds: (S, Dl) floating, the embeddings of the whole prompt, and of a draft behind it if there is one.
            rows: Of how many positions, the last ones, the logits are wanted; 1 where ``all_rows`` is false.

        Returns:
            float32 (rows, V), the logits after each. The caller may write into it; valid until the next call.

        Raises:
            UsageError: The shape is wrong, or this is longer than the decoder's ``max_length``.
            DeviceError: The runtime failed.
        """
        ...

    def step(self, embed: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append one position.

        Args:
            embed: (1, Dl) floating, the embedding of the token.

        Returns:
            float32 (V,), the logits after it; valid until the next call.

        Raises:
            UsageError: The shape is wrong, or no position is free.
            DeviceError: The runtime failed.
        """
        ...

    def read(self, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append several positions in one pass.

        The logits differ from those of as many steps by rounding, and so do those of every later position, since the
        keys and values do.

        Args:
            embeds: (S, Dl) floating, the embeddings of the tokens.

        Returns:
            float32 (S, V), the logits after each; (1, V) where ``all_rows`` is false. The caller may write into it;
            valid until the next call.

        Raises:
            UsageError: The shape is wrong, or fewer positions are free.
            DeviceError: The runtime failed.
        """
        ...

    def truncate(self, length: int) -> None:
        """Forget the last positions; nothing is copied.

        Args:
            length: How many positions to keep.

        Raises:
            UsageError: It is negative or more than were read.
        """
        ...

    def reset(self) -> None:
        """Forget everything that was read."""
        ...


class Backend(Protocol):
    """A runtime on one device."""

    @property
    def name(self) -> str:
        """The backend's ``NAME``."""
        ...

    @property
    def device(self) -> str:
        """The device that is really used, one of ``DEVICES``."""
        ...

    @property
    def target(self) -> str:
        """The target of a manifest whose graphs it runs, such as ``"ort-cpu"``."""
        ...

    def file(self, name: str, manifest: Manifest) -> str:
        """Say which file of a bundle it opens for a graph.

        Args:
            name: One of ``GRAPH_NAMES``.
            manifest: Of the bundle.

        Raises:
            DeviceError: The bundle has none for this device: no engine for this GPU, or a decoder that no GPU computes.
        """
        ...

    def graph(self, path: Path, *, spec: GraphSpec | None = None) -> Graph:
        """Open a graph.

        Args:
            path: Its file.
            spec: What the manifest says about it, for what a runtime cannot read from the file: OpenVINO takes its
                precision and the names of free axes from it.

        Raises:
            BundleError: The file is no graph that this backend can run.
            DeviceError: The device refuses it.
        """
        ...

    def decoder(self, path: Path, spec: DecoderSpec) -> Decoder:
        """Open a decoder and allocate its keys and values.

        Args:
            path: Its file.
            spec: The sizes of the buffers.

        Raises:
            BundleError: The file is no decoder of these sizes.
            DeviceError: The device refuses it.
        """
        ...


@runtime_checkable
class Divisible(Protocol):
    """A backend whose graphs can do with one thread each, which costs less where several graphs run at once."""

    def single(self) -> Backend | None:
        """The same device with one thread a graph; None where that is no other one."""
        ...


def check_kept(label: str, length: int, read: int) -> None:
    """Refuse to keep a number of positions that makes no sense.

    Args:
        label: Whose, for the message.
        length: How many to keep.
        read: How many there are.

    Raises:
        UsageError: It is negative or more than were read.
    """
    if not 0 <= length <= read:
        raise UsageError(f"{label}: expected to keep 0 to {read} positions, got {length}.")


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that makes no sense.

    Args:
        threads: ``None`` leaves the choice to the backend.

    Raises:
        UsageError: It is below 1.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads: expected a whole number of at least 1, got {threads}.")
