"""A Hugging Face configuration from a table of a TOML, in which every key must be one that the model type knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from trrg_sdk.errors import UsageError


def backbone_config(table: Mapping[str, Any], part: str, **fixed: Any) -> Any:
    """Build the configuration of one part of the model.

    transformers stores a key that it does not know and goes on, so a misspelt size would silently be the default.

    Args:
        table: ``model_type`` and fields of its configuration, or their aliases (``attribute_map``).
        part: ``"vision"``, ``"clue_encoder"`` or ``"llm"``, for the message.
        fixed: Fields that are not the table's to set, such as ``vocab_size``.

    Returns:
        A ``PretrainedConfig``.

    Raises:
        UsageError: ``model_type`` or a key is unknown to transformers, or a value does not fit.
    """
    values = {**table, **fixed}
    kind = values.pop("model_type")
    try:
        default = AutoConfig.for_model(kind)
    except ValueError as error:
        raise UsageError(f"[model.{part}] model_type {kind!r} is not known to transformers: {error}") from error
    known = {*default.to_dict(), *default.attribute_map}
    unknown = sorted(set(values) - known)
    if unknown:
        message = f"unknown keys in [model.{part}]: {', '.join(unknown)}"
        raise UsageError(f"{message}; transformers' {kind} knows: {', '.join(sorted(known))}")
    try:
        return AutoConfig.for_model(kind, **values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"[model.{part}] does not fit transformers' {kind}: {error}") from error
