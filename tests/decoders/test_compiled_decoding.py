"""examples/compiled_decoding.py: a fixed-size cache decodes what the decoder decodes, in one graph for all steps."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from velm.decoders.transformer import TransformerDecoder
from velm.generation import GenerationConfig, generate
from velm.testing import check_decoder

EXAMPLE = Path(__file__).parents[2] / "examples" / "compiled_decoding.py"
_spec = importlib.util.spec_from_file_location("compiled_decoding", EXAMPLE)
sys.modules["compiled_decoding"] = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(sys.modules["compiled_decoding"])
StaticDecoder = sys.modules["compiled_decoding"].StaticDecoder

OPTIONS = {"vocab_size": 12, "memory_dim": 6, "dim": 8, "depth": 2, "heads": 2}
IDS = {"bos_id": 1, "eos_id": 2, "pad_id": 0}


@pytest.fixture(params=[0, 1], ids="unimodal_depth={}".format)
def decoder(request):
    torch.manual_seed(0)
    made = TransformerDecoder(**OPTIONS, unimodal_depth=request.param, max_length=16)
    torch.nn.init.normal_(made.output_projection.weight)
    return made.double().eval()


@pytest.mark.parametrize("image_gate", [False, True])
def test_it_keeps_the_contract(image_gate):
    options = {"vocab_size": 32, "memory_dim": 16, "dim": 16, "depth": 2, "heads": 2, "image_gate": image_gate}
    report = check_decoder(lambda: StaticDecoder(TransformerDecoder(**options), length=12, backend=None))
    assert report.ok, str(report)


@pytest.mark.parametrize("config", [{}, {"num_beams": 4, "num_return": 3}, {"num_beams": 3, "must_include": [[5]]}])
def test_it_decodes_the_same(decoder, config):
    memory, mask = torch.randn(6, 4, 6, dtype=torch.float64), torch.rand(6, 4) < 0.8
    mask[:, 0] = True
    config = GenerationConfig(max_length=9, **config)
    static = StaticDecoder(decoder, length=9, backend=None)
    one, two = (generate(d, memory, mask, config=config, return_attention=True, **IDS) for d in (decoder, static))
    assert torch.equal(one.tokens, two.tokens)
    torch.testing.assert_close(one.scores, two.scores)
    torch.testing.assert_close(one.attention, two.attention)


@pytest.mark.parametrize("decoder", [1], indirect=True)
@pytest.mark.parametrize(("beams", "most"), [(1, 1), (4, 2)])
def test_one_graph_for_every_position(decoder, beams, most):
    """fullgraph: a break is an error; the backend is called once a graph."""
    graphs = []
    torch._dynamo.reset()
    static = StaticDecoder(decoder, length=14, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    config = GenerationConfig(max_length=14, min_length=14, num_beams=beams)
    memory = torch.randn(3, 4, 6, dtype=torch.float64)
    tokens = generate(static, memory, config=config, **IDS).tokens
    assert tokens.shape[2] == 14
    assert 1 <= len(graphs) <= most
    again = len(graphs)
    generate(static, torch.randn(3, 4, 6, dtype=torch.float64), config=config, **IDS)
    assert len(graphs) == again
    assert torch.equal(tokens, generate(decoder, memory, config=config, **IDS).tokens)


@pytest.mark.parametrize("decoder", [1], indirect=True)
def test_packed_weights_are_not_in_the_graph(decoder):
    """In float32 `generate` packs the weights, anew in each call; the graph of the first call serves the second."""
    decoder, memory = decoder.float(), torch.randn(5, 4, 6)
    torch._dynamo.reset()
    graphs = []
    static = StaticDecoder(decoder, length=14, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    config = GenerationConfig(max_length=8, min_length=8)
    for _ in range(2):
        tokens = generate(static, memory, config=config, **IDS).tokens
        assert torch.equal(tokens, generate(decoder, memory, config=config, **IDS).tokens)
    assert len(graphs) == 1


def test_length_is_checked(decoder):
    with pytest.raises(ValueError, match="length 0 is too small; it is at least 1 token"):
        StaticDecoder(decoder, length=0)
    static = StaticDecoder(decoder, length=2, backend=None)
    assert StaticDecoder(decoder, length=99, backend=None).max_length == 16
    state = static.start(torch.randn(1, 4, 6, dtype=torch.float64))
    for _ in range(2):
        _, state = static.step(torch.tensor([1]), state)
    with pytest.raises(ValueError, match="3 tokens, but length is 2"):
        static.step(torch.tensor([1]), state)
