"""The Transformer decoder: attention only where it is asked for, unimodal blocks, and what is refused."""

import pytest
import torch

from velm.decoders.transformer import TransformerDecoder
from velm.testing.decoders import step_logits


def build(**options):
    torch.manual_seed(0)
    options = {"dim": 8, "depth": 2, "heads": 2, "max_length": 9, **options}
    return TransformerDecoder(vocab_size=20, memory_dim=6, **options).double().eval()


@pytest.fixture
def inputs():
    torch.manual_seed(1)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 3:] = False
    mask[2] = False
    return torch.randint(1, 20, (4, 7)), torch.randn(4, 5, 6, dtype=torch.float64), mask


def test_training_does_not_pay_for_attention(inputs):
    tokens, memory, mask = inputs
    decoder = build()
    assert decoder.train().decode(tokens, memory, mask).attention is None
    assert decoder.eval().decode(tokens, memory, mask).attention is not None


def test_longer_than_max_length(inputs):
    _, memory, _ = inputs
    decoder = build()
    assert decoder(torch.ones(4, 9, dtype=torch.int64), memory).shape == (4, 9, 8)
    with pytest.raises(ValueError, match=r"10 tokens.*max_length 9"):
        decoder(torch.ones(4, 10, dtype=torch.int64), memory)


def test_tied():
    decoder = build()
    assert decoder.output_projection.weight is decoder.embedding.weight


def test_depth_is_at_least_one():
    with pytest.raises(ValueError, match="depth 0 is too small"):
        build(depth=0)


def test_unimodal_blocks_know_no_memory(inputs):
    """What the lower blocks make of the words is the same for all images, and they have no weights to look with."""
    tokens, memory, _ = inputs
    decoder = build(depth=3, unimodal_depth=2)
    assert [block.memory_attention is None for block in decoder.blocks] == [True, True, False]
    assert len(decoder.start(memory).memory.tensors) == 2  # keys and values of the one block that looks
    seen = []
    decoder.blocks[1].register_forward_hook(lambda block, given, result: seen.append(result))
    one, two = decoder(tokens, memory), decoder(tokens, memory + 1e3 * torch.randn_like(memory))
    assert torch.equal(seen[0], seen[1])
    assert not torch.allclose(one, two)


@pytest.mark.parametrize(("depth", "unimodal_depth"), [(2, 2), (2, 5), (1, -1)])
def test_some_block_looks(depth, unimodal_depth):
    with pytest.raises(ValueError, match=rf"unimodal_depth {unimodal_depth} does not go .*depth {depth}.*{depth - 1}"):
        build(depth=depth, unimodal_depth=unimodal_depth)


@pytest.fixture
def marked(inputs):
    """The memory of `inputs` with two positions of an image in front of the text."""
    tokens, text, mask = inputs
    image = torch.randn(4, 2, 6, dtype=torch.float64)
    memory = torch.cat([torch.nn.functional.pad(image, (0, 1), value=1.0), torch.nn.functional.pad(text, (0, 1))], 1)
    return tokens, memory, torch.cat([torch.ones(4, 2, dtype=torch.bool), mask], 1)


@pytest.mark.parametrize("options", [{}, {"depth": 3, "unimodal_depth": 1}])
def test_a_new_gate_is_a_decoder_of_the_text(inputs, marked, options):
    gated, plain = build(image_gate=True, **options), build(**options)
    plain.load_state_dict({key: value for key, value in gated.state_dict().items() if key in plain.state_dict()})
    torch.testing.assert_close(gated(*marked), plain(*inputs))
    tokens, memory, mask = marked
    torch.testing.assert_close(step_logits(gated, *marked), plain.output_projection(plain(*inputs)))
    gated(tokens, memory, mask).square().sum().backward()
    assert all(block.image.alpha.grad != 0 for block in gated.blocks[gated.unimodal_depth :])


def test_an_open_gate_shows_the_image(inputs, marked):
    gated = build(image_gate=True)
    with torch.no_grad():
        gated.blocks[0].image.alpha.fill_(1.0)
    tokens, memory, mask = marked
    other = torch.cat([memory[:, :2].flip(0), memory[:, 2:]], 1)
    assert not torch.allclose(gated(tokens, memory, mask), gated(tokens, other, mask))
    order = [6, 3, 0, 5, 2, 4, 1]  # the marks tell image from text, not the place
    torch.testing.assert_close(gated(tokens, memory[:, order], mask[:, order]), gated(tokens, memory, mask))


def test_no_gate_no_weights_of_one():
    assert not [key for key in build().state_dict() if "image" in key]


def test_a_gate_does_not_alternate():
    with pytest.raises(ValueError, match="image_gate does not go with alternating: set one"):
        build(image_gate=True, alternating=True)
