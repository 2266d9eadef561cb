"""The Transformer text encoder: padding that is never seen, order that is, and sentences that are too long."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from velm.encoders.transformer import TransformerEncoder

KINDS = [
    (pooling, causal, positions)
    for pooling in ("mean", "last", "first", "attention")
    for causal in (False, True)
    for positions in ("learned", "sine")
    if not (causal and pooling == "first")
]


def build(pooling="mean", causal=False, positions="learned", **options):
    torch.manual_seed(0)
    encoder = TransformerEncoder(
        vocab_size=11,
        dim=8,
        depth=2,
        heads=2,
        max_length=9,
        pooling=pooling,
        causal=causal,
        positions=positions,
        **options,
    )
    return encoder.double().eval()


def sentences():
    mask = torch.arange(6) < torch.tensor([4, 6, 2])[:, None]
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 11, (3, 6), generator=generator) * mask, mask


def close(left, right):
    torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_dtype(kind):
    tokens, mask = sentences()
    output = build(*kind)(tokens, mask)
    assert output.features.shape == (3, 6, 8)
    assert output.pooled.shape == (3, 8)
    assert output.features.dtype == output.pooled.dtype == torch.float64
    assert output.mask is mask
    assert output.grid is None


@pytest.mark.parametrize("kind", KINDS)
def test_more_padding_changes_nothing(kind):
    tokens, mask = sentences()
    encoder = build(*kind)
    output = encoder(tokens, mask)
    longer = encoder(nn.functional.pad(tokens, (0, 3)), nn.functional.pad(mask, (0, 3)))
    close(longer.pooled, output.pooled)
    close(longer.features[:, :6][mask], output.features[mask])


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_padding_holds_does_not_matter(kind):
    tokens, mask = sentences()
    encoder = build(*kind)
    output, other = encoder(tokens, mask), encoder(torch.where(mask, tokens, 7), mask)
    close(other.pooled, output.pooled)
    close(other.features[mask], output.features[mask])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_equals_its_row(kind):
    tokens, mask = sentences()
    encoder = build(*kind)
    output = encoder(tokens, mask)
    for row, length in enumerate(mask.sum(dim=1).tolist()):
        alone = encoder(tokens[row : row + 1, :length], mask[row : row + 1, :length])
        close(alone.pooled[0], output.pooled[row])
        close(alone.features[0], output.features[row, :length])


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_reaches_every_parameter(kind):
    tokens, mask = sentences()
    encoder = build(*kind)
    encoder(tokens, mask).pooled[:, :5].pow(3).sum().backward()
    assert not [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("causal", [False, True])
def test_causal_means_that_later_words_are_unseen(causal):
    tokens, mask = sentences()
    encoder = build("last", causal)
    changed = tokens.clone()
    changed[1, 4:] = changed[1, 4:] % 10 + 1
    before, after = encoder(tokens, mask).features[1, :4], encoder(changed, mask).features[1, :4]
    assert torch.allclose(before, after, rtol=0, atol=1e-12) is causal


@pytest.mark.parametrize("positions", ["learned", "sine"])
def test_order_matters(positions):
    tokens, mask = torch.tensor([[1, 2, 3, 4], [1, 3, 2, 4]]), torch.ones(2, 4, dtype=torch.bool)
    pooled = build(positions=positions)(tokens, mask).pooled
    assert not torch.allclose(pooled[0], pooled[1], rtol=0, atol=1e-6)


def test_last_is_eos():
    tokens, mask = sentences()
    output = build("last", causal=True)(tokens, mask)
    assert torch.equal(output.pooled, output.features[torch.arange(3), mask.sum(dim=1) - 1])


def test_dropout_is_off_in_eval_and_on_in_training():
    tokens, mask = sentences()
    encoder = build(dropout=0.5)
    assert torch.equal(encoder(tokens, mask).pooled, encoder(tokens, mask).pooled)
    encoder.train()
    assert not torch.equal(encoder(tokens, mask).pooled, encoder(tokens, mask).pooled)


@pytest.mark.parametrize("kind", KINDS)
def test_saved_equals_loaded(kind):
    tokens, mask = sentences()
    encoder, other = build(*kind), build(*kind)
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.load_state_dict(encoder.state_dict())
    assert torch.equal(other(tokens, mask).pooled, encoder(tokens, mask).pooled)


def test_errors_settle_the_matter():
    with pytest.raises(ValueError, match="10 tokens, but max_length is 9"):
        build()(torch.ones(1, 10, dtype=torch.long), torch.ones(1, 10, dtype=torch.bool))
    with pytest.raises(ValueError, match="10 tokens, but max_length is 9"):
        build(positions="sine")(torch.ones(1, 10, dtype=torch.long), torch.ones(1, 10, dtype=torch.bool))
    with pytest.raises(ValueError, match="dim 100 is not divisible by heads 8"):
        TransformerEncoder(vocab_size=5, dim=100, heads=8)
    with pytest.raises(ValueError, match=r"even dim .* dim is 9"):
        TransformerEncoder(vocab_size=5, dim=9, heads=3, positions="sine")
    with pytest.raises(ValueError, match="'first' with causal"):
        TransformerEncoder(vocab_size=5, pooling="first", causal=True)
