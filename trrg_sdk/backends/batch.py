"""What a decoder of several sequences is, and which decoders can open one."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


class BatchDecoder(Protocol):
    """Several sequences being written, each in a slot of its own. One thread at a time."""

    @property
    def slots(self) -> int:
        """The most sequences."""
        ...

    def free(self, slot: int) -> int:
        """How many more positions fit into a slot."""
        ...

    def prefill(self, slot: int, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        """Forget what the slot holds, then read a prompt into it, by the same pass as a decoder of one sequence.

        Args:
            slot: From 0.
            embeds: (S, Dl) floating.

        Returns:
            float32 (V,), the logits after the last position.
        """
        ...

    def step(self, embeds: NDArray[np.floating]) -> NDArray[np.float32]:
        """Append one position to each of the first n slots.

        Args:
            embeds: (n, Dl) floating.

        Returns:
            float32 (n, V), the logits after each; valid until the next call, and the caller may change them.
        """
        ...

    def move(self, source: int, target: int) -> None:
        """Copy a slot over another one."""
        ...


@runtime_checkable
class Batchable(Protocol):
    """A decoder whose graph can write several sequences together."""

    def batch(self, slots: int) -> BatchDecoder | None:
        """Open a decoder of several sequences on the same weights.

        Args:
            slots: The most sequences.

        Returns:
            It, or None where this graph or device takes one sequence only.
        """
        ...
