"""Beams and repetition control against Hugging Face ``generate`` on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime_genai")

from trrg_sdk.backends import onnxruntime, open_decoder
from trrg_sdk.bundle import Bundle
from trrg_sdk.decoding import Rules, finish, write
from trrg_sdk.decoding.beam import search
from trrg_train.models.checkpoint import load_checkpoint

EOS = 2


@pytest.mark.filterwarnings("ignore:Passing `:UserWarning")  # that only new tokens count, as ours do
@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 1, "repetition_penalty": 1.3},
        {"num_beams": 1, "no_repeat_ngram_size": 2},
        {"num_beams": 3},
        {"num_beams": 4, "length_penalty": 0.0},
        {"num_beams": 3, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_as_hugging_face(fp32_bundle: Path, tiny_checkpoint: Path, options: dict[str, Any]) -> None:
    bundle, llm = Bundle.load(fp32_bundle), load_checkpoint(tiny_checkpoint).trrg().llm
    decoder, table = open_decoder(onnxruntime.open_backend(device="cpu", threads=1), bundle), bundle.token_embedding()
    beams = options["num_beams"]
    controls = ("repetition_penalty", "no_repeat_ngram_size")
    rules = Rules(EOS, 16, **{name: value for name, value in options.items() if name in controls})
    rng = np.random.default_rng(0)
    for _ in range(8):
        prompt = np.asarray(table[rng.integers(3, len(table), 9)], np.float32)
        with torch.no_grad():
            theirs = llm.generate(
                inputs_embeds=torch.from_numpy(prompt)[None],
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
                max_new_tokens=16,
                do_sample=False,
                eos_token_id=EOS,
                pad_token_id=0,
                **options,
            )[0].tolist()
        if beams == 1:
            ours = finish(write(decoder, prompt, table, rules))
        else:
            penalty = options.get("length_penalty", 1.0)
            ours = search(decoder, prompt, table, rules, beams=beams, length_penalty=penalty)
        assert list(ours.ids) == (theirs[: theirs.index(EOS)] if EOS in theirs else theirs)
