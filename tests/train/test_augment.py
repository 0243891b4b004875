import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_train.augment import augment


def generators(count, first=0):
    return [torch.Generator().manual_seed(first + i) for i in range(count)]


def sided(count):
    pixels = torch.full((count, 1, 64, 64), -2.0)
    pixels[:, :, 10:54, 44:60] = 2.0  # bright on the image's right, the patient's left
    return pixels


def test_it_is_deterministic_and_never_mirrors():
    pixels = sided(16)
    one, two = augment(pixels, generators(16)), augment(pixels, generators(16))
    assert torch.equal(one, two)
    assert one.shape == pixels.shape
    assert torch.isfinite(one).all()
    assert (one[..., 32:].mean((1, 2, 3)) > one[..., :32].mean((1, 2, 3)) + 0.5).all()
    assert not torch.allclose(one[0], one[1], atol=0.05)


def test_an_image_is_changed_alike_in_whatever_batch_it_lands():
    pixels = sided(4)
    whole = augment(pixels, generators(4))
    halves = [augment(pixels[i : i + 2], generators(2, first=i)) for i in (0, 2)]
    assert torch.equal(whole, torch.cat(halves))


def test_strength_widens_the_ranges_image_by_image():
    pixels = sided(2)
    plain = augment(pixels, generators(2))
    mixed = augment(pixels, generators(2), strength=[1.0, 3.0])
    assert torch.equal(plain[0], mixed[0])
    changes = [(image - pixels[1]).abs().mean() for image in (plain[1], mixed[1])]
    assert changes[1] > 1.5 * changes[0]
    still = augment(pixels, generators(2), strength=[0.0, 0.0])
    assert torch.allclose(still, pixels, atol=1e-4)


def test_a_quarter_of_the_images_stays_where_it_is():
    """What was one brightness everywhere still is, but for grain; a moved image has another part's brightness there."""
    pixels = sided(400)
    made = augment(pixels, generators(400))
    bright, dark = (made[:, pixels[0] == value] for value in (2.0, -2.0))  # (400, P)
    contrast = bright.median(1).values - dark.median(1).values
    unmoved = torch.maximum(bright.std(1), dark.std(1)) < 0.05 * contrast
    assert 0.2 < unmoved.float().mean() < 0.3
