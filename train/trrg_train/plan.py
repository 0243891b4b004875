"""What a configuration costs, before a weight is made: parameters of each part, memory of each GPU.

Everything is counted on PyTorch's fake tensors, which have shapes and kernels and no memory. Weights, gradients and the
two moments of AdamW are fp32 (bf16 is autocast); frozen parts have weights only. Activations are what autograd keeps of
one batch, seen through ``saved_tensors_hooks`` and counted at 2 bytes an element under bf16. DDP keeps everything on
every GPU; FSDP divides weights, gradients and moments. Temporary buffers, what activation checkpointing computes again,
the CUDA context and fragmentation are not counted: ``HEADROOM`` is left for them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from trrg_sdk.labeler import OBSERVATIONS
from trrg_train.config import OptimConfig, RunConfig
from trrg_train.models.fusion import ClueInputs
from trrg_train.models.trrg import EncodedImages, Prompt, ReportTokens, Trrg
from trrg_train.trainer import checkpoint_activations

GIB = 2**30
GPUS = (1, 4, 8)
HEADROOM = 0.1
FLOAT = 4
SENTENCE_TOKENS, INSTRUCTION_TOKENS = 32, 24


@dataclass(frozen=True)
class StagePlan:
    """Memory of one stage on one GPU, in bytes.

    Attributes:
        name: ``"stage 1"`` or ``"stage 2"``.
        parameters: Of the parts that this stage holds.
        trainable: Of those.
        activations: Of one batch.
    """

    name: str
    parameters: int
    trainable: int
    activations: int

    @property
    def states(self) -> int:
        """Weights, gradients and moments, undivided."""
        return FLOAT * self.parameters + 3 * FLOAT * self.trainable

    def bytes_per_gpu(self, gpus: int, *, sharded: bool) -> int:
        """Memory of each of ``gpus`` GPUs, with DDP or (``sharded``) with FSDP."""
        return self.activations + (-(-self.states // gpus) if sharded else self.states)


@dataclass(frozen=True)
class Plan:
    """Parameters of each part and both stages."""

    name: str
    parts: dict[str, int]
    stages: tuple[StagePlan, ...]

    def to_markdown(self, *, gpu_gib: float) -> str:
        """Tables for a person, with a verdict for GPUs of ``gpu_gib`` GiB."""
        lines = [f"# What {self.name} costs", "", "| part | parameters |", "|---|---|"]
        lines += [f"| {part} | {count / 1e6:,.1f} M |" for part, count in self.parts.items()]
        lines += [f"| all | {sum(self.parts.values()) / 1e6:,.1f} M |", ""]
        lines += ["| GiB a GPU | weights | gradients | AdamW | activations |", "|---|---|---|---|---|"]
        for s in self.stages:
            sizes = (FLOAT * s.parameters, FLOAT * s.trainable, 2 * FLOAT * s.trainable, s.activations)
            lines.append(f"| {s.name} | " + " | ".join(f"{size / GIB:.2f}" for size in sizes) + " |")
        lines += ["", f"| GiB a GPU of {gpu_gib:g} | GPUs | DDP | FSDP | needed |", "|---|---|---|---|---|"]
        lines += [_row(stage, gpus, gpu_gib) for stage in self.stages for gpus in GPUS]
        return "\n".join(lines) + "\n"


def plan_run(config: RunConfig) -> Plan:
    """Count on fake tensors; nothing is allocated and no weight is read.

    Args:
        config: A model whose parts are given by configuration; folders of weights are not read here.
    """
    with torch.device("meta"):
        prompt = Prompt((1,) * INSTRUCTION_TOKENS, (1,))
        model = Trrg(config.model, vocab_size=config.stage1.vocab_size, prompt=prompt)
    with FakeTensorMode():
        _make_fake(model)
        parts = {
            "vision encoder": model.perceiver.vision,
            "clue encoder": model.perceiver.clue_encoder,
            "joint heads": model.perceiver.joint,
            "fusion": model.fusion,
            "language model": model.llm,
            "consistency heads": model.consistency,
        }
        stages = (_stage1(model, config), _stage2(model, config))
    return Plan(config.model.name, {name: _count(part) for name, part in parts.items()}, stages)


def _stage1(model: Trrg, config: RunConfig) -> StagePlan:
    optim = config.stage1.optim
    perceiver = model.perceiver
    if optim.activation_checkpointing:
        checkpoint_activations((perceiver.vision.backbone, perceiver.clue_encoder.encoder), {})
    side = config.model.image_size
    texts = optim.batch_size * config.stage1.sentences_per_study + 2 * len(OBSERVATIONS)

    def step() -> None:
        perceiver.encode_images(torch.zeros(optim.batch_size, 1, side, side))
        ids = torch.zeros(texts, SENTENCE_TOKENS, dtype=torch.long)
        perceiver.encode_texts(ids, torch.ones_like(ids))

    count = _count(perceiver)
    return StagePlan("stage 1", count, count, kept_bytes(step, perceiver, optim))


def _stage2(model: Trrg, config: RunConfig) -> StagePlan:
    """The encoders are not in memory: their encodings are on disk."""
    optim, sizes = config.stage2.optim, config.model
    model.freeze_perceiver()
    if optim.activation_checkpointing:
        checkpoint_activations((model.llm,), {})
    batch, clues = optim.batch_size, len(OBSERVATIONS)
    images = EncodedImages(
        torch.zeros(batch, sizes.patches, model.perceiver.vision.width),
        torch.zeros(batch, sizes.patches, sizes.joint_dim),
        torch.zeros(batch, sizes.joint_dim),
    )
    row = torch.zeros(clues)
    bank = torch.zeros(clues, sizes.joint_dim)
    inputs = ClueInputs(bank, bank, row, row, row, torch.zeros(batch, clues))
    ids = torch.zeros(batch, config.stage2.max_new_tokens, dtype=torch.long)
    report = ReportTokens(ids, torch.ones_like(ids), torch.ones_like(ids, dtype=torch.bool))

    def step() -> None:
        model(images, inputs, report, torch.zeros(batch, clues), torch.zeros(batch, clues, 2))

    held = [model.fusion, model.llm, model.consistency]
    count, trainable = sum(map(_count, held)), sum(_count(part, trainable=True) for part in held)
    return StagePlan("stage 2", count, trainable, kept_bytes(step, model, optim))


def kept_bytes(step: Callable[[], None], model: nn.Module, optim: OptimConfig) -> int:
    """Bytes that autograd keeps for the backward pass of a step, parameters and repeated views not counted."""
    own = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[Any, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept.setdefault(storage._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return size // 2 if optim.precision == "bf16" else size


def _make_fake(model: nn.Module) -> None:
    """Replace every weight on the meta device by a fake one on the CPU, whose kernels autograd can be asked about."""
    for part in model.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, dtype=weight.dtype)
                part._parameters[name] = nn.Parameter(fake, requires_grad=weight.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _count(part: nn.Module, *, trainable: bool = False) -> int:
    return sum(p.numel() for p in part.parameters() if p.requires_grad or not trainable)


def _row(stage: StagePlan, gpus: int, gpu_gib: float) -> str:
    room = gpu_gib * GIB * (1 - HEADROOM)
    whole, sharded = (stage.bytes_per_gpu(gpus, sharded=s) for s in (False, True))
    needed = _verdict(whole <= room, sharded <= room)
    return f"| {stage.name} | {gpus} | {whole / GIB:.1f} | {sharded / GIB:.1f} | {needed} |"


def _verdict(fits: bool, fits_sharded: bool) -> str:
    if fits:
        return "fits as it is"
    return "FSDP" if fits_sharded else "a smaller batch, activation_checkpointing or more GPUs"
