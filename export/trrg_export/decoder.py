"""The language model as ONNX Runtime's fastest graph: attention with its cache in one operator, embeddings outside.

The builder of onnxruntime-genai writes it (GroupQueryAttention with the rotary embedding inside, MatMulNBits for
int8). It wants a Hugging Face folder, prints, and writes more files than the bundle needs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from tokenizers import Tokenizer

from trrg_export.to_onnx import clean, quiet
from trrg_sdk.errors import UsageError
from trrg_sdk.manifest import DecoderSpec
from trrg_train.models.llm import ADAPTED, merge_adapters

_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS")
_SPARE_CLUES = 32  # positions in the cache for clues that a site adds


def build_decoder(llm: Any, tokenizer: Tokenizer, *, precision: str) -> onnx.ModelProto:
    """Build the decoder graph.

    Args:
        llm: A causal model of the Llama family; adapters are merged.
        tokenizer: Of the model; the builder reads it.
        precision: ``"fp32"``, ``"fp16"`` (inputs, keys, values and logits too) or ``"int8"`` (weights in blocks of 32,
            activations quantized on the fly).

    Returns:
        The model with all weights inside.
    """
    with tempfile.TemporaryDirectory(prefix="trrg-decoder-") as scratch, _offline(), quiet():
        source, target = Path(scratch, "huggingface"), Path(scratch, "onnx")
        _save_huggingface(merge_adapters(llm), tokenizer, source)
        _run_builder(source, target, Path(scratch, "cache"), precision)
        return clean(onnx.load(str(target / "decoder.onnx"), load_external_data=True))


def check_family(llm: Any) -> None:
    """Refuse a language model that the decoder's builder does not know, before anything takes time.

    Args:
        llm: A causal model; adapters may be on it.

    Raises:
        UsageError: Its layers are not those of the Llama family.
    """
    parts = {name.rsplit(".", 1)[-1] for name, _ in llm.named_modules()}
    if lacking := sorted(set(ADAPTED) - parts):
        raise UsageError(
            f"the language model is a {llm.config.model_type}: expected one of the Llama family, whose layers have "
            f"{', '.join(ADAPTED)}, got one without {', '.join(lacking)}; train stage 2 with such a model"
        )


def decoder_spec(llm: Any, *, prompt: int, max_new_tokens: int) -> DecoderSpec:
    """Read the cache's sizes from a model.

    Args:
        llm: A causal model of the Llama family.
        prompt: Positions of the prompt with the bundled clues.
        max_new_tokens: Hard limit of a report.

    Returns:
        ``max_length`` is room for the prompt, the report and some more clues, as far as the model has positions.

    Raises:
        UsageError: Prompt and report do not fit into the model's positions.
    """
    config = llm.config
    heads, hidden = int(config.num_attention_heads), int(config.hidden_size)
    longest = int(config.max_position_embeddings)
    if prompt + max_new_tokens > longest:
        raise UsageError(
            f"the language model has {longest} positions; prompt ({prompt}) and report ({max_new_tokens}) need "
            f"{prompt + max_new_tokens}: train with a larger max_position_embeddings or a smaller max_new_tokens"
        )
    return DecoderSpec(
        layers=int(config.num_hidden_layers),
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        head_size=int(getattr(config, "head_dim", None) or hidden // heads),
        hidden_size=hidden,
        max_length=min(longest, prompt + max_new_tokens + _SPARE_CLUES),
    )


def _save_huggingface(llm: Any, tokenizer: Tokenizer, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    llm.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


def _run_builder(source: Path, target: Path, cache: Path, precision: str) -> None:
    from onnxruntime_genai.models import builder

    options = ["exclude_embeds=true", "hf_token=false", "filename=decoder.onnx"]
    # The builder's fp16 graph for "cpu" fails with a past; its graph for "cuda" runs on both.
    provider = "cuda" if precision == "fp16" else "cpu"
    where = ("", str(source), str(target), precision, provider, str(cache))
    # parse_extra_options also loads the configuration, without which create_model refuses to start (0.18).
    extra = builder.parse_extra_options(*where, options)
    builder.create_model(*where, **extra)


@contextmanager
def _offline() -> Iterator[None]:
    """Forbid the libraries to ask the network, whatever the environment says."""
    before = {name: os.environ.get(name) for name in _OFFLINE}
    os.environ.update(dict.fromkeys(_OFFLINE, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
