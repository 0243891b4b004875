"""Pictures of where the clues were perceived: the image in grey, the patches' probabilities in colour over it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trrg_sdk.reading import Picture

_COOL, _WARM = np.array([255.0, 200.0, 0.0]), np.array([255.0, 0.0, 0.0])
_STRONGEST = 0.55
"""Share of colour where the probability is 1; where it is 0 the image is untouched."""


def grey(picture: Picture, *, longest_side: int) -> NDArray[np.uint8]:
    """The image alone.

    Args:
        picture: Of one reading.
        longest_side: A larger image is reduced to it; pixels become square.

    Returns:
        uint8 (H, W, 3).
    """
    from PIL import Image

    height, width = picture.pixels.shape[0] * picture.aspect, float(picture.pixels.shape[1])
    scale = min(1.0, longest_side / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    whole = Image.fromarray(np.clip(picture.pixels * 255 + 0.5, 0, 255).astype(np.uint8))
    small = np.asarray(whole.resize(size, Image.Resampling.BILINEAR))
    return np.repeat(small[..., None], 3, axis=2)


def overlaid(picture: Picture, clue: str, *, longest_side: int) -> NDArray[np.uint8]:
    """The image under the heat map of a clue.

    Args:
        picture: Of one reading.
        clue: One of ``picture.heat``.
        longest_side: As for ``grey``.

    Returns:
        uint8 (H, W, 3).
    """
    image = grey(picture, longest_side=longest_side).astype(np.float64)
    heat = _on_image(picture, clue, image.shape[:2])[..., None]  # (H, W, 1)
    share = _STRONGEST * heat
    mixed = image * (1 - share) + (_COOL * (1 - heat) + _WARM * heat) * share
    return np.asarray(np.clip(mixed + 0.5, 0, 255).astype(np.uint8))


def captioned(image: NDArray[np.uint8], *lines: str) -> NDArray[np.uint8]:
    """A picture with a black strip of white text above it; ``image``: uint8 (H, W, 3)."""
    from PIL import Image, ImageDraw, ImageFont

    height, width, _ = image.shape
    size = max(10, width // 36)
    strip = Image.new("RGB", (width, int(size * 1.4 * len(lines)) + 4))
    draw = ImageDraw.Draw(strip)
    font = ImageFont.load_default(size)
    for number, line in enumerate(lines):
        draw.text((4, int(2 + number * size * 1.4)), line, fill="white", font=font)
    return np.concatenate([np.asarray(strip), image])


def _on_image(picture: Picture, clue: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """The heat map in the image's frame, each patch one colour: float64 ``shape``.

    Nothing is smoothed: the model said one number a patch, and a smooth picture would claim more.
    """
    heat = np.asarray(picture.heat[clue], dtype=np.float64)
    rows, columns = heat.shape
    top, left, tall, wide = picture.box
    down = top + (np.arange(shape[0]) + 0.5) / shape[0] * tall
    across = left + (np.arange(shape[1]) + 0.5) / shape[1] * wide
    row = np.clip((down * rows).astype(int), 0, rows - 1)
    column = np.clip((across * columns).astype(int), 0, columns - 1)
    return np.asarray(np.clip(heat[row[:, None], column[None]], 0.0, 1.0))
