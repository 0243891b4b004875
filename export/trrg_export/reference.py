"""What the PyTorch model gives for the parity studies: the truth of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
"""Inputs of one graph, by name, for one run each."""
UNSEEN_SIZES = {"batch": 3, "clues": 17, "prompts": 4, "length": 11}
"""Of free axes: other ones than while a graph is traced."""


class Run(NamedTuple):
    """Inputs and outputs of one graph, by name."""

    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Reference:
    """Inputs and outputs of K studies, C clues.

    Attributes:
        pixels: float32 (K, channels, S, S).
        clue_inputs: The clue inputs of the fusion graph, ``clue_override`` (1, C).
        clue_texts: ``input_ids`` and ``attention_mask`` int64 (2C, L) of the bank's prompts, positive ones first.
        clue_joint: float32 (2C, De).
        vision: Outputs of the vision graph, first axis K.
        fusion: Outputs of the fusion graph, first axis K.
        prompts: float32 (K, P, Dl), the whole prompts.
        first_logits: float32 (K, V), after the prompt.
        ids: Greedy tokens of each study, without the end token.
        unseen: Graph → a run on inputs of :data:`UNSEEN_SIZES`, of the three graphs that come from PyTorch.
    """

    pixels: Array
    clue_inputs: Mapping[str, Array]
    clue_texts: Mapping[str, Array]
    clue_joint: Array
    vision: Mapping[str, Array]
    fusion: Mapping[str, Array]
    prompts: Array
    first_logits: Array
    ids: tuple[tuple[int, ...], ...]
    unseen: Mapping[str, Run]

    def outputs(self, name: str) -> Mapping[str, Array]:
        """What one of the three graphs that come from PyTorch gives for :meth:`feeds`."""
        return {"vision": self.vision, "clue_encoder": {"clue_joint": self.clue_joint}, "fusion": self.fusion}[name]

    def feeds(self) -> dict[str, Feeds]:
        """Inputs of the three graphs that come from PyTorch, one study at a time as at run time."""
        rows = [slice(index, index + 1) for index in range(len(self.ids))]
        seen = [{name: value[row] for name, value in self.vision.items()} for row in rows]
        return {
            "vision": [{"pixels": self.pixels[row]} for row in rows],
            "clue_encoder": [dict(self.clue_texts)],
            "fusion": [{**study, **self.clue_inputs} for study in seen],
        }
