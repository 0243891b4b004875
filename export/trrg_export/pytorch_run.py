"""The PyTorch model on the parity studies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trrg_export.memory import released
from trrg_export.reference import UNSEEN_SIZES, Array, Reference, Run
from trrg_export.to_onnx import checkpoint_plans
from trrg_sdk.manifest import Axes
from trrg_train.models.checkpoint import Checkpoint
from trrg_train.models.clue_bank import clue_inputs, embed_bank, tokenize
from trrg_train.models.fusion import ClueInputs
from trrg_train.models.trrg import EncodedImages, Trrg

_BATCH = 16


@torch.no_grad()
def run_pytorch(checkpoint: Checkpoint, pixels: Array, anew: Callable[[], Trrg] | None = None) -> Reference:
    """Run the checkpoint's model in fp32.

    Args:
        checkpoint: Of stage 2.
        pixels: float32 (K, channels, S, S), preprocessed.
        anew: Gives its model with weights that are mapped anew, so that those of one part at a time are in memory;
            None takes the checkpoint's own.

    Returns:
        Everything that parity compares.
    """
    model, bank = anew or checkpoint.trrg, checkpoint.meta.clues
    longest = checkpoint.config.max_text_length
    texts = [clue.positive for clue in bank] + [clue.negative for clue in bank]
    input_ids, mask = tokenize(texts, checkpoint.tokenizer, max_length=longest)
    with released():
        perceiver = model().perceiver
        positive, negative = embed_bank(bank, perceiver, checkpoint.tokenizer, max_length=longest)
        clue_joint = perceiver.encode_texts(input_ids, mask).numpy()
        del perceiver
    with released():
        images = _encoded(model(), torch.from_numpy(pixels))
    with released():
        parts = _all_reports(checkpoint, model(), images, positive, negative)
    clues = _arrays(clue_inputs(bank, positive, negative, -torch.ones(1, len(bank))), "clue_")
    clue_texts = {"input_ids": input_ids.numpy(), "attention_mask": mask.numpy()}
    vision = _joined([_arrays(batch) for batch in images])
    return Reference(
        pixels=pixels,
        clue_inputs=clues,
        clue_texts=clue_texts,
        clue_joint=clue_joint,
        vision=vision,
        fusion=_joined([part.fusion for part in parts]),
        prompts=np.concatenate([part.prompts for part in parts]),
        first_logits=np.concatenate([part.first_logits for part in parts]),
        ids=tuple(ids for part in parts for ids in part.ids),
        unseen=_unseen(checkpoint, model, {"pixels": pixels, **clue_texts, **vision, **clues}),
    )


def _encoded(model: Trrg, pixels: Tensor) -> list[EncodedImages]:
    return [EncodedImages(*model.perceiver.encode_images(batch)) for batch in pixels.split(_BATCH)]


@dataclass(frozen=True, eq=False)
class _Reports:
    fusion: dict[str, Array]
    prompts: Array
    first_logits: Array
    ids: list[tuple[int, ...]]


def _all_reports(
    checkpoint: Checkpoint, model: Trrg, images: Sequence[EncodedImages], positive: Tensor, negative: Tensor
) -> list[_Reports]:
    return [_reports(checkpoint, model, batch, positive, negative) for batch in images]


def _reports(
    checkpoint: Checkpoint, model: Trrg, images: EncodedImages, positive: Tensor, negative: Tensor
) -> _Reports:
    bank = checkpoint.meta.clues
    clues = clue_inputs(bank, positive, negative, -torch.ones(len(images.patches), len(bank)))
    fused = model.fusion(*images, clues)
    prompts = model.embed_prompt(fused)
    generated, _ = model.generate(images, clues, max_new_tokens=checkpoint.meta.max_new_tokens)
    shown = ("prompt_embeds", "clue_logits", "clue_heat")
    return _Reports(
        fusion={name: getattr(fused, name).numpy() for name in shown},
        prompts=prompts.numpy(),
        first_logits=_first_logits(model, prompts),
        ids=[_until_end(row, model.llm.config.eos_token_id) for row in generated.tolist()],
    )


def _unseen(checkpoint: Checkpoint, model: Callable[[], Trrg], seen: Mapping[str, Array]) -> dict[str, Run]:
    """Run the graphs with other sizes on what the studies gave, some of it twice; half of the clues are forced.

    Not on random numbers, which no model has learnt to read: on those OpenVINO's bf16 was off by a third of the largest
    number, on these by a sixtieth.
    """
    runs = {}
    for plan in checkpoint_plans(checkpoint, model):
        inputs = {spec.name: _resized(seen[spec.name], spec.axes) for spec in plan.inputs}
        if (override := inputs.get("clue_override")) is not None:
            override[:, ::2] = np.linspace(0.1, 0.9, override[:, ::2].size).reshape(override[:, ::2].shape)
        with released():
            made: Any = plan.module()(*map(torch.from_numpy, inputs.values()))
        values = (made,) if isinstance(made, Tensor) else made
        runs[plan.name] = Run(inputs, {name: v.numpy() for name, v in zip(plan.outputs, values, strict=True)})
    return runs


def _resized(value: Array, axes: Axes) -> Array:
    """Take as much of each free axis as :data:`UNSEEN_SIZES` has, from its beginning again where it ends."""
    for place, axis in enumerate(axes):
        if isinstance(axis, str):
            value = value.take(np.arange(UNSEEN_SIZES[axis]) % value.shape[place], axis=place)
    return value


def _first_logits(model: Trrg, prompts: Tensor) -> Array:
    logits: Tensor = model.llm(inputs_embeds=prompts, use_cache=False).logits[:, -1]
    return logits.numpy()


def _until_end(ids: list[int], eos: int) -> tuple[int, ...]:
    return tuple(ids[: ids.index(eos)] if eos in ids else ids)


def _arrays(tensors: EncodedImages | ClueInputs, prefix: str = "") -> dict[str, Array]:
    return {f"{prefix}{name}": value.numpy() for name, value in tensors._asdict().items()}


def _joined(parts: list[dict[str, Array]]) -> dict[str, Array]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
