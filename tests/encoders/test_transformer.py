"""The Transformer text encoder: padding that is never seen, order that is, and sentences that are too long."""

from __future__ import annotations

import pytest
import torch
from encoding import token_batch

from velm.encoders.transformer import TransformerEncoder


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


@pytest.mark.parametrize("causal", [False, True])
def test_causal_means_that_later_words_are_unseen(causal):
    tokens, mask = token_batch()
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
    tokens, mask = token_batch()
    output = build("last", causal=True)(tokens, mask)
    assert torch.equal(output.pooled, output.features[torch.arange(3), mask.sum(dim=1) - 1])


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
