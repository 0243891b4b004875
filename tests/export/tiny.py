"""A checkpoint with random weights, small enough to export in seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from trrg_sdk.labeler import OBSERVATIONS
from trrg_sdk.preprocess import Preprocess
from trrg_train.models.checkpoint import save_checkpoint, save_reports
from trrg_train.models.clue import BankedClue
from trrg_train.models.config import ModelConfig
from trrg_train.models.stored import FILMS, CheckpointMeta
from trrg_train.models.tokenizer import BOS_ID, EOS_ID, train_tokenizer
from trrg_train.models.trrg import Prompt, Trrg

SIZE = 64
FILM_SETS = {"train/drawn": 24, "train/other": 12, "val/drawn": 8}
VISION = {
    "model_type": "resnet",
    "num_channels": 1,
    "embedding_size": 8,
    "hidden_sizes": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
}
CLUE_ENCODER = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
LLM = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 96,
}


def config(**changes: object) -> ModelConfig:
    values = {
        "name": "tiny",
        "image_size": SIZE,
        "patch_grid": [2, 2],
        "shift": 4,
        "vision": VISION,
        "clue_encoder": CLUE_ENCODER,
        "llm": LLM,
        "joint_dim": 16,
        "interaction_layers": 1,
    }
    return ModelConfig.from_mapping({**values, **changes})


def write_checkpoint(folder: Path, *, stage: int = 2, **changes: object) -> Path:
    torch.manual_seed(0)
    clues = tuple(
        BankedClue(name, f"There is {name}.", f"There is no {name}.", scale=1.5, offset=0.1 * i - 0.7, threshold=0.4)
        for i, name in enumerate(OBSERVATIONS)
    )
    tokenizer = train_tokenizer([c.positive for c in clues] + ["FINDINGS: The lungs are clear."], vocab_size=320)
    tokens = tokenizer.get_vocab_size()
    prompt = Prompt((BOS_ID, 40, 41), (42,))
    model = Trrg(config(**changes), vocab_size=tokens, prompt=prompt)
    _settle(model)
    meta = CheckpointMeta(
        stage=stage,
        clues=clues,
        preprocess=Preprocess(size=SIZE).to_manifest(),
        prefix_ids=prompt.prefix_ids,
        suffix_ids=prompt.suffix_ids,
        max_new_tokens=12,
        data="No data: random weights.",
        commands=("trrg-train stage1 tiny.toml", "trrg-train stage2 tiny.toml"),
        seed=7,
        evaluation={"phantoms": {"auc": {"Edema": 0.5, "within_ap": {"Edema": None}}, "studies": 3}, "epochs": 2},
    )
    part = model if stage == 2 else model.perceiver
    save_checkpoint(folder, model=part, config=config(**changes), tokenizer=tokenizer, meta=meta)
    reports = ["FINDINGS: The lungs are clear.", "There is Edema. The lungs are clear.", "FINDINGS: There is Edema."]
    save_reports(folder, [[*tokenizer.encode(text).ids, EOS_ID] for text in reports * (stage == 2)])
    save_file({"pixels": torch.randn(6, 1, SIZE, SIZE)}, folder / "parity.safetensors")
    if stage == 2:
        write_films(folder / FILMS, meta.preprocess)
    return folder


def write_films(path: Path, preprocess: Mapping[str, object], sets: Mapping[str, int] = FILM_SETS) -> Path:
    """A file of films as ``trrg-train`` writes it: smooth noise about one bright place."""
    generator = torch.Generator().manual_seed(3)
    place = torch.linspace(-1, 1, SIZE)
    bright = 160 * torch.exp(-3 * (place[:, None] ** 2 + place**2))
    noise = {name: torch.rand(count, SIZE, SIZE, generator=generator) for name, count in sets.items()}
    films = {name: (bright + 60 * values).to(torch.uint8) for name, values in noise.items()}
    save_file(films, path, metadata={"preprocess": json.dumps(dict(preprocess), sort_keys=True)})
    return path


def _settle(model: Trrg) -> None:
    """Give the model what training would: statistics of its norms, an interaction that speaks."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model.perceiver.encode_images(torch.randn(4, 1, SIZE, SIZE))
        for parameter in model.llm.parameters():  # larger logits: no two tokens are close by chance
            parameter.mul_(3.0 if parameter.dim() == 2 else 1.0)
        for parameter in model.fusion.interaction.parameters():
            if not parameter.any():  # its branches start silent
                parameter.normal_(std=0.1)
    model.eval()
