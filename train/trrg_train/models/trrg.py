"""The whole model of stage 2: frozen perceiver, fusion, language model, consistency heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from trrg_train.distributed import whole_mean
from trrg_train.models.config import ModelConfig
from trrg_train.models.consistency import ConsistencyHeads, consistency_loss, side_loss
from trrg_train.models.fusion import ClueInputs, Fusion, FusionOutput
from trrg_train.models.llm import build_llm
from trrg_train.models.perceiver import Perceiver


class EncodedImages(NamedTuple):
    """What the frozen encoders give for B images: (B, N, Dv), (B, N, De), (B, De)."""

    patches: Tensor
    patch_joint: Tensor
    global_joint: Tensor


@dataclass(frozen=True)
class Prompt:
    """The instruction around the visual and clue tokens, as token ids."""

    prefix_ids: tuple[int, ...]
    suffix_ids: tuple[int, ...]


class ReportTokens(NamedTuple):
    """The reports of a batch, padded on the right, each ending with the end token.

    Attributes:
        ids: int64 (B, T).
        mask: int64 (B, T), 0 where a token is padding.
        counted: bool (B, T), False where the language loss leaves a token out.
    """

    ids: Tensor
    mask: Tensor
    counted: Tensor


class TrrgOutput(NamedTuple):
    """Losses and logits of one batch of stage 2; of several processes see :mod:`trrg_train.distributed`."""

    loss: Tensor
    language_loss: Tensor
    consistency_loss: Tensor
    side_loss: Tensor
    logits: Tensor


class Trrg(nn.Module):
    """TRRG from encoded images to a report."""

    def __init__(
        self, config: ModelConfig, *, vocab_size: int, prompt: Prompt, consistency_weight: float = 0.5
    ) -> None:
        """Build all parts.

        Args:
            config: Sizes and switches.
            vocab_size: Of the shared tokenizer.
            prompt: Token ids of the instruction.
            consistency_weight: Of the disease-aware consistency loss, sides included; 0 switches it off (ablation).
        """
        super().__init__()
        self.prompt = prompt
        self.consistency_weight = consistency_weight
        self.perceiver = Perceiver(config, vocab_size=vocab_size)
        self.llm = build_llm(config, vocab_size=vocab_size)
        self.llm_width = int(self.llm.config.hidden_size)
        self.fusion = Fusion(config, vision_width=self.perceiver.vision.width, llm_width=self.llm_width)
        self.consistency = ConsistencyHeads(width=self.llm_width, joint_dim=config.joint_dim)

    def freeze_perceiver(self) -> None:
        """Freeze the encoders and share stage 1's perception of clues with fusion, frozen too."""
        self.fusion.perception.load_state_dict(self.perceiver.perception.state_dict())
        for part in (self.perceiver, self.fusion.perception):
            part.requires_grad_(False)
        self.perceiver.eval()

    def embed_prompt(self, fused: FusionOutput) -> Tensor:
        """Put instruction tokens around the fused ones: (B, P + N + C + Q, Dl)."""
        batch = fused.prompt_embeds.shape[0]
        embed = self.llm.get_input_embeddings()
        device = fused.prompt_embeds.device
        prefix = embed(torch.tensor(self.prompt.prefix_ids, device=device)).expand(batch, -1, -1)
        suffix = embed(torch.tensor(self.prompt.suffix_ids, device=device)).expand(batch, -1, -1)
        return torch.cat((prefix, fused.prompt_embeds, suffix), dim=1)

    def forward(
        self,
        images: EncodedImages,
        clues: ClueInputs,
        report: ReportTokens,
        labels: Tensor,
        sides: Tensor | None = None,
    ) -> TrrgOutput:
        """Teacher-forced pass.

        Args:
            images: From the frozen encoders.
            clues: The clues of the batch.
            report: What is to be written.
            labels: float32 (B, C), 1 present, 0 absent, NaN not known.
            sides: float32 (B, C, 2), left and right of what is present, NaN not known; None when none is.

        Returns:
            See :class:`TrrgOutput`; ``logits`` are those that predict ``report.ids``, (B, T, V).
        """
        fused = self.fusion(*images, clues)
        prompt = self.embed_prompt(fused)
        embeds = torch.cat((prompt, self.llm.get_input_embeddings()(report.ids)), dim=1)
        prompt_mask = report.mask.new_ones(prompt.shape[:2])
        output = self.llm(
            inputs_embeds=embeds,
            attention_mask=torch.cat((prompt_mask, report.mask), dim=1),
            output_hidden_states=True,
            use_cache=False,
        )
        start = prompt.shape[1]
        logits = output.logits[:, start - 1 : -1]  # (B, T, V)
        losses = cross_entropy(logits.flatten(0, 1), report.ids.flatten(), reduction="none")
        language = whole_mean(losses, report.counted.flatten())
        consistency = self._consistency(fused, output.hidden_states[-1][:, start:], report.mask, clues, labels)
        side = self._side(fused, sides)
        loss = language + self.consistency_weight * (consistency + side)
        return TrrgOutput(loss, language, consistency, side, logits)

    def _consistency(
        self, fused: FusionOutput, hidden: Tensor, mask: Tensor, clues: ClueInputs, labels: Tensor
    ) -> Tensor:
        if self.consistency_weight == 0.0:
            return hidden.new_zeros(())
        from_clues = self.consistency.from_clues(fused.clue_tokens)
        from_report = self.consistency.from_report(hidden, mask, clues.positive - clues.negative)
        return consistency_loss(from_clues, from_report, labels)

    def _side(self, fused: FusionOutput, sides: Tensor | None) -> Tensor:
        if self.consistency_weight == 0.0 or sides is None:
            return fused.clue_tokens.new_zeros(())
        return side_loss(self.consistency.sides_from_clues(fused.clue_tokens), sides)

    @torch.no_grad()
    def generate(self, images: EncodedImages, clues: ClueInputs, *, max_new_tokens: int) -> tuple[Tensor, Tensor]:
        """Greedy reports.

        Args:
            images: From the frozen encoders.
            clues: The clues of the batch.
            max_new_tokens: Hard limit.

        Returns:
            Token ids int64 (B, T) and calibrated clue logits (B, C).
        """
        fused = self.fusion(*images, clues)
        embeds = self.embed_prompt(fused)
        generated: Any = self.llm.generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            num_beams=1,
        )
        return generated, fused.clue_logits
