"""The model builder of onnxruntime-genai, which reads files only, with a model that is there already.

What ``create_model`` of the library does for one architecture, but for the weights: they come from a model in memory,
and are copied and cast one matrix at a time while the graph is written.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from trrg_sdk.errors import UsageError

_BUILDERS = {
    "LlamaForCausalLM": "LlamaModel",
    "MistralForCausalLM": "MistralModel",
    "Qwen2ForCausalLM": "QwenModel",
    "Qwen3ForCausalLM": "Qwen3Model",
    "SmolLM3ForCausalLM": "SmolLM3Model",
    "GraniteForCausalLM": "GraniteModel",
    "OlmoForCausalLM": "OLMoModel",
    "Gemma2ForCausalLM": "Gemma2Model",
    "GemmaForCausalLM": "GemmaModel",
}


@torch.no_grad()
def build_decoder(llm: Any, source: Path, target: Path, precision: str) -> None:
    """Write ``decoder.onnx`` with all weights in ``decoder.onnx.data``.

    Args:
        llm: A causal model of the Llama family without adapters; left as it is.
        source: Hugging Face folder with its configuration and tokenizer.
        target: Folder for the graph.
        precision: ``"fp32"`` or ``"fp16"``.

    Raises:
        UsageError: The builder has no class for the architecture.
    """
    check_architecture(llm)
    from onnxruntime_genai.models import builder

    # The builder's fp16 graph for "cpu" fails with a past; its graph for "cuda" runs on both.
    provider = "cuda" if precision == "fp16" else "cpu"
    cache = target.with_name("cache")
    where = ("", str(source), str(target), precision, provider, str(cache))
    options = builder.parse_extra_options(*where, ["exclude_embeds=true", "hf_token=false", "filename=decoder.onnx"])
    del options["_effective_builder_config"]  # says what the arguments above say
    config = options.pop("hf_details")["hf_config"]
    types = builder.set_io_dtype(precision, provider, options), builder.set_onnx_dtype(precision, options)
    for folder in (target, cache):
        folder.mkdir(exist_ok=True)
    graph = _fed(getattr(builder, _BUILDERS[type(llm).__name__]), llm)(config, *types, provider, str(cache), options)
    graph.make_model(str(source))
    graph.save_model(str(target))


def _fed(kind: type[Any], llm: Any) -> type[Any]:
    """A kind of builder that takes its weights from a model, and stacks those of attention while it writes them."""
    import onnx_ir
    from onnx_ir.tensor_adapters import TorchTensor, to_torch_dtype

    class Fed(kind):  # type: ignore[misc]
        def load_weights(self, _: str) -> Any:
            return llm

        def make_packed_matmul_float_class(self, *products: Any) -> Any:
            return SimpleNamespace(weight=_Stacked([product.weight for product in products]))

        def make_initializer(self, tensor: Any, /, name: str, *, to: Any = None, raw: bool = False) -> None:
            if not isinstance(tensor, _Stacked):
                super().make_initializer(tensor, name, to=to, raw=raw)
                return
            shape = onnx_ir.Shape(tensor.shape)
            value = self.make_value(name, to, shape)
            value.const_value = onnx_ir.LazyTensor(
                lambda: TorchTensor(tensor.made().to(to_torch_dtype(to)), name=name), dtype=to, shape=shape, name=name
            )
            self.model.graph.register_initializer(value)

    return Fed


class _Stacked:
    """Weights one above the other, made when they are asked for: the library makes those of all layers at once."""

    def __init__(self, weights: list[torch.Tensor], *, transposed: bool = False) -> None:
        self._weights, self._transposed = weights, transposed
        rows, columns = sum(len(weight) for weight in weights), weights[0].shape[1]
        self.shape = (columns, rows) if transposed else (rows, columns)

    @property
    def T(self) -> _Stacked:
        return _Stacked(self._weights, transposed=not self._transposed)

    def made(self) -> torch.Tensor:
        whole = torch.cat(self._weights)
        return whole.T if self._transposed else whole


def check_architecture(llm: Any) -> None:
    """Refuse an architecture that the builder has no class for.

    Args:
        llm: A causal model without adapters.

    Raises:
        UsageError: It is none of those that this module knows.
    """
    if (name := type(llm).__name__) not in _BUILDERS:
        raise UsageError(f"the language model is a {name}: expected one of {', '.join(_BUILDERS)}")
