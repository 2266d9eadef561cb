"""`text_encoder: decoder`: one pass of the words for alignment and captioning is what two would have been."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from velm import registry
from velm.decoders.base import Decoder
from velm.decoders.transformer import TransformerDecoder
from velm.encoders.base import TextEncoder
from velm.encoders.decoder import DecoderTextEncoder, UnimodalDecoder
from velm.errors import ConfigError
from velm.model import VisionLanguageModel, build_model
from velm.outputs import Batch, EncoderOutput
from velm.training.config import OptimizerConfig
from velm.training.memory.compile import compile_tower
from velm.training.optim import parameter_groups
from velm.training.task import VisionLanguageTask

VOCAB = 20
DECODER = {"name": "transformer", "dim": 16, "depth": 3, "unimodal_depth": 2, "heads": 2}
CONFIG: dict[str, Any] = {
    "image_encoder": {"name": "vit", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8},
    "text_encoder": "decoder",
    "decoder": DECODER,
    "embed_dim": 8,
    "vocab_size": VOCAB,
}
JOINT = {"contrastive": {}, "captioning": {"weight": 2.0, "label_smoothing": 0.1}}


@pytest.fixture
def batch() -> Batch:
    """Sentences of unequal lengths, so that eos stands inside most rows."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8, generator=generator)
    lengths = torch.tensor([9, 7, 4, 2, 6])
    tokens = torch.randint(4, VOCAB, (5, 9), generator=generator)
    tokens[:, 0] = 1
    tokens[torch.arange(5), lengths - 1] = 2
    mask = torch.arange(9) < lengths[:, None]
    return Batch(images=images, tokens=tokens.where(mask, 0), mask=mask, image_ids=torch.arange(5))


def build(**changes: Any) -> VisionLanguageModel:
    torch.manual_seed(0)
    return build_model({**CONFIG, **changes})


def make_task(size: int | None = None, **changes: Any) -> VisionLanguageTask:
    torch.manual_seed(0)
    return VisionLanguageTask(**{**CONFIG, "losses": JOINT, "micro_batch_size": size, **changes})


class Alone:
    """A trainer of one device, as far as a step asks for it."""

    world_size = 1


def step(task: VisionLanguageTask, batch: Batch) -> dict[str, Tensor]:
    """Losses and gradients in float64 and training mode."""
    task.double().train()._trainer = Alone()  # type: ignore[assignment]
    torch.manual_seed(3)
    total, parts = task.compute_losses(batch)
    total.backward()
    return {"total": total.detach(), **parts, **{n: p.grad for n, p in task.named_parameters() if p.grad is not None}}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


def forget_words(model: VisionLanguageModel) -> None:
    """From now on the decoder reads the words by itself, which makes two passes."""
    assert model.text_encoder is not None
    once = model.text_encoder.forward
    model.text_encoder.forward = lambda *inputs: replace(once(*inputs), words=None)  # type: ignore[method-assign]


def count_passes(model: VisionLanguageModel) -> list[int]:
    """How many tokens the lowest block is fed, pass by pass."""
    passes: list[int] = []
    model.decoder.blocks[0].register_forward_hook(lambda _, inputs, __: passes.append(inputs[0].shape[1]))
    return passes


# --- one pass is two


@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("losses", [JOINT, {"sigmoid": {}, "captioning": {}}], ids=["contrastive", "sigmoid"])
def test_losses_and_gradients_are_those_of_two_passes(batch: Batch, losses: dict[str, Any], pooling: str) -> None:
    options = {"losses": losses, "text_encoder": {"name": "decoder", "pooling": pooling}}
    one, two = make_task(**options), make_task(**options)
    forget_words(two.model)
    passes = count_passes(one.model), count_passes(two.model)
    found = step(one, batch)
    assert_same(found, step(two, batch))
    assert [len(each) for each in passes] == [1, 2]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in one.model.text_encoder.parameters())


def test_in_eval_mode_it_is_the_same_and_says_where_it_looked(batch: Batch) -> None:
    one, two = build().double().eval(), build().double().eval()
    forget_words(two)
    found, expected = one(batch), two(batch)
    seen = batch.mask[:, 1:]
    torch.testing.assert_close(found.decoder.hidden[seen], expected.decoder.hidden[seen], rtol=0, atol=1e-10)
    torch.testing.assert_close(found.decoder.attention[seen], expected.decoder.attention[seen], rtol=0, atol=1e-10)
    torch.testing.assert_close(found.text_embeds, expected.text_embeds, rtol=0, atol=0)


def test_another_sentence_to_write_is_read_by_itself(batch: Batch) -> None:
    target = replace(batch, target_tokens=batch.tokens.flip(0), target_mask=batch.mask.flip(0))
    model = build().double().eval()
    passes = count_passes(model)
    found = model(target)
    assert passes == [9, 8]
    image = model.encode_image(batch.images)
    expected = model.decoder(target.target_tokens[:, :-1], image.features)
    seen = target.target_mask[:, 1:]
    torch.testing.assert_close(found.decoder.hidden[seen], expected[seen], rtol=0, atol=1e-10)
    torch.testing.assert_close(found.text_embeds, model(batch).text_embeds)


def test_with_dropout_both_losses_go_on_from_one_draw(batch: Batch) -> None:
    model = build(decoder={**DECODER, "dropout": 0.3}).train()
    drawn: list[Tensor] = []
    handed: list[Tensor] = []
    model.text_encoder.register_forward_hook(lambda _, __, output: drawn.append(output.words))
    model.decoder.blocks[2].register_forward_hook(lambda _, inputs, __: handed.append(inputs[0]))
    model(batch)
    assert torch.equal(handed[0], drawn[0][:, :-1])


def test_pieces_give_the_gradient_of_the_whole(batch: Batch) -> None:
    expected = step(make_task(), batch)
    for size in (1, 2, 3):
        assert_same(step(make_task(size), batch), expected)


def test_blocks_that_are_computed_again_give_the_same(batch: Batch) -> None:
    assert_same(step(make_task(checkpoint_blocks=True), batch), step(make_task(), batch))


@pytest.mark.slow
def test_compiled_towers_give_the_same(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_tower, "__defaults__", ("aot_eager",))
    assert_same(step(make_task(compile=True), batch), step(make_task(), batch))


def test_captioning_alone_leaves_the_text_encoder_out(batch: Batch) -> None:
    with pytest.warns(UserWarning, match="text_encoder is left out"):
        model = build(losses={"captioning": {}})
    passes = count_passes(model)
    assert model(batch).decoder.hidden.shape == (5, 8, 16)
    assert passes == [8]


# --- the encoder by itself


def test_a_sentence_is_pooled_at_eos_and_padding_changes_nothing(batch: Batch) -> None:
    model = build().double().eval()
    text = model.encode_text(batch.tokens, batch.mask)
    for row, length in enumerate(batch.mask.sum(1).tolist()):
        alone = model.encode_text(batch.tokens[row : row + 1, :length], batch.mask[row : row + 1, :length])
        torch.testing.assert_close(text.pooled[row], alone.pooled[0], rtol=0, atol=1e-12)
        expected = model.text_encoder.norm(model.decoder.read_words(batch.tokens[row : row + 1, :length]))[0, -1]
        torch.testing.assert_close(alone.pooled[0], expected, rtol=0, atol=1e-12)


def test_selected_samples_keep_their_words(batch: Batch) -> None:
    text = build().encode_text(batch.tokens, batch.mask)
    assert torch.equal(text.select(torch.tensor([3, 0])).words, text.words[[3, 0]])


# --- weights are there once


def test_weights_are_registered_once_with_the_decoder() -> None:
    task = make_task()
    own = [name for name in task.model.state_dict() if name.startswith("text_encoder.")]
    assert own == ["text_encoder.norm.weight", "text_encoder.norm.bias"]
    parts = {**dict(task.model.named_children()), "losses": task.losses}
    groups = parameter_groups(parts, OptimizerConfig())
    grouped = [id(p) for group in groups for p in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(p) for p in task.parameters()}


def test_a_copy_reads_by_the_decoder_of_the_copy(batch: Batch) -> None:
    model = build().eval()
    other, before = copy.deepcopy(model), model.encode_text(batch.tokens, batch.mask).pooled
    with torch.no_grad():
        other.decoder.embedding.weight.zero_()
    assert torch.equal(model.encode_text(batch.tokens, batch.mask).pooled, before)
    assert not torch.equal(other.encode_text(batch.tokens, batch.mask).pooled, before)


def test_saved_weights_make_the_same_model(batch: Batch) -> None:
    model = build().eval()
    torch.manual_seed(7)
    other = build_model(CONFIG).eval()
    other.load_state_dict(model.state_dict())
    found, expected = other(batch), model(batch)
    assert torch.equal(found.text_embeds, expected.text_embeds)
    assert torch.equal(found.decoder.hidden, expected.decoder.hidden)


def test_each_part_is_frozen_with_its_own_weights() -> None:
    frozen = make_task(freeze=["text_encoder"])
    assert [n for n, p in frozen.model.named_parameters() if not p.requires_grad] == [
        "text_encoder.norm.weight", "text_encoder.norm.bias"
    ]  # fmt: skip
    frozen = make_task(freeze=["decoder"])
    assert {n.split(".")[0] for n, p in frozen.model.named_parameters() if not p.requires_grad} == {"decoder"}


# --- others that share


class Sums(Decoder):
    """A plugin's: h_t = sum of the words up to t, and then the memory's mean."""

    def __init__(self, *, vocab_size: int, memory_dim: int) -> None:
        super().__init__()
        self.words_dim = memory_dim
        self.embedding = nn.Embedding(vocab_size, memory_dim)
        self.output_projection = nn.Linear(memory_dim, vocab_size)
        self.handed = 0

    def read_words(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens).cumsum(1)

    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        return self.read_words(tokens) + memory.mean(1, keepdim=True)

    def decode(self, tokens: Any, memory: Any, memory_mask: Any = None, words: Tensor | None = None) -> Any:
        self.handed += words is not None
        output = super().decode(tokens, memory, memory_mask)
        return output if words is None else replace(output, hidden=words + memory.mean(1, keepdim=True))

    start = step = None  # type: ignore[assignment]


class Halved(TextEncoder):
    """A plugin's text encoder that goes on from any decoder in its own way."""

    def __init__(self, *, decoder: UnimodalDecoder) -> None:
        super().__init__()
        self.read, self.dim = decoder.read_words, decoder.words_dim

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        words = self.read(tokens)
        return EncoderOutput(words / 2, words.mean(1), mask, words=words)


def test_a_decoder_of_another_shares_by_the_same_pair(batch: Batch) -> None:
    one, two = make_task(decoder={"name": Sums}), make_task(decoder={"name": Sums})
    forget_words(two.model)
    assert_same(step(one, batch), step(two, batch))
    assert (one.model.decoder.handed, two.model.decoder.handed) == (1, 0)
    assert build(text_encoder={"name": Halved})(batch).text_embeds.shape == (5, 8)


# --- what does not go together


OTHER = r"or take a text encoder with weights of its own"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"decoder": None}, rf"'decoder' is a part of the decoder, and the model has none: add `decoder: .*, {OTHER}"),
        (
            {"losses": {"contrastive": {}}},
            rf"'decoder' is a part .* none of the losses \['contrastive'\] trains that: add `captioning: .*, {OTHER}",
        ),
        ({"memory": ["text"]}, rf"cannot attend over .* take 'text' out of memory \['text'\], {OTHER}"),
        ({"memory": ["image", "text"]}, rf"take 'text' out of memory \['image', 'text'\], {OTHER}"),
        ({"decoder": {"name": "rnn", "dim": 8}}, r"the decoder 'rnn' has none as it is. Among .* unimodal_depth: 2"),
        (
            {"decoder": {**DECODER, "unimodal_depth": 0}},
            r"'transformer' has none as it is. Set its unimodal_depth to 1",
        ),
        ({"text_encoder": {"name": "decoder", "dim": 8}}, r"has no option 'dim'.* Its options: pooling"),
        (
            {"text_encoder": {"name": "decoder", "pooling": "first"}},
            r"'pooling' .* takes Literal\['last', 'mean', 'class'\]",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:The decoder is left out")
def test_what_cannot_share_is_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(**changes)


def test_without_the_model_a_decoder_must_be_handed_over() -> None:
    with pytest.raises(ConfigError, match="The text encoder 'decoder' needs decoder"):
        registry.text_encoders.build("decoder")
    plain = TransformerDecoder(vocab_size=9, memory_dim=4, dim=8, depth=1, heads=2)
    with pytest.raises(ValueError, match="TransformerDecoder has no blocks without cross-attention"):
        DecoderTextEncoder(decoder=plain)
