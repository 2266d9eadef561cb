"""The contract check of decoders; the main law: stepping equals forward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from velm.decoders.base import Decoder
from velm.testing.laws import ALL, Outputs, PartUnderTest, different, judge_module
from velm.testing.report import Report

BATCH, TOKENS, POSITIONS = 3, 6, 5
SOUND = ("raised", "wrong shape")


def check_decoder(decoder: Any, *, vocab_size: int = 32, pad_id: int = 0, memory_dim: int = 16) -> Report:
    """Check every law of `velm.Decoder`.

    Args:
        decoder: a callable without arguments that builds a fresh instance, or an instance.
        vocab_size: V that it was built with.
        pad_id: id of padding.
        memory_dim: width D of the memory that it was built with, without the mark of an `image_gate`.
    """
    tested = PartUnderTest.of(decoder, "decoder")
    report, module = tested.report, tested.instance
    if not tested.judge_type(Decoder):
        return report
    case = _Case(vocab_size, pad_id, memory_dim, module.image_gate)

    def probe(module: Any, rows: slice = ALL, dtype: torch.dtype = torch.float32) -> Outputs:
        hidden = module(case.tokens[rows].clone(), case.memory[rows].to(dtype, copy=True), case.mask[rows].clone())
        return {"hidden": hidden, "logits": module.output_projection(hidden)}

    first: list[Any] = []
    with torch.no_grad():
        report.judge("raised", lambda: first.append(module.eval()(*case.inputs())))
    report.judge("wrong shape", lambda: _shape(module, first[0], vocab_size), ("raised",))
    judge_module(tested, probe, SOUND)
    report.judge("attention", lambda: _attention(module, case), SOUND)
    same = (*SOUND, "not deterministic in eval")
    report.judge("looks ahead", lambda: _looks_ahead(module, case), same)
    report.judge("padding leak", lambda: _memory_padding(module, case), same)
    report.judge("stepping differs from forward", lambda: _stepping(module, case), same)
    report.judge("select", lambda: _select(module, case), (*same, "stepping differs from forward"))
    if module.words_dim is not None:  # a text encoder may share its first layers
        report.judge("words", lambda: _words(module, case, pad_id), (*same, "looks ahead"))
    return report


class _Case:
    """A small batch: tokens (B, T), memory (B, N, D) and its mask; row 1 of the memory is half padding.

    For a decoder with an `image_gate`, D is one more, and the first position is of an image.
    """

    def __init__(self, vocab_size: int, pad_id: int, memory_dim: int, image_gate: bool) -> None:
        generator = torch.Generator().manual_seed(0)
        tokens = torch.randint(0, vocab_size - 1, (BATCH, TOKENS), generator=generator)
        self.tokens = tokens + (tokens >= pad_id)
        self.memory = torch.randn(BATCH, POSITIONS, memory_dim, generator=generator)
        if image_gate:
            mark = torch.zeros(BATCH, POSITIONS, 1)
            mark[:, 0] = 1
            self.memory = torch.cat([self.memory, mark], dim=-1)
        self.mask = torch.ones(BATCH, POSITIONS, dtype=torch.bool)
        self.mask[1, 2:] = False

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.tokens.clone(), self.memory.clone(), self.mask.clone()


def _shape(module: Any, hidden: Any, vocab_size: int) -> str | None:
    projection = getattr(module, "output_projection", None)
    if not isinstance(projection, nn.Linear) or projection.out_features != vocab_size:
        return (
            f".output_projection is {projection}; expected nn.Linear onto {vocab_size} words. "
            "Build it from the constructor's vocab_size."
        )
    expected = (BATCH, TOKENS, projection.in_features)
    if not isinstance(hidden, Tensor) or hidden.shape != expected:
        returned = tuple(hidden.shape) if isinstance(hidden, Tensor) else type(hidden).__name__
        return (
            f"forward returned {returned}; expected hidden states {expected}. The loss multiplies by "
            "output_projection; attention and penalties are returned by decode()."
        )
    return None


@torch.no_grad()
def _attention(module: Any, case: _Case) -> str | None:
    whole = module.eval().decode(*case.inputs())
    if gap := different({"hidden": module(*case.inputs())}, {"hidden": whole.hidden}):
        return f"decode() and forward() disagree: {gap}; expected the same hidden states. Let one call the other."
    if whole.penalty is not None and (whole.penalty.dim() or not torch.isfinite(whole.penalty)):
        return f"decode().penalty is {tuple(whole.penalty.shape)}; expected one finite number, float ()."
    _, state = module.step(case.tokens[:, 0], module.start(case.memory, case.mask))
    for name, attention, shape in (
        ("decode().attention", whole.attention, (BATCH, TOKENS, POSITIONS)),
        ("attend()", module.attend(*case.inputs()), (BATCH, TOKENS, POSITIONS)),
        ("state.attention", state.attention, (BATCH, POSITIONS)),
    ):
        if attention is None:
            continue
        if attention.shape != shape:
            return f"{name} is {tuple(attention.shape)}; expected {shape}, averaged over heads."
        if not torch.allclose(attention.sum(-1), torch.ones(shape[:-1]), atol=1e-3):
            return f"rows of {name} sum to {attention.sum(-1).flatten()[0]:.3g}; expected 1. Return softmax weights."
    return None


@torch.no_grad()
def _looks_ahead(module: Any, case: _Case) -> str | None:
    tokens, memory, mask = case.inputs()
    half = TOKENS // 2
    other = tokens.clone()
    other[:, half:] = tokens[:, half:].flip(0).roll(1, 1)
    module.eval()
    gap = different(
        {"hidden": module(tokens, memory, mask)[:, :half]}, {"hidden": module(other, memory, mask)[:, :half]}
    )
    return gap and (
        f"other tokens from position {half} on changed earlier positions: {gap}; expected no difference. "
        "Mask the attention causally, and read only to the left."
    )


@torch.no_grad()
def _memory_padding(module: Any, case: _Case) -> str | None:
    tokens, memory, mask = case.inputs()
    module.eval()
    changed = torch.where(mask[:, :, None], memory, 100 * torch.ones_like(memory))  # a mark of padding says nothing
    gap = different({"hidden": module(tokens, memory, mask)}, {"hidden": module(tokens, changed, mask)})
    if gap:
        return (
            f"the padding of the memory changed the result: {gap}; expected no difference. "
            "Use memory_mask in every attention and every mean over the memory."
        )
    no_padding = torch.ones_like(mask)
    gap = different({"hidden": module(tokens, memory, None)}, {"hidden": module(tokens, memory, no_padding)})
    return gap and f"memory_mask None and a mask of only True: {gap}; expected no difference."


@torch.no_grad()
def step_logits(decoder: Decoder, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
    """Logits float (B, T, V) from feeding one token after another.

    The logits of each step are zeroed once they are copied, since a search writes into them: a decoder that reads them
    again then differs.

    Args:
        decoder: in eval mode.
        tokens: int64 (B, T), bos first.
        memory: float (B, N, D).
        memory_mask: bool (B, N), True on content; None: all content.
    """
    state, steps = decoder.start(memory, memory_mask), []
    for token in tokens.unbind(1):
        logits, state = decoder.step(token, state)
        steps.append(logits.clone())
        logits.zero_()
    return torch.stack(steps, dim=1)


@torch.no_grad()
def _stepping(module: Any, case: _Case) -> str | None:
    expected = module.eval().output_projection(module(*case.inputs()))
    stepped = step_logits(module, *case.inputs())
    for t in range(TOKENS):
        if gap := different({"logits": expected[:, t]}, {"logits": stepped[:, t]}):
            return (
                f"at step {t} (bos is 0) {gap} from output_projection(forward(...)); expected no difference. "
                "Look at positions, at the cache, and at what start() computes from the memory; and return logits "
                "that nothing else reads, since a search writes into them."
            )
    return None


@torch.no_grad()
def _select(module: Any, case: _Case) -> str | None:
    """Rows repeated and reordered in the middle of a sequence continue as if stepped alone from the start."""
    rows, half = torch.tensor([2, 0, 0, 1]), TOKENS // 2
    module.eval()
    state = module.start(case.memory, case.mask)
    picked = module.start(case.memory[rows], case.mask[rows])
    for t in range(half):
        _, state = module.step(case.tokens[:, t], state)
        _, picked = module.step(case.tokens[rows, t], picked)
    state = state.select(rows)
    for t in range(half, TOKENS):
        logits, state = module.step(case.tokens[rows, t], state)
        expected, picked = module.step(case.tokens[rows, t], picked)
        if gap := different({"logits": expected}, {"logits": logits}):
            return (
                f"after state.select({rows.tolist()}) {gap} from those rows stepped from the start; expected no "
                "difference. Select every tensor of the state: caches, hidden states, memory and its mask."
            )
    return None


@torch.no_grad()
def _words(module: Any, case: _Case, pad_id: int) -> str | None:
    """A text encoder reads all tokens; the decoder, fed one token less, continues from its output."""
    tokens, memory, mask = case.inputs()
    words, expected = module.eval().read_words(tokens.clone()), (BATCH, TOKENS, module.words_dim)
    if words.shape != expected:
        return (
            f"read_words() returned {tuple(words.shape)}; expected {expected}. "
            "Set words_dim to the width that comes out."
        )
    half = TOKENS // 2
    fed = tokens[:, :-1].clone()
    fed[0, half:] = pad_id  # a text that ends there
    plain = module.decode(fed.clone(), memory.clone(), mask.clone()).hidden
    shared = module.decode(fed, memory, mask, words=words[:, :-1].clone()).hidden
    gap = different({"hidden": plain[0, :half]}, {"hidden": shared[0, :half]})
    gap = gap or different({"hidden": plain[1:]}, {"hidden": shared[1:]})
    return gap and (
        f"decode(..., words=read_words(tokens)) and decode(...): {gap}; expected the same. Let read_words() see "
        "no later tokens, and decode() continue from its argument `words`."
    )
