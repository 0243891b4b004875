"""Writes what ``iu_workload.py`` loads: a trained decoder of the IU reports by the repository's own export code."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from decode_models import write_gguf, write_k_quants
from numpy.typing import NDArray
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from trrg_export.alike import make_rows_alike
from trrg_export.decoder_explicit import trace_explicit_decoder
from trrg_export.genai import build_decoder
from trrg_export.onnx_file import clean, save
from trrg_export.precision import int4, int8_decoder
from trrg_export.precision.gptq import Calibration
from trrg_export.precision.half_decoder import logits_in_fp32
from trrg_export.quiet import quiet
from trrg_export.trace import read_trace
from trrg_sdk.manifest import DecoderSpec

os.environ.update({"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"})

MAX_NEW_TOKENS = 160
Array = NDArray[Any]


def write_decoders(llm: Any, tokenizer: Tokenizer, folder: Path, *, prompt: int) -> None:
    """Write the decoder in each precision for ONNX Runtime on CPUs and GPUs, and of standard operators for OpenVINO.

    Args:
        llm: Trained, a Llama.
        tokenizer: Its own.
        folder: Gets ``decoder_<precision>.onnx``, ``decoder_explicit.onnx``, their sizes in ``decoder.json``,
            ``token_embedding.npy`` and, where gguf and llama-cpp-python are installed, ``gguf/<precision>.gguf``.
        prompt: Positions of the longest prompt.
    """
    with tempfile.TemporaryDirectory(prefix=".decoder-", dir=folder) as scratch, quiet():
        source = Path(scratch) / "huggingface"
        llm.config.architectures = [type(llm).__name__]
        llm.config.save_pretrained(source)
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(source)
        built = Path(scratch) / "fp32" / "decoder.onnx"
        build_decoder(llm, source, built.parent, "fp32")
        nothing = Calibration((), (1, llm.config.num_key_value_heads, 0, llm.config.head_dim))
        written = {
            "fp32": onnx.load(str(built)),
            "int8": int8_decoder.quantize_decoder(built),
            "int4": int4.quantize_decoder(built, int4.Int4(), nothing),
        }
        for precision, model in written.items():
            make_rows_alike(model, built.parent)
            save(clean(model), folder / f"decoder_{precision}.onnx")
        half = Path(scratch) / "fp16" / "decoder.onnx"
        build_decoder(llm, source, half.parent, "fp16")
        for precision, model in (
            ("fp16", onnx.load(str(half))),
            ("int4-fp16", int4.quantize_decoder(half, int4.Int4(), nothing)),
        ):
            logits_in_fp32(model)
            save(clean(model), folder / f"decoder_{precision}.onnx")
        traced = Path(scratch) / "explicit"
        traced.mkdir()
        trace_explicit_decoder(llm, traced)
        save(read_trace(traced), folder / "decoder_explicit.onnx", traced)
    if find_spec("gguf") and find_spec("llama_cpp"):
        for precision in ("q8_0", "q4_0"):
            write_gguf(llm, folder, precision)
        write_k_quants(llm, folder, "q6_K")
    config = llm.config
    spec = DecoderSpec(
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_size=config.head_dim,
        hidden_size=config.hidden_size,
        max_length=prompt + MAX_NEW_TOKENS,
    )
    sizes = {**dataclasses.asdict(spec), "max_new_tokens": MAX_NEW_TOKENS, "eos_token_id": config.eos_token_id}
    (folder / "decoder.json").write_text(json.dumps(sizes) + "\n")
    np.save(folder / "token_embedding.npy", llm.get_input_embeddings().weight.detach().float().numpy())


def write_reports(reports: Sequence[Sequence[int]], folder: Path) -> None:
    """Write what report stores are made of.

    Args:
        reports: Token ids of the train reports with their end token.
        folder: Gets ``reports.npz``.
    """
    ends = np.cumsum([len(report) for report in reports])
    np.savez(folder / "reports.npz", tokens=np.concatenate([np.asarray(one, np.int64) for one in reports]), ends=ends)


def write_studies(folder: Path, prompts: Sequence[Array], texts: Sequence[Sequence[int]]) -> None:
    """Write the val studies.

    Args:
        folder: Gets ``studies.npz``.
        prompts: float32 (P, Dl) of each study.
        texts: Tokens of what a person wrote about it.
    """
    np.savez(
        folder / "studies.npz",
        prompts=np.concatenate(prompts),
        prompt_ends=np.cumsum([len(prompt) for prompt in prompts]),
        texts=np.concatenate([np.asarray(text, np.int64) for text in texts]),
        text_ends=np.cumsum([len(text) for text in texts]),
    )
