"""A Llama with random weights in the form that each engine of ``decode.py`` reads; speed does not depend on weights.

Everything is made from one model: the graphs of our exports in fp32, int8 and int4, or for a GPU in fp16 and int4-fp16;
the same graphs with the token table in front for onnxruntime-genai (its runtime starts from token ids); and for a CPU
GGUF files for llama.cpp, and the stateful graph that OpenVINO GenAI expects, in fp32, int8 and int4 (by NNCF).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from decode_process import one_line
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trrg_export.genai import build_decoder
from trrg_export.onnx_file import clean, save
from trrg_export.precision import int4, int8_decoder
from trrg_export.precision.gptq import Calibration
from trrg_export.precision.half_decoder import logits_in_fp32
from trrg_export.quiet import quiet
from trrg_sdk.manifest import DecoderSpec

BOS, EOS = 1, 2
POSITIONS = 512
OURS = {"cpu": ("fp32", "int8", "int4"), "cuda": ("fp16", "int4-fp16")}
SHAPES = {
    "llama100m": {
        "vocab_size": 20_000,
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "num_key_value_heads": 12,
    },
    "llama1b": {  # TinyLlama's
        "vocab_size": 32_000,
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
    },
    "llama7b": {  # Llama 2's
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 11_008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
}
_OPENVINO = "openvino_model.xml"


@dataclass(frozen=True)
class Models:
    """A folder with one model in many forms.

    Attributes:
        folder: ``hf``; ``ours/<precision>/decoder.onnx``; ``genai/<precision>``; ``gguf/<kind>.gguf``;
            ``openvino/<precision>``; ``table.npy``.
        spec: Sizes of our decoder.
        bytes: Weights that a pass reads by form, the token table left out.
        failed: Why a form could not be made.
    """

    folder: Path
    spec: DecoderSpec
    bytes: dict[str, int]
    failed: dict[str, str]


def config_of(shape: str, layers: int | None) -> LlamaConfig:
    """A Llama of one of ``SHAPES``, with fewer or more layers where that is said."""
    sizes = SHAPES[shape] | ({"num_hidden_layers": layers} if layers else {})
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
    return LlamaConfig(max_position_embeddings=POSITIONS, tie_word_embeddings=False, **ids, **sizes)


def random_llama(config: LlamaConfig, device: str) -> LlamaForCausalLM:
    """Random weights on the CPU: fp32, or fp16 as a GPU draws them, where 7 B of them take seconds."""
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            return LlamaForCausalLM(config).eval().cpu()
    finally:
        torch.set_default_dtype(torch.float32)


def make_models(folder: Path, *, shape: str, layers: int | None, device: str) -> Models:
    """Write the model in every form that the installed packages can.

    Args:
        folder: An empty one.
        shape: One of ``SHAPES``.
        layers: Of the model; None takes the shape's own.
        device: ``"cpu"`` or ``"cuda"``.
    """
    config = config_of(shape, layers)
    llm = random_llama(config, device)
    spec = DecoderSpec(
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_size=config.head_dim,
        hidden_size=config.hidden_size,
        max_length=POSITIONS,
    )
    read = sum(value.numel() for value in llm.parameters()) - llm.get_input_embeddings().weight.numel()
    made = Models(folder, spec, {"hf/fp32": 4 * read, "hf/bf16": 2 * read, "hf/fp16": 2 * read}, {})
    np.save(folder / "table.npy", llm.get_input_embeddings().weight.detach().numpy())
    write_huggingface(llm, folder / "hf")
    made.bytes.update((write_ours if device == "cpu" else write_ours_in_half)(llm, folder))
    writers: dict[str, tuple[Callable[..., int], tuple[str, ...]]] = {"genai": (write_genai, OURS[device])}
    if device == "cpu":
        writers["gguf"] = write_gguf, ("f32", "q8_0", "q4_0")
        writers["openvino"] = write_openvino, OURS["cpu"]
    for name, (write, precisions) in writers.items():
        for precision in precisions:
            try:
                with torch.no_grad():
                    made.bytes[f"{name}/{precision}"] = write(llm, folder, precision)
            except Exception as error:  # whatever a package that is no part of ours does; the page says it
                made.failed[f"{name}/{precision}"] = one_line(error)
    if why := made.failed.get("openvino/fp32"):  # the same file, its weights in bf16 once it is open
        made.failed["openvino/bf16"] = why
    elif "openvino/fp32" in made.bytes:
        made.bytes["openvino/bf16"] = made.bytes["openvino/fp32"] // 2
    return made


def write_huggingface(llm: LlamaForCausalLM, folder: Path) -> None:
    """Write weights, configuration and a tokenizer that nobody asks for anything."""
    tokens = {f"w{token}": token for token in range(llm.config.vocab_size)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(tokens, [])),
        bos_token=f"w{BOS}",
        eos_token=f"w{EOS}",
        pad_token=f"w{EOS}",
    )
    llm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_ours(llm: LlamaForCausalLM, folder: Path) -> dict[str, int]:
    """Write the decoder graphs of our exports; return their weights in bytes."""
    target = folder / "ours"
    target.mkdir()
    with quiet():
        built = target / "fp32" / "decoder.onnx"
        build_decoder(llm, folder / "hf", built.parent, "fp32")
        nothing = Calibration((), (1, llm.config.num_key_value_heads, 0, llm.config.head_dim))
        rounded = {
            "int8": int8_decoder.quantize_decoder(built),
            "int4": int4.quantize_decoder(built, int4.Int4(), nothing),
        }
        for precision, model in rounded.items():
            (target / precision).mkdir()
            save(clean(model), target / precision / "decoder.onnx")
    return {f"ours/{kind}": size_of(target / kind) for kind in OURS["cpu"]}


def write_ours_in_half(llm: LlamaForCausalLM, folder: Path) -> dict[str, int]:
    """Write the decoder graphs of our exports for GPUs; return their weights in bytes."""
    target = folder / "ours"
    target.mkdir()
    with quiet():
        built = target / "fp16" / "decoder.onnx"
        build_decoder(llm, folder / "hf", built.parent, "fp16")
        nothing = Calibration((), (1, llm.config.num_key_value_heads, 0, llm.config.head_dim))
        four = clean(int4.quantize_decoder(built, int4.Int4(), nothing))
        logits_in_fp32(four)
        (target / "int4-fp16").mkdir()
        save(four, target / "int4-fp16" / "decoder.onnx")
        model = clean(onnx.load(str(built), load_external_data=False))
        logits_in_fp32(model)
        onnx.save(model, str(built))
    return {f"ours/{kind}": size_of(target / kind) for kind in OURS["cuda"]}


def size_of(folder: Path) -> int:
    """Bytes of its files."""
    return sum(path.stat().st_size for path in folder.iterdir())


def write_genai(llm: LlamaForCausalLM, folder: Path, precision: str) -> int:
    """Write our graph with the token table in front, for the runtime that begins with token ids; return its weights."""
    source, target = folder / "ours" / precision, folder / "genai" / precision
    target.mkdir(parents=True)
    model = onnx.load(str(source / "decoder.onnx"), load_external_data=False)
    (embeds,) = (value for value in model.graph.input if value.name == "inputs_embeds")
    model.graph.input.remove(embeds)
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
    model.graph.input.insert(0, ids)
    table = numpy_helper.from_array(np.load(folder / "table.npy"), "token_embedding")
    model.graph.initializer.append(table)
    model.graph.node.insert(0, helper.make_node("Gather", [table.name, ids.name], [embeds.name], name="embed"))
    onnx.save(model, str(target / "model.onnx"))
    for data in source.glob("*.data"):  # named in the graph: the weights are the same file
        os.link(data, target / data.name)
    (target / "genai_config.json").write_text(json.dumps(_genai_config(llm.config)))
    return size_of(source)


def _genai_config(config: LlamaConfig) -> dict[str, Any]:
    past = {f"past_{part}_names": f"past_key_values.%d.{part}" for part in ("key", "value")}
    present = {f"present_{part}_names": f"present.%d.{part}" for part in ("key", "value")}
    decoder = {
        "filename": "model.onnx",
        "head_size": config.head_dim,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "num_key_value_heads": config.num_key_value_heads,
        "inputs": {"input_ids": "input_ids", "attention_mask": "attention_mask", **past},
        "outputs": {"logits": "logits", **present},
        "session_options": {"provider_options": []},  # decode_peers.py adds the threads
    }
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": EOS}
    sizes = {"vocab_size": config.vocab_size, "context_length": POSITIONS}
    search = {"past_present_share_buffer": True, "do_sample": False, "max_length": POSITIONS}
    return {"model": {"type": "llama", **sizes, **ids, "decoder": decoder}, "search": search}


def write_gguf(llm: LlamaForCausalLM, folder: Path, precision: str) -> int:
    """Write llama.cpp's file, the matrix of the logits quantized like the others; return the bytes a pass reads."""
    from gguf import GGMLQuantizationType, GGUFWriter
    from gguf.quants import quantize

    path = folder / "gguf" / f"{precision}.gguf"
    path.parent.mkdir(exist_ok=True)
    writer = GGUFWriter(str(path), "llama")
    _describe(writer, llm.config)
    read = 0
    for name, tensor in llm.state_dict().items():
        known, values = _gguf_name(name), tensor.numpy()
        if ".attn_q." in known or ".attn_k." in known:
            values = _interleaved(values, llm.config.num_attention_heads)
        kind = GGMLQuantizationType[precision.upper() if values.ndim == 2 else "F32"]
        packed = quantize(values, kind)
        writer.add_tensor(known, packed, raw_dtype=kind)
        read += 0 if known.startswith("token_embd") else packed.nbytes
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return read


def write_k_quants(llm: LlamaForCausalLM, folder: Path, precision: str) -> None:
    """Write llama.cpp's file in a precision that only its own quantizer knows, such as ``"q6_K"``."""
    import llama_cpp

    write_gguf(llm, folder, "f32")
    whole, path = (folder / "gguf" / f"{name}.gguf" for name in ("f32", precision))
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{precision.upper()}")
    failed = llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), settings)
    whole.unlink()
    if failed:
        raise RuntimeError(f"llama.cpp did not write {precision}")


def _describe(writer: Any, config: LlamaConfig) -> None:
    writer.add_context_length(POSITIONS)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")  # token ids in, token ids out


_GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def _gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return f"{_GGUF_NAMES[name.removesuffix('.weight')]}.weight"
    number, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{number}.{_GGUF_NAMES[part]}.weight"


def _interleaved(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head as llama.cpp rotates them: neighbours, where Hugging Face rotates halves."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(rows, columns))


def write_openvino(llm: LlamaForCausalLM, folder: Path, precision: str) -> int:
    """Write the stateful graph, int8 and int4 by NNCF; return the bytes a pass reads."""
    import openvino
    from decode_openvino import compress, save_tokenizer, stateful_graph

    target = folder / "openvino" / precision
    target.mkdir(parents=True)
    with quiet():
        if precision == "fp32":
            model = stateful_graph(llm)
        else:
            model = openvino.Core().read_model(target.with_name("fp32") / _OPENVINO)
            compress(model, precision)
        openvino.save_model(model, target / _OPENVINO, compress_to_fp16=False)
        save_tokenizer(folder / "hf", target)
    table, whole = llm.get_input_embeddings().weight.numel(), sum(value.numel() for value in llm.parameters())
    return (
        (target / _OPENVINO).with_suffix(".bin").stat().st_size * (whole - table) // whole
    )  # all in the same precision
