"""Augmentation of preprocessed radiographs. Never a mirror image: left and right mean something."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

ROTATION_DEGREES, SHIFT, ZOOM = 8.0, 0.06, 0.12
GAIN, OFFSET, GAMMA, NOISE = 0.25, 0.25, 0.3, 0.06


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, shift and zoom a little; change contrast, brightness, gamma and noise.

    Args:
        pixels: float32 (B, C, S, S), about zero mean and unit spread; what is beyond the edge becomes the minimum.
        generator: Source of all randomness.

    Returns:
        The same shape.
    """
    batch = pixels.shape[0]

    def uniform(width: float) -> Tensor:
        return (torch.rand(batch, generator=generator) * 2.0 - 1.0) * width

    angle, zoom = uniform(math.radians(ROTATION_DEGREES)), 1.0 + uniform(ZOOM)
    cos, sin = zoom * torch.cos(angle), zoom * torch.sin(angle)
    theta = torch.stack(
        (torch.stack((cos, -sin, uniform(2 * SHIFT)), 1), torch.stack((sin, cos, uniform(2 * SHIFT)), 1)), 1
    )  # (B, 2, 3)
    floor = pixels.amin(dim=(1, 2, 3), keepdim=True)
    span = (pixels.amax(dim=(1, 2, 3), keepdim=True) - floor).clamp(min=1e-3)
    unit = (pixels - floor) / span
    grid = affine_grid(theta, list(unit.shape), align_corners=False)
    unit = grid_sample(unit, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    unit = unit.clamp(min=1e-6) ** (1.0 + uniform(GAMMA)).view(-1, 1, 1, 1)
    moved = (unit * span + floor) * (1.0 + uniform(GAIN)).view(-1, 1, 1, 1) + uniform(OFFSET).view(-1, 1, 1, 1)
    noise = NOISE * torch.rand(batch, generator=generator).view(-1, 1, 1, 1)
    return moved + torch.randn(moved.shape, generator=generator) * noise
