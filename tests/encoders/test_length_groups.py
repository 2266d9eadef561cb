"""Laws of texts in groups of like length: the outputs and gradients of one batch, for fewer positions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from velm._compat import FakeTensorMode
from velm.encoders.huggingface import HFTextEncoder
from velm.encoders.length_groups import encode_in_groups
from velm.encoders.transformer import TransformerEncoder

BERT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
ENCODERS = {
    "transformer": lambda **options: TransformerEncoder(dim=16, depth=2, heads=2, vocab_size=32, **options),
    "bert": lambda **options: HFTextEncoder(model_name="bert", config=BERT, vocab_size=32, **options),
    "roberta": lambda **options: HFTextEncoder(model_name="roberta", config=BERT, vocab_size=32, **options),
}


def texts(rows: int = 96, longest: int = 20) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (rows, 1), generator=generator)
    lengths[5] = longest - 2  # two columns are padding alone
    mask = torch.arange(longest) < lengths
    return torch.randint(4, 32, (rows, longest), generator=generator).masked_fill(~mask, 0), mask


@pytest.mark.parametrize("options", [{}, {"pooling": "mean"}, {"reads_bos": False}])
@pytest.mark.parametrize("name", ENCODERS)
def test_equals_one_batch(name, options):
    torch.manual_seed(0)
    encoder = ENCODERS[name](**options).eval()
    assert encoder.pads
    tokens, mask = texts()
    grouped, whole = encode_in_groups(encoder, tokens, mask), encoder(tokens, mask)
    torch.testing.assert_close(grouped.pooled, whole.pooled, atol=1e-5, rtol=0)
    assert torch.equal(grouped.mask, whole.mask)
    content = whole.mask[..., None]
    torch.testing.assert_close(grouped.features * content, whole.features * content, atol=1e-5, rtol=0)
    weights = torch.randn_like(whole.features) * content
    gradients = [
        torch.autograd.grad((output.features * weights).sum() + output.pooled.sum(), list(encoder.parameters()),
                            allow_unused=True)
        for output in (grouped, whole)
    ]  # fmt: skip
    for own, other in zip(*gradients, strict=True):
        assert (own is None) == (other is None)
        if own is not None:
            torch.testing.assert_close(own, other, atol=1e-4, rtol=1e-4)


class Counting(nn.Module):
    """Counts the positions that an encoder is given."""

    pads = True

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.calls = ENCODERS["transformer"](), []

    def forward(self, tokens, mask):
        self.calls.append(tuple(tokens.shape))
        return self.encoder(tokens, mask)


def test_short_texts_are_not_padded_to_the_longest():
    encoder = Counting()
    tokens, mask = texts()
    encode_in_groups(encoder, tokens, mask)
    assert len(encoder.calls) == 4
    assert sum(rows * positions for rows, positions in encoder.calls) < 0.6 * tokens.numel()


@pytest.mark.parametrize("case", ["few", "alike", "another encoder", "compiled", "fake"])
def test_one_batch_where_groups_do_not_pay_or_cannot_be(case):
    encoder, (tokens, mask) = Counting(), texts(20 if case == "few" else 96)
    if case == "alike":
        mask = torch.ones_like(mask)
    if case == "another encoder":
        encoder.pads = False
    if case == "compiled":
        encoder.compile(backend="eager")
    if case == "fake":
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            encode_in_groups(encoder, mode.from_tensor(tokens), mode.from_tensor(mask))
    else:
        encode_in_groups(encoder, tokens, mask)
    assert encoder.calls == [tuple(tokens.shape)]


def test_padding_alone_is_no_error():
    tokens, mask = texts()
    mask[:30] = False
    assert torch.isfinite(encode_in_groups(ENCODERS["transformer"](), tokens, mask).pooled).all()
