"""The folder for TensorRT-LLM: transformers reads it back as the same model, and the contract makes the same prompt."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from trrg_export.parity import LIMITS, ParityError
from trrg_export.targets import trtllm
from trrg_export.targets.base import ProvenSite
from trrg_sdk.bundle import Bundle

Site = Callable[[Path, str], ProvenSite]

pytestmark = pytest.mark.torch


@pytest.fixture(scope="module")
def loaded(tiny_checkpoint: Path) -> Any:
    from trrg_train.models.checkpoint import load_checkpoint

    return load_checkpoint(tiny_checkpoint)


@pytest.fixture(scope="module")
def reference(loaded: Any) -> Any:
    from trrg_export.pytorch_run import run_pytorch

    return run_pytorch(loaded, loaded.parity_pixels())


@pytest.fixture(scope="module")
def site(loaded: Any, reference: Any, fp32_bundle: Path) -> Site:
    """A target that reads no graph of the bundle: that of any precision will do."""
    bundle, feeds = Bundle.load(fp32_bundle), reference.feeds()

    def make(folder: Path, precision: str) -> ProvenSite:
        sizes, limits = bundle.manifest.decoder, LIMITS[precision]
        return ProvenSite(folder, loaded, folder, (), sizes, reference, feeds, precision, (), bundle, limits)

    return make


def read_back(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype="auto").eval()


def test_transformers_reads_the_same_model_back(tmp_path: Path, loaded: Any, reference: Any, site: Site) -> None:
    from transformers import AutoTokenizer

    spec = trtllm.add(site(tmp_path, "fp32"))
    assert (spec.runtime, dict(spec.graphs), spec.engines) == ("trtllm", {}, ())
    llm = read_back(tmp_path / "trtllm")
    prompts = torch.from_numpy(reference.prompts)
    with torch.no_grad():
        got = llm(inputs_embeds=prompts, use_cache=False).logits
        wanted = loaded.trrg().llm(inputs_embeds=prompts, use_cache=False).logits
    assert torch.equal(got, wanted)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "trtllm", local_files_only=True)
    text = "There is Edema."
    assert tokenizer(text)["input_ids"] == loaded.tokenizer.encode(text).ids
    assert tokenizer.eos_token_id == loaded.trrg().llm.config.eos_token_id


def test_the_contract_makes_the_prompt(tmp_path: Path, loaded: Any, reference: Any, site: Site) -> None:
    trtllm.add(site(tmp_path, "fp32"))
    contract = json.loads((tmp_path / "trtllm" / "prompt_embedding.json").read_text())
    vocab = contract["virtual_token_start"]
    assert vocab == contract["vocab_size"] == loaded.tokenizer.get_vocab_size()
    assert contract["table"] == {"source": "fusion.prompt_embeds", "dtype": "float32", "shape": [4 + 14, 64]}
    table = reference.fusion["prompt_embeds"][0]
    assert list(table.shape) == contract["table"]["shape"]
    words = read_back(tmp_path / "trtllm").get_input_embeddings().weight.detach().numpy()
    prompt = np.stack([words[i] if i < vocab else table[i - vocab] for i in contract["input_ids"]])
    assert np.array_equal(prompt, reference.prompts[0])
    assert contract["input_ids"][:3] == [1, 40, 41] and contract["input_ids"][-1] == 42


def test_other_precisions_are_half(tmp_path: Path, loaded: Any, reference: Any, site: Site) -> None:
    trtllm.add(site(tmp_path, "int4"))
    assert read_back(tmp_path / "trtllm").dtype == torch.float16
    assert json.loads((tmp_path / "trtllm" / "prompt_embedding.json").read_text())["table"]["dtype"] == "float16"
    assert next(loaded.trrg().llm.parameters()).dtype == torch.float32, "the checkpoint's model was changed"


def test_a_wrong_order_of_the_prompt_is_seen(
    tmp_path: Path, loaded: Any, reference: Any, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = trtllm.prompt_contract

    def wrong(*arguments: Any, **options: Any) -> dict[str, Any]:
        contract = right(*arguments, **options)
        return {**contract, "input_ids": contract["input_ids"][::-1]}

    monkeypatch.setattr(trtllm, "prompt_contract", wrong)
    with pytest.raises(ParityError, match="trtllm: logits differ"):
        trtllm.add(site(tmp_path, "fp32"))
