"""What is taken away from TRRG, one part at a time, each as a change of the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from trrg_train.config import RunConfig

FULL = "full"


@dataclass(frozen=True)
class Variant:
    """One row of the table.

    Attributes:
        title: As the table calls it.
        done: What was done, for the table's notes.
        change: The configuration of the whole method to that of the variant.
    """

    title: str
    done: str
    change: Callable[[RunConfig], RunConfig]


def without_stage1(config: RunConfig) -> RunConfig:
    """Leave the encoders at random weights and train them in stage 2, as often over the images as stage 1 would."""
    epochs = max(config.stage1.optim.epochs, config.stage2.optim.epochs)
    return replace(
        config,
        stage1=replace(config.stage1, optim=replace(config.stage1.optim, epochs=0)),
        stage2=replace(config.stage2, train_perceiver=True, optim=replace(config.stage2.optim, epochs=epochs)),
    )


def without_injection(config: RunConfig) -> RunConfig:
    """Take the clue tokens away, and with them what works on them: interaction, and reports with another's image."""
    changed = _of_model(config, clue_injection=False, interaction_layers=0)
    return replace(changed, stage2=replace(changed.stage2, clue_swap=0.0))


def without_consistency(config: RunConfig) -> RunConfig:
    """Give the consistency loss no weight, nor that of sides."""
    return replace(config, stage2=replace(config.stage2, consistency_weight=0.0))


def without_clue_swap(config: RunConfig) -> RunConfig:
    """Train no report with the image of another study."""
    return replace(config, stage2=replace(config.stage2, clue_swap=0.0))


def report_contrast(config: RunConfig) -> RunConfig:
    """Hold whole reports against images."""
    return replace(config, stage1=replace(config.stage1, contrast="report"))


def _of_model(config: RunConfig, **values: Any) -> RunConfig:
    return replace(config, model=replace(config.model, **values))


VARIANTS: Mapping[str, Variant] = {
    FULL: Variant("full", "everything as configured", lambda config: config),
    "no_stage1": Variant(
        "without stage 1",
        "no contrastive pretraining: both encoders start at random weights and are trained end to end in stage 2, by "
        "its losses, for as many passes over the (augmented) images as stage 1 makes. Frozen random encoders would "
        "be a straw man. The clue scores come from what stage 2 makes of the prompts, uncalibrated",
        without_stage1,
    ),
    "no_injection": Variant(
        "without clue injection",
        "no clue token in the prompt, hence no interaction either; and no report is trained with the image of another "
        "study (clue_swap = 0), which would be noise without clues that say so. The clues themselves are those of full",
        without_injection,
    ),
    "no_interaction": Variant(
        "without interaction",
        "interaction_layers = 0: clue tokens and visual tokens reach the language model as they are",
        lambda config: _of_model(config, interaction_layers=0),
    ),
    "no_consistency": Variant(
        "without consistency loss",
        "consistency_weight = 0, which switches off the loss of the sides read from clue tokens too",
        without_consistency,
    ),
    "no_clue_swap": Variant(
        "without swapped clues",
        "clue_swap = 0: clues and image always belong together in training. What the swapping costs, and buys",
        without_clue_swap,
    ),
    "report_contrast": Variant(
        "whole-report contrast",
        'contrast = "report": in stage 1 the whole report stands where a sentence does, with the same rule for what '
        "is a positive and a negative; the prompt contrast stays",
        report_contrast,
    ),
}
"""By the name that goes into files and options."""
