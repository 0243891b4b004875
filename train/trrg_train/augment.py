"""Augmentation of preprocessed radiographs. Never a mirror image: left and right mean something."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

ROTATION_DEGREES, SHIFT, ZOOM = 8.0, 0.06, 0.12
GAIN, OFFSET, GAMMA, NOISE = 0.25, 0.25, 0.3, 0.06

UNMOVED = 0.25
"""Share that is not turned, shifted or zoomed: resampling blurs, and an encoder that never saw a sharp image is worse
on the sharp ones that it meets in use."""


def augment(
    pixels: Tensor, generators: Sequence[torch.Generator], *, strength: Sequence[float] | None = None
) -> Tensor:
    """Turn, shift and zoom a little; change contrast, brightness, gamma and noise.

    Args:
        pixels: float32 (B, C, S, S), about zero mean and unit spread; what is beyond the edge becomes the minimum.
        generators: One for each image, source of all its randomness.
        strength: Times the ranges, one for each image; 1 unless given.

    Returns:
        The same shape.
    """
    drawn = torch.stack([torch.rand(9, generator=g) for g in generators])  # (B, 9)
    spread = (drawn[:, :8] * 2.0 - 1.0) * torch.tensor(strength or [1.0] * len(pixels)).unsqueeze(1)
    moved = (drawn[:, 8:] >= UNMOVED).float()
    floor = pixels.amin(dim=(1, 2, 3), keepdim=True)
    span = (pixels.amax(dim=(1, 2, 3), keepdim=True) - floor).clamp(min=1e-3)
    unit = _moved((pixels - floor) / span, spread[:, :4] * moved)
    gamma, gain, offset, noise = (column.view(-1, 1, 1, 1) for column in spread[:, 4:].unbind(1))
    unit = unit.clamp(min=1e-6) ** (1.0 + GAMMA * gamma).clamp(min=0.1)
    changed = (unit * span + floor) * (1.0 + GAIN * gain) + OFFSET * offset
    grain = torch.stack([torch.randn(pixels.shape[1:], generator=g) for g in generators])
    return changed + grain * (NOISE * noise.abs())


def _moved(unit: Tensor, spread: Tensor) -> Tensor:
    """Turn, zoom and shift images of values in [0, 1] by (B, 4) in units of the ranges; all zeros change nothing."""
    turn, zoom, across, down = spread.unbind(1)
    angle, scale = math.radians(ROTATION_DEGREES) * turn, 1.0 + ZOOM * zoom
    cos, sin = scale * torch.cos(angle), scale * torch.sin(angle)
    rows = (torch.stack((cos, -sin, 2 * SHIFT * across), 1), torch.stack((sin, cos, 2 * SHIFT * down), 1))
    grid = affine_grid(torch.stack(rows, 1), list(unit.shape), align_corners=False)
    return grid_sample(unit, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
