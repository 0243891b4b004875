"""The language model: any Llama-family causal model, whole or with low-rank adapters."""

from __future__ import annotations

from typing import Any

from transformers import AutoModelForCausalLM

from trrg_sdk.errors import UsageError
from trrg_train.models.backbone import backbone_config
from trrg_train.models.config import ModelConfig
from trrg_train.models.tokenizer import BOS_ID, EOS_ID, PAD_ID

ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def build_llm(config: ModelConfig, *, vocab_size: int) -> Any:
    """Build the causal language model.

    Args:
        config: ``llm`` or ``llm_path``, and ``lora_rank``.
        vocab_size: Of the tokenizer, for a model built from its configuration alone.

    Returns:
        A ``PreTrainedModel``; with ``lora_rank`` above 0 a ``PeftModel`` around it whose base is frozen.
    """
    if config.llm_path:
        model = AutoModelForCausalLM.from_pretrained(config.llm_path, local_files_only=True)
    else:
        special = {"pad_token_id": PAD_ID, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
        settings = backbone_config(config.llm, "llm", vocab_size=vocab_size, **special)
        model = AutoModelForCausalLM.from_config(settings)
    return _adapt(model, config) if config.lora_rank else model


def merge_adapters(llm: Any) -> Any:
    """Return the plain model, with adapters (if any) merged into its weights."""
    merge = getattr(llm, "merge_and_unload", None)
    return merge() if merge is not None else llm


def _adapt(model: Any, config: ModelConfig) -> Any:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=ADAPTED, task_type="CAUSAL_LM")
    try:
        return get_peft_model(model, lora)
    except ValueError as error:  # peft found none of the parts
        raise UsageError(
            f"lora_rank {config.lora_rank} needs a language model of the Llama family, with {', '.join(ADAPTED)}; this "
            f"{model.config.model_type} has none of them: take another model, or lora_rank = 0"
        ) from error
