"""The model is two encoders, two projections and perhaps a decoder: what is computed, shifted, built, refused."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from velm.decoders.base import Decoder, DecoderState
from velm.decoders.transformer import TransformerDecoder
from velm.encoders.base import ImageEncoder, TextEncoder
from velm.errors import ConfigError, MissingOutputError, PipelineError
from velm.model import ALL_OUTPUTS, VisionLanguageModel, build_model
from velm.model.build import needs_of
from velm.outputs import IGNORE, Batch, EncoderOutput

VOCAB = 12
CONFIG: dict[str, Any] = {
    "image_encoder": {"name": "cnn", "dim": 8, "widths": [4]},
    "text_encoder": {"name": "rnn", "dim": 6},
    "decoder": {"name": "transformer", "dim": 8, "depth": 1, "heads": 2},
    "embed_dim": 5,
    "vocab_size": VOCAB,
}
JOINT = {"contrastive": {}, "captioning": {"weight": 2.0}}


class Pixels(ImageEncoder):
    """Hands the pixels on as it got them: (B, H * W, 3)."""

    def __init__(self, *, pad_to: int = 0) -> None:
        super().__init__()
        self.dim, self.pad_to, self.seen = 3, pad_to, 0

    def forward(self, images: Tensor) -> EncoderOutput:
        self.seen += 1
        features = images.flatten(2).transpose(1, 2)
        return EncoderOutput(features, features.mean(1), grid=(images.shape[2], images.shape[3]))


class Ids(TextEncoder):
    """A token's vector is its id, four times."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.seen = 4, 0

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        self.seen += 1
        features = tokens[..., None].float().expand(-1, -1, 4)
        return EncoderOutput(features, features.sum(1), mask)


class Parrot(Decoder):
    """Keeps what it is fed and what it may look at; its hidden state is the token's id."""

    def __init__(self, *, memory_dim: int, vocab_size: int = VOCAB) -> None:
        super().__init__()
        self.memory_dim, self.output_projection = memory_dim, nn.Linear(1, vocab_size)
        self.fed: list[tuple[Tensor, Tensor, Tensor | None]] = []

    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        self.fed.append((tokens, memory, memory_mask))
        return tokens[..., None].float()

    def start(self, memory: Tensor, memory_mask: Tensor | None = None) -> DecoderState:
        raise NotImplementedError

    def step(self, token: Tensor, state: DecoderState) -> tuple[Tensor, DecoderState]:
        raise NotImplementedError


class Widthless(Pixels):
    """Forgets to say its width."""

    def __init__(self) -> None:
        super().__init__()
        del self.dim


@pytest.fixture
def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=generator)
    tokens = torch.tensor([[1, 4, 5, 6, 2], [1, 7, 2, 0, 0], [1, 8, 9, 2, 0]])
    return Batch(images=images, tokens=tokens, mask=tokens != 0, image_ids=torch.arange(3))


def parts(*memory: str) -> VisionLanguageModel:
    width = max({"image": 3, "text": 4}[source] for source in memory)
    decoder = Parrot(memory_dim=width)
    return VisionLanguageModel(
        image_encoder=Pixels(), text_encoder=Ids(), decoder=decoder, embed_dim=5, memory=memory
    )  # fmt: skip


def build(**changes: Any) -> VisionLanguageModel:
    torch.manual_seed(0)
    return build_model({**CONFIG, **changes}).eval()


# --- the shift


def test_the_decoder_is_fed_all_but_the_last_and_predicts_all_but_the_first(batch: Batch) -> None:
    model = parts("image")
    output = model(batch)
    [(fed, _, _)] = model.decoder.fed
    assert fed.tolist() == [[1, 4, 5, 6], [1, 7, 0, 0], [1, 8, 9, 0]]  # nothing follows eos: it is not fed
    assert output.labels.tolist() == [[4, 5, 6, 2], [7, 2, IGNORE, IGNORE], [8, 9, 2, IGNORE]]
    assert output.output_projection is model.decoder.output_projection


def test_a_target_is_what_is_written_where_there_is_one(batch: Batch) -> None:
    model = parts("image", "text")
    target = torch.tensor([[1, 3, 2], [1, 9, 2], [1, 2, 0]])
    output = model(
        replace(batch, target_tokens=target, target_mask=torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]]) > 0)
    )
    assert model.decoder.fed[0][0].tolist() == [[1, 3], [1, 9], [1, 0]]
    assert output.labels.tolist() == [[3, 2], [9, 2], [2, IGNORE]]
    assert torch.equal(output.text.features[..., 0].long(), batch.tokens)  # the source is read whole


def test_a_token_of_the_pad_id_inside_the_mask_is_still_a_label(batch: Batch) -> None:
    """The mask says where there is content, no id does."""
    labels = parts("image")(replace(batch, mask=torch.ones_like(batch.mask))).labels
    assert torch.equal(labels, batch.tokens[:, 1:])


# --- what is computed


@pytest.mark.parametrize(
    ("losses", "images_seen", "texts_seen", "writes"),
    [
        (["contrastive"], 1, 1, False),
        (["sigmoid"], 1, 1, False),
        (["triplet"], 1, 1, False),
        (["captioning"], 1, 0, True),
        (["contrastive", "captioning"], 1, 1, True),
    ],
)
def test_only_what_the_losses_need_is_computed(
    batch: Batch, losses: list[str], images_seen: int, texts_seen: int, writes: bool
) -> None:
    model = parts("image")
    output = model(batch, needs_of({key: {} for key in losses}))
    assert (model.image_encoder.seen, model.text_encoder.seen) == (images_seen, texts_seen)
    assert (output.prediction is not None) == (len(model.decoder.fed) == 1) == writes
    assert (output.embeddings is not None) == (losses != ["captioning"])


def test_everything_is_computed_when_nothing_is_said(batch: Batch) -> None:
    output = parts("image")(batch)
    assert needs_of({"contrastive": {}, "captioning": {}}) == ALL_OUTPUTS
    assert output.image_embeds.shape == output.text_embeds.shape == (3, 5)
    for embeds in (output.image_embeds, output.text_embeds):
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3))


def test_each_encoder_runs_once_for_alignment_and_memory_together(batch: Batch) -> None:
    model = parts("image", "text")
    model(batch)
    assert (model.image_encoder.seen, model.text_encoder.seen) == (1, 1)


def test_captions_of_one_image_share_its_encoding(batch: Batch) -> None:
    """Images 0 and 1, shown by samples 0, 0 and 1: the same as an image a sample, encoded two in place of three."""
    model, rows = build().eval(), torch.tensor([0, 0, 1])
    seen: list[int] = []
    model.image_encoder.register_forward_hook(lambda module, args, output: seen.append(len(args[0])))
    repeated = model(replace(batch, images=batch.images[rows]))
    shared = model(replace(batch, images=batch.images[:2], image_rows=rows))
    assert seen == [3, 2]
    torch.testing.assert_close(shared.image_embeds, repeated.image_embeds)
    torch.testing.assert_close(shared.decoder.hidden, repeated.decoder.hidden)
    assert torch.equal(shared.labels, repeated.labels)


def test_dropout_before_the_joint_space_is_for_training_only(batch: Batch) -> None:
    model = build(embed_dropout=0.5)
    dropped = [model.train()(batch).image_embeds for _ in range(2)]
    assert not torch.equal(*dropped)
    kept = [model.eval()(batch) for _ in range(2)]
    assert torch.equal(kept[0].image_embeds, kept[1].image_embeds)
    torch.testing.assert_close(kept[0].text_embeds, build().eval()(batch).text_embeds)  # no weights of its own


def test_a_batch_without_images_still_gives_the_rest(batch: Batch) -> None:
    output = parts("text")(replace(batch, images=None))
    assert output.embeddings is None
    assert output.decoder.hidden.shape == (3, 4, 1)


# --- memory


def test_one_source_is_handed_over_as_it_is(batch: Batch) -> None:
    model = parts("text")
    model(batch, {"decoder"})
    [(_, memory, mask)] = model.decoder.fed
    assert torch.equal(memory[..., 0].long(), batch.tokens)
    assert torch.equal(mask, batch.mask)
    model = parts("image")
    model(batch, {"decoder"})
    assert model.decoder.fed[0][1].shape == (3, 256, 3)
    assert model.decoder.fed[0][2] is None
    assert not hasattr(model, "memory_projections")


@pytest.mark.parametrize("order", [("image", "text"), ("text", "image")])
def test_two_sources_are_projected_to_one_width_and_stand_side_by_side(batch: Batch, order: tuple[str, ...]) -> None:
    model = parts(*order)
    output = model(batch, {"decoder"})
    [(_, memory, mask)] = model.decoder.fed
    assert memory.shape == (3, 256 + 5, 3)  # of 4 and 3 the narrower
    features = {"image": output.image.features, "text": output.text.features}
    masks = {"image": torch.ones(3, 256, dtype=torch.bool), "text": batch.mask}
    expected = [model.memory_projections[source](features[source]) for source in order]
    torch.testing.assert_close(memory, torch.cat(expected, 1))
    assert torch.equal(mask, torch.cat([masks[source] for source in order], 1))


def test_a_source_that_the_batch_lacks_is_an_error(batch: Batch) -> None:
    with pytest.raises(ValueError, match=r"attends over \('image', 'text'\); the batch has \['text'\]"):
        parts("image", "text")(replace(batch, images=None), {"decoder"})


# --- pixels


def test_bytes_are_normalised_to_what_floats_would_be(batch: Batch) -> None:
    model = parts("image")
    mean, std = torch.tensor(model.image_encoder.image_mean), torch.tensor(model.image_encoder.image_std)
    floats = (batch.images.float() / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(model.encode_image(batch.images).features, model.encode_image(floats).features)
    black = model.encode_image(torch.zeros(1, 3, 1, 1, dtype=torch.uint8)).pooled
    torch.testing.assert_close(black, torch.tensor([[-0.485 / 0.229, -0.456 / 0.224, -0.406 / 0.225]]))


def test_an_encoder_states_its_own_normalisation(batch: Batch) -> None:
    encoder = Pixels()
    encoder.image_mean, encoder.image_std = (0.5, 0.5, 0.5), (0.25, 0.5, 1.0)
    model = VisionLanguageModel(image_encoder=encoder, text_encoder=None)
    white = model.encode_image(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8)).pooled
    torch.testing.assert_close(white, torch.tensor([[2.0, 1.0, 0.5]]))
    assert not [name for name in model.state_dict() if name.startswith("image_")]  # stated by the encoder, not stored


# --- laws of the whole


@pytest.mark.parametrize("memory", [["image"], ["text"], ["image", "text"]])
def test_padding_of_the_batch_changes_nothing(batch: Batch, memory: list[str]) -> None:
    model = build(memory=memory)
    pad = (0, 3)
    wide = replace(batch, tokens=nn.functional.pad(batch.tokens, pad), mask=nn.functional.pad(batch.mask, pad))
    narrow_output, wide_output = model(batch), model(wide)
    torch.testing.assert_close(narrow_output.image_embeds, wide_output.image_embeds)
    torch.testing.assert_close(narrow_output.text_embeds, wide_output.text_embeds)
    content = narrow_output.labels != IGNORE
    assert (wide_output.labels[:, content.shape[1] :] == IGNORE).all()
    hidden = wide_output.decoder.hidden[:, : content.shape[1]]
    torch.testing.assert_close(narrow_output.decoder.hidden[content], hidden[content], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("memory", [["image"], ["image", "text"]])
def test_a_batch_of_one_is_a_row_of_the_batch(batch: Batch, memory: list[str]) -> None:
    model = build(memory=memory)
    whole, one = model(batch), model(batch[:1])
    torch.testing.assert_close(one.image_embeds, whole.image_embeds[:1])
    torch.testing.assert_close(one.text_embeds, whole.text_embeds[:1])
    torch.testing.assert_close(one.decoder.hidden, whole.decoder.hidden[:1], rtol=1e-4, atol=1e-5)
    assert torch.equal(one.labels, whole.labels[:1])


def test_it_runs_in_double_precision(batch: Batch) -> None:
    output = build(memory=["image", "text"]).double()(batch)
    assert {output.image_embeds.dtype, output.text_embeds.dtype, output.decoder.hidden.dtype} == {torch.float64}


def test_embeddings_of_half_precision_are_normalised_in_single(batch: Batch) -> None:
    model = build().bfloat16()
    assert model.embed_image(model.encode_image(batch.images)).dtype == torch.float32


# --- building


def test_the_builder_hands_over_what_the_parts_want() -> None:
    model = build(text_encoder={"name": "rnn", "dim": 10}, memory=["image", "text"], pad_id=3)
    assert model.text_encoder.embedding.weight.shape == (VOCAB, 10)
    assert model.text_encoder.embedding.padding_idx == 3
    assert model.decoder.output_projection.out_features == VOCAB
    assert {name: tuple(p.weight.shape) for name, p in model.memory_projections.items()} == {
        "image": (8, 8), "text": (8, 10)
    }  # fmt: skip
    assert build(embed_dim=None).image_projection.out_features == 256
    wide = build(memory=None, decoder={"name": Parrot}).decoder
    assert wide.memory_dim == 8


GATED = {"name": "transformer", "dim": 8, "depth": 2, "heads": 2, "image_gate": True}


@pytest.mark.parametrize("memory", [["image", "text"], ["text", "image"]])
def test_a_new_image_gate_leaves_the_model_without_the_image(memory: list[str], batch: Batch) -> None:
    """Flamingo starts from a language model; here from the model of the text, its encoder included."""
    gated = build(memory=memory, decoder=GATED)
    plain = build(memory=["text"], decoder={**GATED, "image_gate": False})
    missing, added = plain.load_state_dict(gated.state_dict(), strict=False)
    assert not missing
    assert {key.split(".")[0] for key in added} == {"memory_projections", "decoder"}
    expected = plain(batch, needs={"decoder"}).prediction
    torch.testing.assert_close(gated(batch, needs={"decoder"}).prediction.decoder.hidden, expected.decoder.hidden)
    for block in gated.decoder.blocks:
        torch.nn.init.constant_(block.image.alpha, 1.0)
    assert not torch.allclose(gated(batch, needs={"decoder"}).prediction.decoder.hidden, expected.decoder.hidden)


def test_the_image_meets_a_gate_at_the_width_of_the_text(batch: Batch) -> None:
    model = build(memory=["image", "text"], decoder=GATED, image_encoder={"name": "cnn", "dim": 4, "widths": [4]})
    assert {name: tuple(p.weight.shape) for name, p in model.memory_projections.items()} == {"image": (6, 4)}
    output = model(batch)
    memory, mask = model.memory(output.image, output.text)
    marks = memory[..., -1]
    positions = output.image.features.shape[1]
    assert marks[:, :positions].eq(1).all()
    assert marks[:, positions:].eq(0).all()
    assert torch.equal(mask[:, positions:], batch.mask)
    torch.testing.assert_close(memory[:, positions:, :-1], output.text.features)


class GatedByDefault(TransformerDecoder):
    def __init__(self, *, vocab_size: int, memory_dim: int, image_gate: bool = True) -> None:
        super().__init__(vocab_size=vocab_size, memory_dim=memory_dim, dim=8, depth=1, heads=2, image_gate=image_gate)


@pytest.mark.parametrize("options", [{}, {"image_gate": False}])
def test_the_gate_of_a_plugin_may_be_its_default(options: dict[str, bool], batch: Batch) -> None:
    decoder = {"name": GatedByDefault, **options}
    model = build(memory=["image", "text"], decoder=decoder, image_encoder={"name": "cnn", "dim": 4, "widths": [4]})
    assert model.decoder.image_gate == (not options)
    assert list(model.memory_projections) == (["image", "text"] if options else ["image"])
    assert torch.isfinite(model(batch, needs={"decoder"}).prediction.decoder.hidden).all()


@pytest.mark.parametrize("memory", [["image"], ["text"]])
def test_a_gate_needs_image_and_text(memory: list[str]) -> None:
    with pytest.raises(
        ConfigError, match=rf"image_gate adds the image .* \['{memory[0]}'\] has one .*image_gate: false"
    ):
        build(memory=memory, decoder=GATED)
    with pytest.raises(ConfigError, match="has one of them"):
        VisionLanguageModel(
            image_encoder=Pixels(),
            text_encoder=Ids(),
            decoder=build(memory=["image", "text"], decoder=GATED).decoder,
            memory=memory,
        )


@pytest.mark.parametrize(
    ("losses", "memory", "left_out"),
    [
        ({"contrastive": {}}, ["image"], ["decoder"]),
        ({"captioning": {}}, ["image"], ["text_encoder"]),
        ({"captioning": {}}, ["text"], ["image_encoder"]),
        ({"captioning": {}}, ["image", "text"], []),
        (JOINT, ["image"], []),
        (None, ["image"], []),
    ],
)
def test_a_part_that_no_loss_trains_is_left_out_with_a_warning(
    losses: dict[str, Any] | None, memory: list[str], left_out: list[str]
) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = build(losses=losses, memory=memory)
    absent = [part for part in ("image_encoder", "text_encoder", "decoder") if getattr(model, part) is None]
    assert absent == left_out
    said = [str(w.message) for w in caught if "left out" in str(w.message)]
    assert said == [f"The {part} is left out: none of the losses {list(losses or ())} trains it." for part in left_out]
    assert model.aligned == (not {"image_encoder", "text_encoder"} & set(left_out)) == hasattr(model, "text_projection")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"embed_dims": 3},
            "The model has no option 'embed_dims'. Did you mean 'embed_dim'? Its options: image_encoder, ",
        ),
        ({"qqq": 3}, "The model has no option 'qqq'. Its options: "),
        ({"memory": ["sound"]}, "memory lists 'image', 'text' or both; got ['sound']."),
        ({"memory": ["text", "text"]}, "memory lists 'image', 'text' or both; got ['text', 'text']."),
        ({"image_encoder": None}, "memory lists 'image', but the model has no image_encoder."),
        (
            {"text_encoder": None, "memory": ["image", "text"]},
            "memory lists 'text', but the model has no text_encoder.",
        ),
        (
            {"image_encoder": None, "text_encoder": None, "decoder": None},
            "The model has no encoder: give image_encoder, text_encoder or both.",
        ),
        (
            {"decoder": None, "losses": JOINT},
            "The loss 'captioning' needs a decoder, and the model has none: add `decoder: {name: transformer}` under "
            "`model:`, or take 'captioning' out of `losses:` for alignment only.",
        ),
        (
            {"text_encoder": None, "losses": JOINT},
            "The loss 'contrastive' aligns images and texts: give both image_encoder and text_encoder, or take "
            "'contrastive' out of `losses:` for captioning only.",
        ),
        (
            {"image_encoder": {"name": Widthless}},
            "The image encoder Widthless must set self.dim, its width, to an int.",
        ),
        ({"image_encoder": {"name": "cnn", "dims": 8}}, "has no option 'dims'. Did you mean 'dim'?"),
        ({"vocab_size": None}, "The text encoder 'rnn' needs vocab_size."),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        build(**changes)
    assert says in str(error.value)


def test_what_was_not_computed_is_named(batch: Batch) -> None:
    output = parts("image")(batch, ())
    with pytest.raises(MissingOutputError, match=r"no image_embeds: they need an image_encoder and a text_encoder"):
        _ = output.image_embeds
    with pytest.raises(MissingOutputError, match=r"no labels: it needs a decoder"):
        _ = output.labels


def test_images_of_a_size_that_the_encoder_does_not_take_are_refused() -> None:
    vit = {"name": "vit", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8}
    with pytest.raises(PipelineError, match=r"50 x 50 pixels cannot be cut .* The option is image_size"):
        build(image_encoder=vit).encode_image(torch.zeros(1, 3, 50, 50, dtype=torch.uint8))


def test_a_part_that_the_model_lacks_is_named(batch: Batch) -> None:
    model = parts("image")
    model.image_encoder = model.text_encoder = model.decoder = None
    with pytest.raises(PipelineError, match="no image_encoder: give it one under `model:`"):
        model.encode_image(batch.images)
    with pytest.raises(PipelineError, match="no text_encoder: give it one under `model:`"):
        model.encode_text(batch.tokens, batch.mask)
    with pytest.raises(PipelineError, match="no decoder: give it one under `model:`"):
        model._decoder()
