"""The way from pixels to a tensor, against a slow reference written from its description."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from trrg_sdk.errors import BundleError, InputError
from trrg_sdk.preprocess import Preprocess


def triangle_resize(image: NDArray[Any], rows: int, columns: int) -> NDArray[Any]:
    """The documented filter in float64: support grows with the reduction, weights normalised at the border."""

    def weights(source: int, target: int) -> NDArray[Any]:
        scale = source / target
        support = max(scale, 1.0)
        table = np.zeros((target, source))
        for index in range(target):
            centre = (index + 0.5) * scale
            first, last = max(0, int(centre - support + 0.5)), min(source, int(centre + support + 0.5))
            for tap in range(first, last):
                table[index, tap] = max(0.0, 1 - abs((tap - centre + 0.5) / support))
        normed: NDArray[Any] = table / table.sum(axis=1, keepdims=True)
        return normed

    result: NDArray[Any] = weights(image.shape[0], rows) @ image.astype(np.float64) @ weights(image.shape[1], columns).T
    return result


def random_image(rows: int, columns: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).gamma(2.0, 300.0, (rows, columns)).astype(np.float32)


def test_matches_the_written_description() -> None:
    preprocess = Preprocess(size=48, lower_percentile=2, upper_percentile=90, mean=0.3, std=0.2)
    image = random_image(200, 131)
    got = preprocess.apply(image)
    ordered = np.sort(image.ravel())
    low, high = (ordered[math.floor(q / 100 * (image.size - 1))] for q in (2, 90))
    columns = math.floor(131 * 48 / 200 + 0.5)
    expected = np.zeros((48, 48))
    left = (48 - columns) // 2
    expected[:, left : left + columns] = (triangle_resize(np.clip(image, low, high), 48, columns) - low) / (high - low)
    assert got.shape == (1, 48, 48) and got.dtype == np.float32
    np.testing.assert_allclose(got[0], (expected - 0.3) / 0.2, atol=2e-4)


def test_percentiles_ignore_a_bright_marker_and_scale() -> None:
    image = random_image(256, 256)
    marked = image.copy()
    marked[:8, :8] = 1e6
    clean, spoiled = Preprocess().apply(image), Preprocess().apply(marked)
    assert np.abs(clean - spoiled)[0, 16:, 16:].max() < 0.1
    np.testing.assert_allclose(Preprocess().apply(image * 7 + 50), clean, atol=1e-3)


def test_pixels_become_square() -> None:
    circle = np.hypot(*np.meshgrid(np.linspace(-1, 1, 100), np.linspace(-1, 1, 200))) < 0.5
    image = circle.astype(np.float32) * np.float32(1000)
    result = Preprocess(size=64, mean=0, std=1).apply(image, spacing_mm=(0.1, 0.2))[0]
    assert abs(int((result.max(axis=0) > 0.5).sum()) - int((result.max(axis=1) > 0.5).sum())) <= 1
    assert Preprocess(size=64).fitted_box((200, 100)) == (0, 16, 64, 32)
    assert Preprocess(size=64).fitted_box((200, 100), spacing_mm=(0.1, 0.2)) == (0, 0, 64, 64)


def test_padding_is_as_dark_as_air() -> None:
    result = Preprocess(size=64, mean=0.5, std=0.25).apply(random_image(64, 32))[0]
    assert (result[:, :16] == -2.0).all() and (result[:, 48:] == -2.0).all()


def test_three_equal_channels() -> None:
    result = Preprocess(channels=3, size=32).apply(random_image(40, 40))
    assert result.shape == (3, 32, 32) and (result[0] == result[2]).all()


def test_large_image_uses_the_documented_sample() -> None:
    image = random_image(1100, 700)  # stride 2 leaves 550 x 350, the limit is 512 x 512
    sample = np.sort(image[::2, ::2].ravel())
    low, high = (sample[math.floor(q / 100 * (sample.size - 1))] for q in (0.5, 99.5))
    clipped = triangle_resize(np.clip(image, low, high), 192, 122)
    result = Preprocess(mean=0, std=1).apply(image)[0, :, 35:157]
    np.testing.assert_allclose(result, (clipped - low) / (high - low), atol=2e-5)


def test_input_is_left_alone() -> None:
    image = random_image(64, 64)
    before = image.copy()
    Preprocess(size=32).apply(image)
    assert (image == before).all()


@pytest.mark.parametrize(
    ("image", "code"),
    [
        (np.zeros((64, 64), np.float32), "blank"),
        (np.zeros((64, 64, 3), np.float32), "bad_array"),
        (np.zeros((1, 64), np.float32), "bad_array"),
        (np.full((64, 64), np.nan, np.float32), "bad_array"),
    ],
)
def test_refuses_what_is_no_image(image: NDArray[np.float32], code: str) -> None:
    with pytest.raises(InputError) as caught:
        Preprocess().apply(image)
    assert caught.value.code == code


def test_one_nan_is_not_averaged_away() -> None:
    image = random_image(300, 300)
    image[150, 150] = np.nan
    with pytest.raises(InputError, match="no numbers"):
        Preprocess().apply(image)


@pytest.mark.parametrize("spacing", [(0.0, 0.1), (-1.0, 1.0), (math.nan, 1.0), (math.inf, 1.0)])
def test_refuses_a_senseless_spacing(spacing: tuple[float, float]) -> None:
    with pytest.raises(InputError) as caught:
        Preprocess().apply(random_image(64, 64), spacing_mm=spacing)
    assert caught.value.code == "bad_spacing"


def test_manifest_round_trip() -> None:
    preprocess = Preprocess(size=224, channels=3, lower_percentile=1, resample="box")
    assert Preprocess.from_manifest(json.loads(json.dumps(preprocess.to_manifest()))) == preprocess


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"gamma": 1.0}, "unknown: \\['gamma'\\]"),
        ({"size": "192"}, "preprocess.size must be of type int, got str"),
        ({"size": True}, "preprocess.size"),
        ({"size": 0}, "size must be"),
        ({"channels": 2}, "channels"),
        ({"std": 0}, "std must be above 0"),
        ({"lower_percentile": 99.9}, "percentiles must rise"),
        ({"resample": "lanczos"}, "resample"),
        ({"padding": "reflect"}, "padding"),
    ],
)
def test_manifest_is_strict(change: dict[str, object], match: str) -> None:
    with pytest.raises(BundleError, match=match):
        Preprocess.from_manifest(Preprocess().to_manifest() | change)


@pytest.mark.parametrize("name", sorted(Preprocess().to_manifest()))
def test_manifest_needs_every_key(name: str) -> None:
    values = Preprocess().to_manifest()
    del values[name]
    with pytest.raises(BundleError, match=name):
        Preprocess.from_manifest(values)
