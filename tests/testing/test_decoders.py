"""Each broken decoder is reported by its violation."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from velm.decoders.base import Decoder, DecoderState
from velm.outputs import DecoderOutput
from velm.testing import check, check_decoder


class State(DecoderState):
    def __init__(self, memory: Tensor, total: Tensor, count: int) -> None:
        self.memory, self.total, self.count = memory, total, count

    def select(self, rows: Tensor) -> State:
        return State(self.memory[rows], self.total[rows], self.count)


class Averages(Decoder):
    """The smallest right decoder: the mean of the words so far and of the memory."""

    def __init__(self, *, vocab_size: int = 32, memory_dim: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab_size, memory_dim)
        self.output_projection = nn.Linear(memory_dim, vocab_size)

    def read(self, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        content = memory.new_ones(memory.shape[:2]) if memory_mask is None else memory_mask.to(memory.dtype)
        return (memory * content[:, :, None]).sum(1) / content.sum(1, keepdim=True)

    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        words = self.words(tokens)
        count = torch.arange(1, tokens.shape[1] + 1).to(words.dtype)[:, None]
        return words.cumsum(1) / count + self.read(memory, memory_mask)[:, None]

    def start(self, memory: Tensor, memory_mask: Tensor | None = None) -> State:
        read = self.read(memory, memory_mask)
        return State(read, torch.zeros_like(read), 0)

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, State]:
        state = State(state.memory, state.total + self.words(token), state.count + 1)
        return self.output_projection(state.total / state.count + state.memory), state


class LooksAhead(Averages):
    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        return self.words(tokens).mean(1, keepdim=True) + super().forward(tokens, memory, memory_mask)


class MemoryLeak(Averages):
    def read(self, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
        return memory.mean(1)


class StepsOtherwise(Averages):
    def step(self, token: Tensor, state: Any) -> tuple[Tensor, State]:
        return super().step(token, State(state.memory, state.total, 0))


class ReadsItsLogits(Averages):
    """Right as long as nobody writes into what it handed out."""

    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, following = super().step(token, state)
        if hasattr(state, "handed_out"):
            logits = logits + state.handed_out - state.copy
        following.handed_out, following.copy = logits, logits.clone()
        return logits, following


class SelectForgets(Averages):
    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = super().step(token, state)
        state.select = lambda rows: State(state.memory[rows], state.total[: len(rows)].repeat(2, 1)[: len(rows)], 0)
        return logits, state


class ProjectsTooSoon(Averages):
    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        return self.output_projection(super().forward(tokens, memory, memory_mask))


def test_a_right_decoder_has_no_violation() -> None:
    assert not check(Averages).violations


@pytest.mark.parametrize(
    ("decoder", "violations"),
    [
        (LooksAhead, ["looks ahead", "stepping differs from forward"]),
        (MemoryLeak, ["padding leak"]),
        (StepsOtherwise, ["stepping differs from forward"]),
        (ReadsItsLogits, ["stepping differs from forward"]),
        (SelectForgets, ["select"]),
        (ProjectsTooSoon, ["wrong shape"]),
    ],
)
def test_broken_decoders_are_caught_by_name(decoder: type, violations: list[str]) -> None:
    report = check_decoder(decoder)
    assert [f.check for f in report.violations] == violations, str(report)


class Shares(Averages):
    """Hands the words on, that a text encoder may go on from them."""

    def __init__(self, *, vocab_size: int = 32, memory_dim: int = 16) -> None:
        super().__init__(vocab_size=vocab_size, memory_dim=memory_dim)
        self.words_dim = memory_dim

    def read_words(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens, torch.zeros(1, 1, self.words_dim, dtype=self.words.weight.dtype))

    def decode(self, tokens: Any, memory: Any, memory_mask: Any = None, words: Tensor | None = None) -> DecoderOutput:
        words = self.read_words(tokens) if words is None else words
        return DecoderOutput(words + self.read(memory, memory_mask)[:, None])


class SharesWhatIsToCome(Shares):
    def read_words(self, tokens: Tensor) -> Tensor:
        return super().read_words(tokens) + self.words(tokens).mean(1, keepdim=True)

    def forward(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> Tensor:
        return Averages.forward(self, tokens, memory, memory_mask)

    def decode(self, tokens: Any, memory: Any, memory_mask: Any = None, words: Tensor | None = None) -> DecoderOutput:
        return (
            Averages.decode(self, tokens, memory, memory_mask)
            if words is None
            else super().decode(tokens, memory, memory_mask, words)
        )


class SharesOtherWords(Shares):
    def __init__(self, *, vocab_size: int = 32, memory_dim: int = 16) -> None:
        super().__init__(vocab_size=vocab_size, memory_dim=memory_dim)
        self.words_dim = memory_dim + 1

    def read_words(self, tokens: Tensor) -> Tensor:
        return self.words(tokens).cumsum(1)

    def decode(self, *inputs: Any, words: Tensor | None = None) -> DecoderOutput:
        return Averages.decode(self, *inputs)


def test_a_decoder_that_shares_its_words_is_held_to_them() -> None:
    assert not check(Shares).violations
    assert [f.check for f in check(SharesWhatIsToCome).violations] == ["words"]
    [violation] = check(SharesOtherWords).violations
    assert violation.check == "words"
    assert "read_words() returned (3, 6, 16); expected (3, 6, 17). Set words_dim" in violation.message


class AttentionOfLogits(Averages):
    def decode(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> DecoderOutput:
        hidden = self(tokens, memory, memory_mask)
        return DecoderOutput(hidden, attention=hidden @ memory.transpose(1, 2))


class AttentionByHead(Averages):
    def step(self, token: Tensor, state: Any) -> tuple[Tensor, Any]:
        logits, state = super().step(token, state)
        state.attention = torch.full((len(token), 2, 5), 0.2)
        return logits, state


class DecodesOtherwise(Averages):
    def decode(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> DecoderOutput:
        return DecoderOutput(2 * self(tokens, memory, memory_mask))


class PenaltyOfEach(Averages):
    def decode(self, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None = None) -> DecoderOutput:
        return DecoderOutput(self(tokens, memory, memory_mask), penalty=torch.ones(len(tokens)))


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (AttentionOfLogits, r"sum to .* expected 1"),
        (AttentionByHead, r"state.attention is \(3, 2, 5\); expected \(3, 5\)"),
        (DecodesOtherwise, r"decode\(\) and forward\(\) disagree"),
        (PenaltyOfEach, r"penalty is \(3,\); expected one finite number"),
    ],
)
def test_what_decode_hands_out_is_looked_at(decoder: type, message: str) -> None:
    violations = check_decoder(decoder).violations
    assert [f.check for f in violations] == ["attention"]
    assert re.search(message, violations[0].message)
