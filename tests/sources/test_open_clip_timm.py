"""timm image towers of open_clip: pooled and projected as there, to 1e-5."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("open_clip", reason="the extra 'open_clip' is not installed")
pytest.importorskip("timm", reason="the extra 'timm' is not installed")

from foreign import randomise, seeded
from open_clip.loss import SigLipLoss
from open_clip.timm_model import TimmModel
from open_clips import TEXT, Original, pixels, tokens_of

from velm.model.model import build_projection
from velm.registry import image_encoders
from velm.sources.open_clip_images import image_tower
from velm.sources.state_dict import StateDict

TOWERS = {  # a vision_cfg, and the width of the joint space
    "SigLIP": ({"timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "none"}, 96),
    "EVA": ({"timm_model_name": "test_vit", "timm_pool": "token", "timm_proj": None}, 24),
    "MobileCLIP": ({"timm_model_name": "test_byobnet", "timm_pool": "avg", "timm_proj": None}, 24),
    "ConvNeXt": (
        {"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "linear", "timm_drop_path": 0.1},
        24,
    ),
    "ConvNeXt-d": ({"timm_model_name": "test_convnext", "timm_pool": "", "timm_proj": "mlp"}, 24),
    "gap": ({"timm_model_name": "test_vit4", "timm_pool": "", "timm_proj": "linear", "timm_proj_bias": True}, 24),
    "defaults": ({"timm_model_name": "test_resnet"}, 24),
}


class Both:
    """A timm tower of open_clip with random weights, and the encoder and projection that VELM makes of it."""

    def __init__(self, vision, embed_dim):
        names = {"timm_pool": "pool", "timm_proj": "proj", "timm_proj_bias": "proj_bias", "timm_drop_path": "drop_path"}
        options = {names[name]: value for name, value in vision.items() if name in names}
        with seeded():
            self.theirs = randomise(TimmModel(vision["timm_model_name"], embed_dim, **options))
        tower = image_tower(vision, embed_dim, quick=False)
        self.encoder = image_encoders.build(tower.config).eval()
        self.projection = build_projection("image", tower.projection, self.encoder.dim, embed_dim)
        state = StateDict({f"visual.{name}": tensor for name, tensor in self.theirs.state_dict().items()}, "here")
        weights = tower.weights(state, 0)
        state.finish()
        for name, module in {"image_encoder": self.encoder, "image_projection": self.projection}.items():
            prefix = f"model.{name}."
            module.load_state_dict({n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)})

    def embed(self, images):
        output = self.encoder(images)
        assert output.features.shape == (len(images), output.grid[0] * output.grid[1], self.encoder.dim)
        return self.projection(output.pooled)


@pytest.mark.parametrize(("vision", "embed_dim"), TOWERS.values(), ids=TOWERS)
@torch.no_grad()
def test_pooled_and_projected_as_in_open_clip(vision, embed_dim):
    both, images = Both(vision, embed_dim), pixels(160, 2)
    expected = both.theirs(images)
    assert (both.embed(images) - expected).abs().max() < 1e-5 * expected.abs().max()


@torch.no_grad()
def test_another_image_size_resizes_positions_as_open_clip():
    both, images = Both(*TOWERS["EVA"]), pixels(96, 2)
    both.theirs.set_input_size(96)
    torch.testing.assert_close(both.embed(images), both.theirs(images), atol=1e-5, rtol=1e-5)


def test_siglip_loss_and_gradients(tmp_path):
    vision, embed_dim = TOWERS["SigLIP"]
    top = {"embed_dim": embed_dim, "init_logit_bias": -10.0, "custom_text": True}
    original = Original(tmp_path, {**top, "vision_cfg": {**vision, "image_size": 160}, "text_cfg": TEXT})
    imported, images = original.load(), pixels(160)
    image, text = original.model.encode_image(images, True), original.model.encode_text(tokens_of(original), True)
    for ours, theirs in zip(imported.embeds(images), (image, text), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), atol=1e-5, rtol=0)
    loss = SigLipLoss()(image, text, original.model.logit_scale.exp(), original.model.logit_bias)
    loss.backward()
    torch.testing.assert_close(imported.loss(images)["sigmoid"], loss, atol=1e-5, rtol=0)
    assert imported.largest_difference(original.gradients(imported.tokenizer.vocab_size)) < 1e-5
    assert imported.model.image_encoder.image_mean == (0.48, 0.45, 0.41)


def test_images_that_are_no_multiple_of_a_patch_lose_the_rest(monkeypatch):
    """SigLIP's 384 pixels are 27.4 patches of 14; timm cuts the rest off."""
    import timm

    from velm.encoders.timm import TimmEncoder

    size = {"img_size": 38, "patch_size": 16}
    create = timm.create_model
    original = create("test_vit3", num_classes=0, **size).eval()
    original.pretrained_cfg = {**original.pretrained_cfg, "input_size": (3, 38, 38)}

    def model(name, **options):
        built = create(name, **options, **size)
        built.pretrained_cfg = original.pretrained_cfg
        return built

    monkeypatch.setattr(timm, "create_model", model)
    encoder = TimmEncoder(model_name="test_vit3", pooling="own").eval()
    encoder.model.load_state_dict(original.state_dict())
    images = pixels(38, 2)
    torch.testing.assert_close(encoder(images).pooled, original(images), atol=1e-5, rtol=0)
    assert encoder(images).grid == (2, 2)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({"timm_model_name": "test_resnet", "timm_pool": "rot_attn", "timm_proj": ""}, "timm_pool is 'rot_attn'"),
        ({"timm_model_name": "test_resnet", "timm_pool": "abs_attn", "timm_proj": ""}, "timm_pool is 'abs_attn'"),
        ({"timm_model_name": "naflexvit_base_patch16_siglip"}, "NaFlex"),
        ({"timm_model_name": "test_resnet", "timm_drop": 0.5}, "timm_drop is 0.5"),
        ({"timm_model_name": "test_vit", "patch_dropout": 0.5}, "patch_dropout is 0.5"),
        ({"timm_model_name": "test_resnet", "timm_proj": "mlp", "timm_proj_bias": True}, "MLP with a bias"),
        ({"timm_model_name": "test_resnet", "timm_new": 1}, "timm_new = 1"),
    ],
)
def test_what_velm_lacks_is_named(vision, message):
    with pytest.raises(ValueError, match=message):
        image_tower(vision, 24, quick=False)


def test_weights_of_another_pooling_do_not_load():
    """timm moves the last norm behind the mean in a model built with one; open_clip adds the mean to the built one."""
    with pytest.raises(RuntimeError, match="fc_norm"):
        Both({"timm_model_name": "test_vit", "timm_pool": "avg"}, 24)
