"""Keys and values of a language model as optimum sizes and makes them, to trace and to allocate with."""

from __future__ import annotations

from typing import Any

from optimum.utils import MistralDummyPastKeyValuesGenerator, NormalizedTextConfigWithGQA


def dummy_cache(config: Any, *, batch: int = 1, past: int = 1) -> Any:
    """Describe the cache of a model of the Llama family.

    Args:
        config: ``transformers.PretrainedConfig``.
        batch: Rows.
        past: Positions.

    Returns:
        ``num_key_value_heads``, ``head_dim``, and ``generate("past_key_values")``, which gives a pair for each layer,
        (batch, num_key_value_heads, past, head_dim). optimum files the generator that knows grouped heads under
        Mistral; its plain one has as many heads as there are queries.
    """
    sizes = NormalizedTextConfigWithGQA(config)
    return MistralDummyPastKeyValuesGenerator("text-generation", sizes, batch_size=batch, sequence_length=past)
