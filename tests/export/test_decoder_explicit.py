"""The decoder with its past as input: the same as transformers, whatever the sizes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from tests.export import tiny
from trrg_export.decoder_explicit import trace_explicit_decoder
from trrg_export.onnx_file import tensor_specs
from trrg_export.trace import GRAPH
from trrg_sdk.errors import UsageError

pytestmark = pytest.mark.torch

# Two query heads share one pair of keys and values: the heads must be repeated.
GROUPED = {**tiny.LLM, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from trrg_train.models.checkpoint import load_checkpoint

    return load_checkpoint(tiny.write_checkpoint(tmp_path_factory.mktemp("grouped") / "tiny", llm=GROUPED))


@pytest.fixture(scope="module")
def llm(checkpoint: Any) -> Any:
    return checkpoint.trrg().llm


@pytest.fixture(scope="module")
def graph(llm: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    trace_explicit_decoder(llm, folder)
    return folder / GRAPH


@pytest.fixture(scope="module")
def session(graph: Path) -> Any:
    return ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])


def no_past(batch: int) -> dict[str, Any]:
    names = [f"past_key_values.{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    return {name: np.zeros((batch, 2, 0, 16), np.float32) for name in names}


def read(session: Any, embeds: Any, mask: Any, past: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    names = [output.name for output in session.get_outputs()]
    out = dict(zip(names, session.run(None, {"inputs_embeds": embeds, "attention_mask": mask, **past}), strict=True))
    logits = out.pop("logits")
    return logits, {name.replace("present.", "past_key_values."): value for name, value in out.items()}


def expected(llm: Any, embeds: Any, mask: Any = None) -> Any:
    with torch.no_grad():
        positions = None if mask is None else (torch.from_numpy(mask).cumsum(-1) - 1).clamp(min=0)
        seen = None if mask is None else torch.from_numpy(mask)
        return llm(inputs_embeds=torch.from_numpy(embeds), attention_mask=seen, position_ids=positions).logits.numpy()


def embeddings(*shape: int) -> Any:
    return np.random.default_rng(3).standard_normal((*shape, 64), dtype=np.float32)


def test_names_and_axes_are_those_of_the_contract(graph: Path) -> None:
    inputs, outputs = tensor_specs(graph)
    parts = [f"{layer}.{part}" for layer in range(2) for part in ("key", "value")]
    assert [spec.name for spec in inputs] == [
        "inputs_embeds",
        "attention_mask",
        *(f"past_key_values.{p}" for p in parts),
    ]
    assert [spec.name for spec in outputs] == ["logits", *(f"present.{part}" for part in parts)]
    axes = {spec.name: (spec.dtype, spec.axes) for spec in (*inputs, *outputs)}
    assert axes["inputs_embeds"] == ("float32", ("batch", "sequence", 64))
    assert axes["attention_mask"] == ("int64", ("batch", "past + sequence"))
    assert axes["past_key_values.1.value"] == ("float32", ("batch", 2, "past", 16))
    assert axes["present.0.key"] == ("float32", ("batch", 2, "past + sequence", 16))
    assert axes["logits"] == ("float32", ("batch", "sequence", 320))


@pytest.mark.parametrize(("batch", "past", "sequence"), [(1, 0, 1), (1, 0, 9), (3, 0, 5), (2, 6, 1), (3, 5, 4)])
def test_prefill_and_steps_are_the_models(llm: Any, session: Any, batch: int, past: int, sequence: int) -> None:
    embeds = embeddings(batch, past + sequence)
    mask = np.ones((batch, past + sequence), np.int64)
    cache = no_past(batch)
    if past:
        _, cache = read(session, embeds[:, :past], mask[:, :past], cache)
    logits, present = read(session, embeds[:, past:], mask, cache)
    assert np.abs(logits - expected(llm, embeds)[:, past:]).max() < 2e-5
    assert {value.shape for value in present.values()} == {(batch, 2, past + sequence, 16)}


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(llm: Any, session: Any, side: str) -> None:
    embeds, mask = embeddings(2, 7), np.ones((2, 7), np.int64)
    hidden = slice(0, 3) if side == "left" else slice(4, 7)
    mask[1, hidden] = 0
    logits, _ = read(session, embeds, mask, no_past(2))
    kept = mask[1].astype(bool)
    alone = expected(llm, embeds[1:, kept])[0]
    assert np.abs(logits[1, kept] - alone).max() < 2e-5


def test_the_parity_studies_give_the_same_greedy_tokens(checkpoint: Any, llm: Any, session: Any) -> None:
    from trrg_export.pytorch_run import run_pytorch

    reference = run_pytorch(checkpoint, checkpoint.parity_pixels())
    assert len(set(reference.ids)) > 1, "one text for all would prove little"
    table = llm.get_input_embeddings().weight.detach().numpy()
    for prompt, wanted, ids in zip(reference.prompts, reference.first_logits, reference.ids, strict=True):
        logits, past = read(session, prompt[None], np.ones((1, len(prompt)), np.int64), no_past(1))
        assert np.abs(logits[0, -1] - wanted).max() < 2e-5
        for length, token in enumerate(ids, len(prompt) + 1):
            assert int(logits[0, -1].argmax()) == token
            logits, past = read(session, table[None, token : token + 1], np.ones((1, length), np.int64), past)


def test_in_half_the_cache_is_half_too_and_the_logits_are_close(llm: Any, tmp_path: Path) -> None:
    trace_explicit_decoder(llm, tmp_path, half=True)
    assert next(llm.parameters()).dtype == torch.float32, "the model itself was changed"
    session = ort.InferenceSession(str(tmp_path / GRAPH), providers=["CPUExecutionProvider"])
    embeds = embeddings(2, 6)
    past = {name: value.astype(np.float16) for name, value in no_past(2).items()}
    logits, present = read(session, embeds, np.ones((2, 6), np.int64), past)
    assert {value.dtype for value in present.values()} == {np.dtype(np.float16)}
    gap = np.abs(logits - expected(llm, embeds)).max()
    assert 1e-5 < gap < 0.02, "not computed in fp16, or far off"


def test_a_model_with_a_window_is_refused(tmp_path: Path) -> None:
    """Its cache forgets, and has another shape."""
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {name: value for name, value in GROUPED.items() if name != "model_type"}
    window = MistralForCausalLM(MistralConfig(**sizes, vocab_size=50, sliding_window=4))
    with pytest.raises(UsageError, match="'mistral' and keeps a cache of DynamicSlidingWindowLayer"):
        trace_explicit_decoder(window, tmp_path)
