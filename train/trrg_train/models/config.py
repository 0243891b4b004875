"""The sizes and parts of one TRRG model, as they stand in a TOML and beside the weights."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trrg_sdk.errors import UsageError

INSTRUCTION = "Write the findings and the impression of this chest radiograph from the image and the disease clues ."


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of one model. ``mini`` and ``base`` are two values of this class (design section 2).

    Attributes:
        name: Goes into the bundle's identity.
        image_size: Side of the square input in pixels.
        patch_grid: Rows and columns of the patches that the vision encoder gives for that input.
        shift: Pixels by which an image is also moved up, down, left and right; its patches are then the means of the
            five views. 0: the image alone. Training of the vision encoder always takes the image alone.
        vision: Hugging Face configuration (``model_type`` and its fields) of the image backbone.
        clue_encoder: The same for the text encoder of the clues.
        llm: The same for the Llama-family language model; ``vocab_size`` comes from the tokenizer.
        vision_path: Local folder with weights of the backbone; empty means from the configuration alone.
        clue_encoder_path: The same for the clue encoder.
        llm_path: The same for the language model.
        joint_dim: Width De of the joint space.
        interaction_layers: Layers of cross-modal clue interaction; 0 switches the interaction off (ablation).
        interaction_heads: Attention heads in each of them.
        clue_injection: False leaves the clue tokens out of the prompt (ablation).
        lora_rank: 0 trains the language model whole (right for random weights); above 0 it is frozen and
            low-rank adapters of that rank are trained.
        lora_alpha: Scale of the adapters.
        instruction: The text around the visual and clue tokens.
        max_text_length: Longest sentence or prompt for the clue encoder, in tokens.
    """

    name: str
    image_size: int
    patch_grid: tuple[int, int]
    vision: Mapping[str, Any]
    clue_encoder: Mapping[str, Any]
    llm: Mapping[str, Any]
    shift: int = 0
    vision_path: str = ""
    clue_encoder_path: str = ""
    llm_path: str = ""
    joint_dim: int = 128
    interaction_layers: int = 2
    interaction_heads: int = 4
    clue_injection: bool = True
    lora_rank: int = 0
    lora_alpha: int = 32
    instruction: str = field(default=INSTRUCTION)
    max_text_length: int = 48

    def __post_init__(self) -> None:
        """Check what fits together."""
        if not 0 <= self.shift < self.image_size:
            raise UsageError(f"[model] shift = {self.shift}: expected 0 to {self.image_size - 1} pixels")
        for part, config, path in (
            ("vision", self.vision, self.vision_path),
            ("clue_encoder", self.clue_encoder, self.clue_encoder_path),
            ("llm", self.llm, self.llm_path),
        ):
            if not path and "model_type" not in config:
                raise UsageError(f"[model.{part}] needs model_type, or {part}_path a local folder with weights")
        if self.interaction_layers and not self.clue_injection:
            raise UsageError("interaction needs clue_injection: set interaction_layers = 0 to switch both off")

    @property
    def patches(self) -> int:
        """Number N of patches."""
        return self.patch_grid[0] * self.patch_grid[1]

    def to_json(self) -> str:
        """One canonical text, so that its hash names the configuration."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True, indent=1)

    def sha256(self) -> str:
        """Hash of :meth:`to_json`."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> ModelConfig:
        """Build from a parsed TOML or JSON table; an unknown key is an error.

        Raises:
            UsageError: A key is unknown, missing or of the wrong shape.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise UsageError(f"unknown keys in [model]: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        try:
            grid = values["patch_grid"]
            return cls(**{**values, "patch_grid": (int(grid[0]), int(grid[1]))})
        except (KeyError, TypeError, IndexError) as error:
            raise UsageError(f"[model] is incomplete: {error}") from error
