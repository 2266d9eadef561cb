"""An image size that an encoder cannot read is refused before any image is."""

from __future__ import annotations

import pytest
import torch

from velm import registry
from velm.encoders.base import ImageEncoder
from velm.encoders.image_size import require_image_size
from velm.errors import ConfigError


@pytest.mark.parametrize(
    ("config", "package", "good", "bad"),
    [
        ({"name": "vit", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8}, "torch", 64, 50),
        ({"name": "torchvision/squeezenet1_1"}, "torchvision", 50, 3),
        ({"name": "timm/vit_tiny_patch16_224", "weights": None}, "timm", 64, 50),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_a_size_that_cannot_be_read_is_told_with_its_option(config: dict, package: str, good: int, bad: int) -> None:
    pytest.importorskip(package)
    encoder = registry.image_encoders.build(config).train()
    state = {name: value.clone() for name, value in encoder.state_dict().items()}
    require_image_size(encoder, good, "data.image_size")
    with pytest.raises(ConfigError, match=f"cannot read images of {bad} x {bad} pixels, the size that data.image_size"):
        require_image_size(encoder, bad, "data.image_size")
    assert encoder.training
    assert all(torch.equal(value, state[name]) for name, value in encoder.state_dict().items())


def test_of_a_plugin_a_value_error_is_a_refusal_and_all_else_a_bug() -> None:
    class Own(ImageEncoder):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def forward(self, images: torch.Tensor) -> None:  # type: ignore[override]
            raise self.error

    with pytest.raises(ConfigError, match=r"Own cannot read images of 8 x 8 pixels, the size that x sets: only 7\."):
        require_image_size(Own(ValueError("only 7.")), 8, "x")
    with pytest.raises(RuntimeError, match="size mismatch"):
        require_image_size(Own(RuntimeError("size mismatch")), 8, "x")
