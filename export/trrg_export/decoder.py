"""The language model as ONNX Runtime's fastest graph: attention with its cache in one operator, embeddings outside.

The builder of onnxruntime-genai writes it (GroupQueryAttention with the rotary embedding inside). It wants a Hugging
Face folder, prints, and writes more files than the bundle needs. A subclass of it (:mod:`trrg_export.genai`) takes the
checkpoint's weights as they are mapped from their file; the graph it writes has its weights in a file of their own,
which is read one tensor at a time for int8 and int4, and moved into the bundle where it is too large for one file. The
mapped weights are let go before that.
"""

from __future__ import annotations

import copy
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from tokenizers import Tokenizer

from trrg_export.alike import WIDE, make_rows_alike
from trrg_export.dummy_cache import dummy_cache
from trrg_export.genai import build_decoder
from trrg_export.memory import released
from trrg_export.onnx_file import INLINE_LIMIT, clean, save
from trrg_export.precision import HALF, int8_decoder
from trrg_export.precision.gptq import Calibration, embedded_reports
from trrg_export.precision.half_decoder import logits_in_fp32
from trrg_export.precision.int4 import Int4, quantize_decoder
from trrg_export.quiet import quiet
from trrg_export.reference import Reference
from trrg_sdk.errors import UsageError
from trrg_sdk.manifest import DecoderSpec
from trrg_train.models.checkpoint import Checkpoint, load_checkpoint
from trrg_train.models.llm import ADAPTED, merge_adapters

_LOG = logging.getLogger(__name__)
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_PROGRESS_BARS")
_BUILT_AS = {"int8": "fp32", "int4": "fp32", "int4-fp16": "fp16"}  # the rest are names that the builder knows
_SPARE_CLUES = 32  # positions in the cache for clues that a site adds


def write_decoder(
    checkpoint: Checkpoint,
    path: Path,
    *,
    precision: str,
    int4: Int4,
    reference: Reference,
    drafts: bool = False,
) -> None:
    """Build the decoder graph and write it: one file below 2 GiB, else with ``<name>.data`` beside it.

    Args:
        checkpoint: Of stage 2, with a causal model of the Llama family; its weights are read from its folder once more,
            so that they are in memory no longer than the builder needs them. Adapters are merged.
        path: ``decoder.onnx`` in the bundle.
        precision: ``"fp32"``, ``"fp16"`` (inputs, keys and values too), ``"int8"``, ``"int4"`` or ``"int4-fp16"``.
        int4: How four bits are chosen.
        reference: What the checkpoint writes about the parity studies, to calibrate on.
        drafts: Whether it will read drafts: then passes of any width give the same, see :mod:`trrg_export.alike`.
    """
    alike = drafts and precision not in HALF and checkpoint.trrg().llm.config.hidden_size >= WIDE
    with tempfile.TemporaryDirectory(prefix=".decoder-", dir=path.parent) as scratch, _offline(), quiet():
        with released():
            built = _build(checkpoint.folder, Path(scratch), _BUILT_AS.get(precision, precision))
        outside: Path | None = None
        if precision == "int8":
            _LOG.info("quantizing decoder")
            model = clean(int8_decoder.quantize_decoder(built))
        elif precision.startswith("int4"):
            _LOG.info("quantizing decoder")
            model = clean(quantize_decoder(built, int4, _calibration(checkpoint.trrg().llm, reference)))
        else:
            model, outside = _moved(built, path)
        if precision in HALF:
            logits_in_fp32(model)
        if alike:
            make_rows_alike(model, outside or path.parent)
        save(model, path, outside)


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
    heads, head_size = _cache_sizes(config)
    longest = int(config.max_position_embeddings)
    if prompt + max_new_tokens > longest:
        raise UsageError(
            f"the language model has {longest} positions; prompt ({prompt}) and report ({max_new_tokens}) need "
            f"{prompt + max_new_tokens}: train with a larger max_position_embeddings or a smaller max_new_tokens"
        )
    return DecoderSpec(
        layers=int(config.num_hidden_layers),
        kv_heads=heads,
        head_size=head_size,
        hidden_size=int(config.hidden_size),
        max_length=min(longest, prompt + max_new_tokens + _SPARE_CLUES),
    )


def _cache_sizes(config: Any) -> tuple[int, int]:
    """Heads of keys and values, and the size of a head."""
    cache = dummy_cache(config)
    return int(cache.num_key_value_heads), int(cache.head_dim)


def _build(checkpoint: Path, scratch: Path, precision: str) -> Path:
    """Run the builder: ``decoder.onnx`` with all weights in ``decoder.onnx.data``."""
    loaded = load_checkpoint(checkpoint)
    llm = merge_adapters(loaded.trrg().llm)
    source, target = scratch / "huggingface", scratch / "onnx"
    _save_configuration(llm, loaded.tokenizer, source)
    build_decoder(llm, source, target, precision)
    return target / "decoder.onnx"


def _calibration(llm: Any, reference: Reference) -> Calibration:
    heads, head_size = _cache_sizes(llm.config)
    table = llm.get_input_embeddings().weight.detach().float().numpy()
    return Calibration(embedded_reports(reference.prompts, reference.ids, table), (1, heads, 0, head_size))


def _moved(built: Path, path: Path) -> tuple[onnx.ModelProto, Path | None]:
    """Read the builder's graph without its weights, and say where those are that go inside; others are moved to it."""
    data = built.with_name(f"{built.name}.data")
    inline = data.stat().st_size < INLINE_LIMIT
    model = clean(onnx.load(str(built), load_external_data=False))
    if not inline:
        data.rename(path.with_name(data.name))
    return model, built.parent if inline else None


def _save_configuration(llm: Any, tokenizer: Tokenizer, folder: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    config = copy.deepcopy(llm.config)
    config.architectures = [type(llm).__name__]  # as save_pretrained would note it
    config.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)


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
