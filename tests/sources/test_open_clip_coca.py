"""CoCa of open_clip: both heads, losses, gradients and captions as by its own forward, to 1e-5."""

from __future__ import annotations

from itertools import product

import pytest
import torch

pytest.importorskip("open_clip", reason="the extra 'open_clip' is not installed")

from open_clip.loss import CoCaLoss
from open_clips import TEXT, VIT, Original, pixels, tokens_of

from velm.generation import GenerationConfig, generate
from velm.outputs import Batch
from velm.registry import text_encoders
from velm.sources.open_clip_towers import read_towers

CONFIG = {
    "embed_dim": 32,
    "vision_cfg": {**VIT, "attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 9,
                   "output_tokens": True},
    "text_cfg": {**TEXT, "context_length": 16, "embed_cls": True, "output_tokens": True},
    "multimodal_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
    "custom_text": True,
}  # fmt: skip
START, END = 49406, 49407
IMAGES = pixels(32)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return Original(tmp_path_factory.mktemp("coca"), CONFIG)


@pytest.fixture(scope="module")
def imported(original):
    return original.load()


def test_embeddings_and_logits(original, imported):
    """Texts of 4 tokens, nearly full, full, and cut."""
    with torch.no_grad():
        theirs = original.model(IMAGES, tokens_of(original))
        image, text = imported.embeds(IMAGES)
        output = imported.model(Batch(IMAGES, *imported.tokens(), torch.arange(len(IMAGES))))
        logits = imported.model.decoder.output_projection(output.decoder.hidden)[..., :49408]
    torch.testing.assert_close(image, theirs["image_features"], atol=1e-5, rtol=0)
    torch.testing.assert_close(text, theirs["text_features"], atol=1e-5, rtol=0)
    content = imported.tokens()[1][:, :-1]
    torch.testing.assert_close(logits[content], theirs["logits"][content], atol=1e-5, rtol=1e-5)


def test_the_class_token_of_a_text_does_not_depend_on_the_batch(imported):
    tokens, mask = imported.tokens()
    with torch.no_grad():
        together = imported.model.encode_text(tokens, mask).pooled
        alone = [
            imported.model.encode_text(t[m][None], m[m][None]).pooled[0] for t, m in zip(tokens, mask, strict=True)
        ]
    torch.testing.assert_close(torch.stack(alone), together, atol=1e-5, rtol=0)


def test_losses_and_gradients(original, imported):
    model = original.model
    model.zero_grad()
    imported.model.zero_grad()
    theirs = model(IMAGES, tokens_of(original))
    contrastive, captioning = CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)(**theirs)
    (contrastive + captioning).backward()
    ours = imported.loss(IMAGES)
    torch.testing.assert_close(ours["contrastive"], contrastive, atol=1e-5, rtol=0)
    torch.testing.assert_close(2 * ours["captioning"], captioning, atol=1e-5, rtol=1e-6)
    assert imported.checkpoint.config["losses"]["captioning"] == {"weight": 2.0}
    assert imported.largest_difference(original.gradients(imported.tokenizer.vocab_size)) < 1e-5


def next_log_probs(model, image, sentences):
    """log p (S, T, V) of every next token of sentences of equal length, by open_clip's forward; nothing is cached."""
    latent, features = model._encode_image(image[None])
    text = torch.tensor(sentences)
    given = (t.expand(len(text), *t.shape[1:]) for t in (latent, features))
    return model(image[None], text, *given, output_labels=False)["logits"].log_softmax(-1)


@torch.no_grad()
def written(imported, allowed, **options):
    memory, _ = imported.model.memory(imported.model.encode_image(IMAGES[:2]), None)
    banned = sorted(set(range(imported.tokenizer.vocab_size)) - set(allowed))
    return generate(
        imported.model.decoder, memory, bos_id=START, eos_id=END, pad_id=imported.tokenizer.pad_id,
        config=GenerationConfig(**options), suppress=banned,
    )  # fmt: skip


@torch.no_grad()
def test_greedy_captions(original, imported):
    found = written(imported, set(range(49408)) - {START}, max_length=10)
    for image, tokens in zip(IMAGES[:2], found.tokens[:, 0].tolist(), strict=True):
        caption = [START]
        while len(caption) < 10 and caption[-1] != END:
            scores = next_log_probs(original.model, image, [caption])[0, -1]
            scores[START] = -torch.inf
            caption.append(int(scores.argmax()))
        assert [token for token in tokens if token != imported.tokenizer.pad_id][: len(caption) - 1] == caption[1:]


@torch.no_grad()
def test_beams_find_the_best_of_all_captions(original, imported):
    words, longest = (1929, 2368, 320), 4
    found = written(imported, {*words, END}, max_length=longest, num_beams=110, num_return=8, length_penalty=1.0)
    for row, image in enumerate(IMAGES[:2]):
        every = []
        for length in range(longest):
            sentences = [[START, *each, END] for each in product(words, repeat=length)]
            log_probs = next_log_probs(original.model, image, [sentence[:-1] for sentence in sentences])
            targets = torch.tensor([sentence[1:] for sentence in sentences])
            sums = log_probs.gather(2, targets[..., None]).sum(dim=(1, 2)) / (length + 1)
            every += [(score, target) for score, target in zip(sums.tolist(), targets.tolist(), strict=True)]
        best = sorted(every, reverse=True)[:8]
        tokens = [[t for t in each if t != imported.tokenizer.pad_id] for each in found.tokens[row].tolist()]
        assert tokens == [target for _, target in best]
        torch.testing.assert_close(found.scores[row], torch.tensor([score for score, _ in best]))


def test_another_image_size(original, tmp_path):
    """Positions are resized as in open_clip; the memory keeps its length."""
    from open_clip.model import resize_pos_embed

    larger = {**CONFIG, "vision_cfg": {**CONFIG["vision_cfg"], "image_size": 48}}
    theirs, images = Original(tmp_path, larger), pixels(48)
    state = dict(original.model.state_dict())
    resize_pos_embed(state, theirs.model)
    theirs.model.load_state_dict(state)
    model = original.load().model
    with torch.no_grad():
        output = model.encode_image(images)
        torch.testing.assert_close(model.embed_image(output), theirs.model.encode_image(images), atol=1e-5, rtol=0)
    assert output.features.shape == (len(images), 8, 32)


def test_patches_are_the_memory_without_a_pooler(tmp_path):
    """coca_base: no attentional pooler."""
    vision = {**VIT, "output_tokens": True}
    multimodal = {**CONFIG["multimodal_cfg"], "width": 64}
    text = {**CONFIG["text_cfg"], "width": 64}
    config = {**CONFIG, "vision_cfg": vision, "text_cfg": text, "multimodal_cfg": multimodal}
    original = Original(tmp_path, config)
    imported = original.load()
    with torch.no_grad():
        theirs = original.model(IMAGES, tokens_of(original))
        output = imported.model(Batch(IMAGES, *imported.tokens(), torch.arange(len(IMAGES))))
        logits = imported.model.decoder.output_projection(output.decoder.hidden)[..., :49408]
    content = imported.tokens()[1][:, :-1]
    torch.testing.assert_close(logits[content], theirs["logits"][content], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.embeddings.text, theirs["text_features"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("vision_cfg", {"attentional_pool": "parallel"}, "attentional_pool is 'parallel'"),
        ("text_cfg", {"embed_cls": False}, "do not end with a class token"),
        ("text_cfg", {"heads": 2}, "text_cfg has heads 2, its multimodal_cfg 4"),
        ("text_cfg", {"mlp_ratio": 2.0}, "another mlp_ratio"),
        ("text_cfg", {"no_causal_mask": True}, "not causal"),
        ("multimodal_cfg", {"qk_norm": True}, "multimodal_cfg has qk_norm"),
    ],
)
def test_another_coca_is_refused_by_name(part, change, message):
    with pytest.raises(ValueError, match=message):
        read_towers({**CONFIG, part: {**CONFIG[part], **change}}, None)


def test_a_class_token_needs_a_decoder_that_takes_one():
    class Plain(torch.nn.Module):
        words_dim, max_length = 8, None

        def read_words(self, tokens):
            return tokens

    with pytest.raises(ValueError, match="no class token can follow"):
        text_encoders.build({"name": "decoder", "pooling": "class"}, decoder=Plain(), pad_id=0)
