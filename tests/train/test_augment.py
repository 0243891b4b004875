import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_train.augment import augment


def test_it_is_deterministic_and_never_mirrors():
    pixels = torch.full((16, 1, 64, 64), -2.0)
    pixels[:, :, 10:54, 44:60] = 2.0  # bright on the image's right, the patient's left
    one = augment(pixels, torch.Generator().manual_seed(3))
    two = augment(pixels, torch.Generator().manual_seed(3))
    assert torch.equal(one, two)
    assert one.shape == pixels.shape
    assert torch.isfinite(one).all()
    assert (one[..., 32:].mean((1, 2, 3)) > one[..., :32].mean((1, 2, 3)) + 0.5).all()
    assert not torch.allclose(one[0], one[1], atol=0.05)
