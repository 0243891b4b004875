"""The vision encoder: a radiograph becomes patches."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AutoModel

from trrg_train.models.backbone import backbone_config
from trrg_train.models.config import ModelConfig


class VisionEncoder(nn.Module):
    """Any Hugging Face image backbone behind one shape.

    Convolutional backbones give a map (B, Dv, H, W), transformers a sequence (B, N, Dv) or (B, 1 + N, Dv) with a
    class token in front; all come out as patches in row-major order.
    """

    def __init__(self, config: ModelConfig) -> None:
        """Build from a local folder or from the configuration alone.

        Args:
            config: ``vision`` or ``vision_path`` is read.
        """
        super().__init__()
        self.patches, self.shift = config.patches, config.shift
        if config.vision_path:
            self.backbone = cast(nn.Module, AutoModel.from_pretrained(config.vision_path, local_files_only=True))
        else:
            self.backbone = AutoModel.from_config(backbone_config(config.vision, "vision"))
        for parameter in self.backbone.parameters():
            if parameter.dim() == 4:  # channels last: a training step on a CPU takes about a tenth less
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        register: Any = self.register_state_dict_post_hook
        register(_contiguous)  # safetensors refuses other layouts
        settings: Any = self.backbone.config
        sizes = getattr(settings, "hidden_sizes", None)
        self.width = int(sizes[-1] if sizes else settings.hidden_size)

    def forward(self, pixels: Tensor) -> Tensor:
        """Encode; in evaluation patches are means over the views that ``shift`` asks for.

        Strides let a convolutional network's answer hang on a few pixels to the left or right: means hang on less.

        Args:
            pixels: float32 (B, C, S, S), preprocessed.

        Returns:
            Patches float32 (B, N, Dv).
        """
        if self.training or not self.shift:
            return self._encode(pixels)
        views = moved(pixels, self.shift)
        patches: Tensor = self._encode(torch.cat(views)).unflatten(0, (len(views), -1)).mean(dim=0)
        return patches

    def _encode(self, pixels: Tensor) -> Tensor:
        hidden: Tensor = self.backbone(
            pixel_values=pixels.contiguous(memory_format=torch.channels_last)
        ).last_hidden_state
        if hidden.dim() == 4:
            hidden = hidden.flatten(2).transpose(1, 2)
        if hidden.shape[1] == self.patches + 1:
            hidden = hidden[:, 1:]
        torch._check(hidden.shape[1] == self.patches)
        return hidden


def moved(pixels: Tensor, shift: int) -> list[Tensor]:
    """An image as it is, and moved up, down, left and right; at the edge its last pixels are repeated.

    Args:
        pixels: float32 (B, C, S, S).
        shift: Pixels.

    Returns:
        Five tensors float32 (B, C, S, S).
    """
    side = pixels.shape[-1]
    wide = nn.functional.pad(pixels, (shift,) * 4, mode="replicate")
    corners = ((shift, shift), (2 * shift, shift), (0, shift), (shift, 2 * shift), (shift, 0))
    return [wide[:, :, top : top + side, left : left + side] for top, left in corners]


def _contiguous(_module: nn.Module, state: dict[str, Tensor], prefix: str, _metadata: dict[str, Any]) -> None:
    for name in [n for n in state if n.startswith(prefix)]:
        state[name] = state[name].contiguous()
