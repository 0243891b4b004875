import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

from trrg_sdk.errors import UsageError
from trrg_train.models.config import ModelConfig
from trrg_train.models.vision import VisionEncoder, moved


@pytest.mark.parametrize(
    ("vision", "grid"),
    [
        ({"model_type": "vit", "image_size": 32, "patch_size": 16, "num_channels": 1, "hidden_size": 16,
          "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}, [2, 2]),
        ({"model_type": "swin", "image_size": 32, "patch_size": 4, "num_channels": 1, "embed_dim": 8,
          "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}, [4, 4]),
        ({"model_type": "convnext", "num_channels": 1, "hidden_sizes": [8, 16], "depths": [1, 1],
          "num_stages": 2, "patch_size": 4}, [4, 4]),
    ],
    ids=["vit", "swin", "convnext"],
)  # fmt: skip
def test_any_backbone_gives_patches(tiny_model_table, vision, grid):
    config = ModelConfig.from_mapping({**tiny_model_table, "image_size": 32, "vision": vision, "patch_grid": grid})
    encoder = VisionEncoder(config).eval()
    assert encoder(torch.randn(2, 1, 32, 32)).shape == (2, config.patches, encoder.width)


def test_moved_images_are_the_image_and_its_four_neighbours():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    still, up, down, left, right = (view[0, 0] for view in moved(image, 1))
    assert torch.equal(still, image[0, 0])
    assert torch.equal(up[:3], still[1:]) and torch.equal(up[3], still[3]), "the last row is repeated"
    assert torch.equal(down[1:], still[:3]) and torch.equal(down[0], still[0])
    assert torch.equal(left[:, :3], still[:, 1:]) and torch.equal(left[:, 3], still[:, 3])
    assert torch.equal(right[:, 1:], still[:, :3]) and torch.equal(right[:, 0], still[:, 0])


def test_patches_are_means_over_moved_images_but_while_training(tiny_model_table):
    plain = VisionEncoder(ModelConfig.from_mapping(tiny_model_table)).eval()
    encoder = VisionEncoder(ModelConfig.from_mapping({**tiny_model_table, "shift": 5})).eval()
    encoder.load_state_dict(plain.state_dict())
    image = torch.randn(3, 1, 64, 64)
    expected = torch.stack([plain(view) for view in moved(image, 5)]).mean(dim=0)
    assert torch.allclose(encoder(image), expected, atol=1e-5)
    assert not torch.allclose(encoder(image), plain(image), atol=1e-3)
    assert torch.allclose(encoder.train()(image), plain.train()(image), atol=1e-5)


@pytest.mark.parametrize("shift", [-1, 64])
def test_a_shift_that_leaves_nothing_of_the_image_is_refused(tiny_model_table, shift):
    with pytest.raises(UsageError, match=rf"shift = {shift}: expected 0 to 63 pixels"):
        ModelConfig.from_mapping({**tiny_model_table, "shift": shift})
