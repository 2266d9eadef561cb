from dataclasses import dataclass

import pytest
import torch
from decoding import open_gates

from velm.decoders.base import Decoder, DecoderState

PAD, BOS, EOS = 0, 1, 2


@dataclass
class TableState(DecoderState):
    memory: torch.Tensor
    before: torch.Tensor
    attention: torch.Tensor | None = None

    def select(self, rows):
        attention = None if self.attention is None else self.attention[rows]
        return TableState(self.memory[rows], self.before[rows], attention)


class TableDecoder(Decoder):
    """The next token depends on the last two and on the memory, by a random table: no network."""

    def __init__(self, vocab_size=6, seed=0, max_length=None):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(vocab_size, vocab_size, vocab_size, generator=generator) * 1.5
        self.output_projection = torch.nn.Linear(vocab_size, vocab_size, bias=False)
        torch.nn.init.eye_(self.output_projection.weight)
        self.max_length = max_length

    def forward(self, tokens, memory, memory_mask=None):
        before = torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, :-1]], dim=1)
        return self.table[before, tokens] + memory.mean(1)[:, None]

    def start(self, memory, memory_mask=None):
        return TableState(memory, torch.zeros(len(memory), dtype=torch.int64))

    def step(self, token, state):
        logits = self.table[state.before, token] + state.memory.mean(1)
        attention = torch.nn.functional.one_hot(token % state.memory.shape[1], state.memory.shape[1]).float()
        return logits, TableState(state.memory, token, attention)


def hf_decoder(vocab_size):
    from velm.decoders.huggingface import HFDecoder

    sizes = {"n_embd": 8, "n_layer": 2, "n_head": 2, "n_positions": 16}
    return HFDecoder(model_name="gpt2", config=sizes, vocab_size=vocab_size, memory_dim=6)


def _gated(decoder):
    """An open gate, so that the sign of a random memory's last channel tells image from text."""
    open_gates(decoder)
    return decoder


def small_decoders(vocab_size=6, kinds=("rnn", "transformer")):
    """Random ones in float64, by name; the bias makes sentences end now and then."""
    from velm.decoders.rnn import RNNDecoder
    from velm.decoders.transformer import TransformerDecoder

    torch.manual_seed(0)
    options = {"vocab_size": vocab_size, "memory_dim": 6, "dim": 8}
    found = {
        "rnn": RNNDecoder(**options, gate=True),
        "gru": RNNDecoder(**options, cell="gru"),
        "transformer": TransformerDecoder(**options, depth=2, heads=2, max_length=16),
        "coca": TransformerDecoder(**options, depth=2, unimodal_depth=1, heads=2, max_length=16),
        "gated": _gated(
            TransformerDecoder(**{**options, "memory_dim": 5}, depth=2, heads=2, max_length=16, image_gate=True)
        ),
    }
    for decoder in found.values():
        torch.nn.init.normal_(decoder.output_projection.weight)
    return {kind: found[kind].double().eval() for kind in kinds}


@pytest.fixture(scope="session", params=["rnn", "gru", "transformer", "coca", "gated"])
def small_decoder(request):
    return small_decoders(kinds=(request.param,))[request.param]


@pytest.fixture
def table():
    return TableDecoder


@pytest.fixture
def write():
    """`generate` with the ids that all these tests use."""
    from velm.generation import GenerationConfig, generate

    def write(decoder, memory, mask=None, *, seed=None, suppress=(PAD, BOS), return_attention=False, **config):
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return generate(
            decoder, memory, mask, bos_id=BOS, eos_id=EOS, pad_id=PAD, config=GenerationConfig(**config),
            suppress=suppress, generator=generator, return_attention=return_attention,
        )  # fmt: skip

    return write


@dataclass
class ReadState(DecoderState):
    memory: torch.Tensor
    tokens: torch.Tensor

    def select(self, rows):
        return ReadState(self.memory[rows], self.tokens[rows])


class Uncached(Decoder):
    """Another decoder without its cache: each step reads the whole sentence again, each row its own memory."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder, self.output_projection = decoder, decoder.output_projection

    @classmethod
    def inner(cls, kind):
        torch.manual_seed(0)
        decoder = hf_decoder(12) if kind == "hf" else small_decoders(12, (kind,))[kind]
        torch.nn.init.normal_(decoder.output_projection.weight)
        return decoder.double().eval()

    def forward(self, tokens, memory, memory_mask=None):
        return self.decoder(tokens, memory, memory_mask)

    def start(self, memory, memory_mask=None):
        return ReadState(memory, torch.zeros(len(memory), 0, dtype=torch.int64))

    def step(self, token, state):
        tokens = torch.cat([state.tokens, token[:, None]], dim=1)
        hidden = self.decoder(tokens, state.memory)[:, -1]
        return self.output_projection(hidden), ReadState(state.memory, tokens)


@pytest.fixture
def uncached():
    return Uncached
