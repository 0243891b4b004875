"""Engines that write tokens: ours and its peers, behind one small interface, each opened in a process of its own.

Each has greedy ``write(prompt, count)``, which never stops at an end token, and ``rewind()`` and ``read(tokens)`` for
the cost of one pass over several positions after the prompt of the last ``write``, with the logits of each position.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trrg_sdk.manifest import DecoderSpec
from trrg_sdk.processors import BF16, instructions

POSITIONS = 512


class Engine(Protocol):
    """A model in a runtime. Rows of the cost curve come from ``read``; ``rewind`` is not timed."""

    def write(self, prompt: Sequence[int], count: int) -> list[int]:
        """Write ``count`` tokens after a prompt."""
        ...

    def rewind(self) -> None:
        """Go back to the end of the prompt."""
        ...

    def read(self, tokens: Sequence[int]) -> None:
        """Append tokens in one pass."""
        ...


class Ours:
    """Our loop without drafts on our ONNX Runtime backend."""

    def __init__(self, folder: Path, *, spec: DecoderSpec, table: Path, threads: int, device: str = "cpu") -> None:
        from trrg_sdk.backends import onnxruntime
        from trrg_sdk.backends.large_pages import LEAST_WEIGHTS, LargePages

        self._decoder = onnxruntime.open_backend(device=device, threads=threads).decoder(folder / "decoder.onnx", spec)
        self._table = np.load(table, mmap_mode="r")
        # As the engine of a Reporter, which has these loops, does.
        self.pages = LargePages(LEAST_WEIGHTS if device == "cpu" else 0)
        self._prompt = 0

    def write(self, prompt: Sequence[int], count: int) -> list[int]:
        """See :class:`Engine`."""
        from trrg_sdk.decoding.greedy import generate

        self._prompt = len(prompt)
        self.pages.before(1)
        written = generate(self._decoder, self._table[list(prompt)], self._table, eos=-1, max_new_tokens=count)
        return list(written.ids)

    def rewind(self) -> None:
        """See :class:`Engine`."""
        self._decoder.truncate(self._prompt)

    def read(self, tokens: Sequence[int]) -> None:
        """See :class:`Engine`."""
        self._decoder.read(self._table[list(tokens)])


class HuggingFace:
    """``generate`` of transformers; with a static cache it compiles itself, and only ``write`` uses that."""

    def __init__(
        self, folder: Path, *, dtype: str, attention: str, threads: int, device: str = "cpu", static: bool = False
    ) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(threads)
        self._torch = torch
        self._device, self._static = device, static
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=attention, device_map=device
        ).eval()
        self._cache: Any = None
        self._prompt: Sequence[int] = ()

    def write(self, prompt: Sequence[int], count: int) -> list[int]:
        """See :class:`Engine`."""
        self._prompt, self._cache = prompt, None
        ids = self._torch.tensor([list(prompt)], device=self._device)
        with self._torch.inference_mode():
            out = self._model.generate(
                ids,
                attention_mask=self._torch.ones_like(ids),
                do_sample=False,
                min_new_tokens=count,
                max_new_tokens=count,
                pad_token_id=0,
                **({"cache_implementation": "static"} if self._static else {}),
            )
        return [int(token) for token in out[0, len(prompt) :]]

    def rewind(self) -> None:
        """See :class:`Engine`."""
        from transformers import DynamicCache

        if self._cache is None:
            self._cache = DynamicCache(config=self._model.config)
            self.read(self._prompt)
        if more := self._cache.get_seq_length() - len(self._prompt):
            self._cache.crop(-more)

    def read(self, tokens: Sequence[int]) -> None:
        """See :class:`Engine`."""
        with self._torch.inference_mode():
            ids = self._torch.tensor([list(tokens)], device=self._device)
            logits = self._model(ids, past_key_values=self._cache, use_cache=True).logits
            float(logits[0, -1, 0])  # a GPU has finished then


class OnnxRuntimeGenai:
    """onnxruntime-genai's own loop, past and present in one buffer; on a GPU its passes are captured."""

    def __init__(self, folder: Path, *, threads: int, device: str = "cpu") -> None:
        import onnxruntime_genai

        config = json.loads((folder / "genai_config.json").read_text())
        options = config["model"]["decoder"]["session_options"]
        options["intra_op_num_threads"] = threads
        if device == "cuda":
            options["provider_options"] = [{"cuda": {"enable_cuda_graph": "1"}}]
        (folder / "genai_config.json").write_text(json.dumps(config))
        self._library = onnxruntime_genai
        self._model = onnxruntime_genai.Model(str(folder))
        self._prompt: Sequence[int] = ()
        self._rewound: Any = None  # a generator with room for passes after the prompt

    def write(self, prompt: Sequence[int], count: int) -> list[int]:
        """See :class:`Engine`."""
        self._prompt, self._rewound = prompt, None
        length = len(prompt) + count
        generator = self._begun(prompt, min_length=length, max_length=length)
        for _ in range(count):
            generator.generate_next_token()
        return [int(token) for token in generator.get_sequence(0)[len(prompt) :]]

    def _begun(self, prompt: Sequence[int], **lengths: int) -> Any:
        settings = self._library.GeneratorParams(self._model)
        settings.set_search_options(do_sample=False, **lengths)
        generator = self._library.Generator(self._model, settings)
        generator.append_tokens(np.asarray(prompt, np.int32))
        return generator

    def rewind(self) -> None:
        """See :class:`Engine`."""
        if self._rewound is None:
            self._rewound = self._begun(self._prompt, max_length=POSITIONS)
        else:
            self._rewound.rewind_to(len(self._prompt))

    def read(self, tokens: Sequence[int]) -> None:
        """See :class:`Engine`."""
        self._rewound.append_tokens(np.asarray(tokens, np.int32))


class LlamaCpp:
    """llama.cpp through its C interface, its own greedy sampler."""

    def __init__(self, path: Path, *, threads: int, width: int = 0) -> None:
        """Open a file; prompts of :meth:`follow` are embeddings of a width."""
        import llama_cpp

        self._library = library = llama_cpp
        silent = library.llama_log_callback(lambda level, text, data: None)
        library.llama_log_set(silent, ctypes.c_void_p(0))
        self._kept = silent  # the library holds no reference
        library.llama_backend_init()
        self._model = library.llama_model_load_from_file(str(path).encode(), library.llama_model_default_params())
        if not self._model:
            raise RuntimeError("llama.cpp does not open the file")
        settings = library.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = POSITIONS
        settings.n_threads = settings.n_threads_batch = threads
        self._context = library.llama_init_from_model(self._model, settings)
        if not self._context:
            raise RuntimeError("llama.cpp makes no context")
        self._sampler = library.llama_sampler_init_greedy()
        self._batch = library.llama_batch_init(POSITIONS, 0, 1)
        self._embeds = library.llama_batch_init(POSITIONS, width, 1) if width else None
        self._length = self._prompt = 0

    def write(self, prompt: Sequence[int], count: int) -> list[int]:
        """See :class:`Engine`."""
        self._prompt = 0
        self.rewind()
        self._decode(prompt, rows=1)
        self._prompt = len(prompt)
        written: list[int] = []
        while True:
            written.append(self._library.llama_sampler_sample(self._sampler, self._context, -1))
            if len(written) == count:
                return written
            self._decode(written[-1:], rows=1)

    def follow(self, embeds: np.ndarray, text: Sequence[int] | None, *, eos: int, limit: int) -> list[int]:
        """Write after a prompt of embeddings, or read a text after it, one pass a token all the same."""
        self._prompt = 0
        self.rewind()
        flat = np.ascontiguousarray(embeds, np.float32)
        ctypes.memmove(self._embeds.embd, flat.ctypes.data, flat.nbytes)
        self._run(self._embeds, len(embeds), rows=1)
        written: list[int] = []
        while len(written) < limit:
            token = self._library.llama_sampler_sample(self._sampler, self._context, -1)
            if text is not None:
                token = text[len(written)] if len(written) < len(text) else eos
            if token == eos:
                break
            written.append(token)
            self._decode([token], rows=1)
        return written

    def _decode(self, tokens: Sequence[int], *, rows: int) -> None:
        """Read tokens and compute the logits of the last rows."""
        for place, token in enumerate(tokens):
            self._batch.token[place] = token
        self._run(self._batch, len(tokens), rows=rows)

    def _run(self, batch: Any, count: int, *, rows: int) -> None:
        """Make a pass over what was filled into a batch."""
        batch.n_tokens = count
        for place in range(count):
            batch.pos[place] = self._length + place
            batch.n_seq_id[place], batch.seq_id[place][0] = 1, 0
            batch.logits[place] = place >= count - rows
        if code := self._library.llama_decode(self._context, batch):
            raise RuntimeError(f"llama_decode returned {code}")
        self._length += count

    def rewind(self) -> None:
        """See :class:`Engine`."""
        memory = self._library.llama_get_memory(self._context)
        self._library.llama_memory_seq_rm(memory, 0, self._prompt, -1)
        self._length = self._prompt

    def read(self, tokens: Sequence[int]) -> None:
        """See :class:`Engine`."""
        self._decode(tokens, rows=len(tokens))
        self._library.llama_get_logits_ith(self._context, -1)  # waits for them


class OpenVinoGenai:
    """``LLMPipeline`` with its stateful backend; the cost of a pass is that of the same graph in OpenVINO itself."""

    def __init__(self, folder: Path, *, precision: str, threads: int) -> None:
        import openvino
        import openvino_genai

        self._openvino, self._library = openvino, openvino_genai
        self._folder = folder
        self._properties = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": precision}
        self._pipeline = openvino_genai.LLMPipeline(str(folder), "CPU", ATTENTION_BACKEND="SDPA", **self._properties)
        self._prompt: Sequence[int] = ()
        self._request: Any = None

    def write(self, prompt: Sequence[int], count: int) -> list[int]:
        """See :class:`Engine`."""
        self._prompt = prompt
        settings = self._library.GenerationConfig()
        settings.max_new_tokens, settings.ignore_eos, settings.do_sample = count, True, False
        ids = np.asarray([prompt], np.int64)
        tensors = self._openvino.Tensor(ids), self._openvino.Tensor(np.ones_like(ids))
        return list(self._pipeline.generate(self._library.TokenizedInputs(*tensors), settings).tokens[0])

    def rewind(self) -> None:
        """See :class:`Engine`."""
        if self._request is None:
            core = self._openvino.Core()
            path = self._folder / "openvino_model.xml"
            self._request = core.compile_model(path, "CPU", self._properties).create_infer_request()
        self._request.reset_state()
        self._length = 0
        self.read(self._prompt)

    def read(self, tokens: Sequence[int]) -> None:
        """See :class:`Engine`."""
        start, self._length = self._length, self._length + len(tokens)
        feed = {
            "input_ids": np.asarray([tokens], np.int64),
            "attention_mask": np.ones((1, self._length), np.int64),
            "position_ids": np.arange(start, self._length)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        self._request.infer(feed, share_inputs=True)


@dataclass(frozen=True)
class Arm:
    """One row of the table.

    Attributes:
        name: Of the engine.
        precision: As the page calls it.
        form: Of the model, a key of ``Models.bytes``; a folder or file of the models.
        open: Opens it.
        packages: Distributions whose versions the page states.
        passes: Whether passes over several positions are timed.
    """

    name: str
    precision: str
    form: str
    open: Callable[..., Engine]
    packages: tuple[str, ...]
    passes: bool = True


def gpu_arms(folder: Path, spec: DecoderSpec, *, threads: int) -> list[Arm]:
    """Every engine that runs on a CUDA device, at every precision that it has.

    Args:
        folder: Of :func:`decode_models.make_models`.
        spec: Sizes of our decoder.
        threads: Of the processor, for each engine.
    """
    found: list[Arm] = []
    where = {"threads": threads, "device": "cuda"}
    for kind in ("fp16", "int4-fp16"):
        make = partial(Ours, folder / "ours" / kind, spec=spec, table=folder / "table.npy", **where)
        genai = partial(OnnxRuntimeGenai, folder / "genai" / kind, **where)
        found.append(Arm("ours", kind, f"ours/{kind}", make, ("onnxruntime-gpu",)))
        found.append(Arm("onnxruntime-genai", kind, f"genai/{kind}", genai, ("onnxruntime-genai-cuda",)))
    huggingface = partial(HuggingFace, folder / "hf", dtype="float16", attention="sdpa", **where)
    packages = ("transformers", "torch")
    found.append(Arm("Hugging Face generate, sdpa", "fp16", "hf/fp16", huggingface, packages))
    compiled = partial(huggingface, static=True)
    named = "Hugging Face generate, static cache, compiled"
    found.append(Arm(named, "fp16", "hf/fp16", compiled, packages, passes=False))
    return found


def arms(folder: Path, spec: DecoderSpec, *, threads: int) -> list[Arm]:
    """Every engine at every precision that it has, on the CPU.

    Args:
        folder: Of :func:`decode_models.make_models`.
        spec: Sizes of our decoder.
        threads: For each engine.
    """
    found: list[Arm] = []
    ort = ("onnxruntime",)
    for kind in ("fp32", "int8", "int4"):
        make = partial(Ours, folder / "ours" / kind, spec=spec, table=folder / "table.npy", threads=threads)
        found.append(Arm("ours", kind, f"ours/{kind}", make, ort))
    for kind in ("fp32", "int8", "int4"):
        genai = partial(OnnxRuntimeGenai, folder / "genai" / kind, threads=threads)
        found.append(Arm("onnxruntime-genai", kind, f"genai/{kind}", genai, ("onnxruntime-genai",)))
    for dtype, attention, kind in (
        ("float32", "eager", "fp32"),
        ("float32", "sdpa", "fp32"),
        ("bfloat16", "sdpa", "bf16"),
    ):
        generate = partial(HuggingFace, folder / "hf", dtype=dtype, attention=attention, threads=threads)
        found.append(
            Arm(f"Hugging Face generate, {attention}", kind, f"hf/{kind}", generate, ("transformers", "torch"))
        )
    for kind in ("f32", "q8_0", "q4_0"):
        cpp = partial(LlamaCpp, folder / "gguf" / f"{kind}.gguf", threads=threads)
        found.append(Arm("llama.cpp", kind, f"gguf/{kind}", cpp, ("llama-cpp-python",)))
    # Asked for bf16 on a processor without it, OpenVINO imitates it at many times the time.
    best = "bf16" if instructions() & BF16 else "f32"
    for kind, hint in (("fp32", "f32"), ("bf16", "bf16"), ("int8", best), ("int4", best)):
        if best != "bf16" and kind == "bf16":
            continue
        source = folder / "openvino" / ("fp32" if kind == "bf16" else kind)
        pipeline = partial(OpenVinoGenai, source, precision=hint, threads=threads)
        found.append(Arm("OpenVINO GenAI", kind, f"openvino/{kind}", pipeline, ("openvino-genai",)))
    return found
