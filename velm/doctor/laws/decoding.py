"""Writing token by token against reading the whole sentence, and the captioning loss against a sum by hand."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from velm.decoders.base import Decoder
from velm.doctor.laws.compare import ROUNDING, gap, tell_rounding
from velm.doctor.laws.outcome import Skipped, Verdict
from velm.doctor.laws.subject import Subject
from velm.generation.config import GenerationConfig
from velm.generation.engine import evaluating, generate
from velm.losses.captioning import CaptioningLoss
from velm.outputs import IGNORE, VisionLanguageOutput

__all__ = ["check_decoding"]

WRITTEN = 12  # tokens of a caption


@torch.no_grad()
def check_decoding(subject: Subject) -> Verdict:
    """First the cache, then the loss, then the search: each rests on the one before."""
    task, batch = subject.task().double().eval(), subject.batch
    decoder = task.model.decoder
    if decoder is None:
        raise Skipped("the model has no decoder.")
    output = task.model(batch, {"decoder"})
    memory, memory_mask = task.model.memory(output.image, output.text)
    sentence, mask = batch.target_tokens, batch.target_mask
    if sentence is None or mask is None:
        sentence, mask = batch.tokens, batch.mask
    assert sentence is not None
    assert mask is not None
    predicted = mask[:, 1:]
    stepped = _stepped(decoder, sentence[:, :-1], memory, memory_mask)
    read = decoder.output_projection(decoder.decode(sentence[:, :-1], memory, memory_mask).hidden)
    differs = (stepped - read).abs().amax(2).masked_fill(~predicted, 0)
    figure = gap({"logits": read[predicted]}, {"logits": stepped[predicted]})
    if figure > ROUNDING:
        place = int((differs.amax(0) > ROUNDING * float(read[predicted].abs().max())).nonzero()[0])
        return Verdict(
            figure,
            f"the cache: stepping differs from reading the whole sentence, first at token {place} (bos is 0). Look at "
            f"positions, at what `step` keeps, and at what `start` computes from the memory.",
        )
    by_hand = _Sentences(stepped, sentence, predicted)
    for name, loss in task.losses.named().items():
        if isinstance(loss, CaptioningLoss):
            apart, fault = _loss(name, loss, output, float(loss(output, batch)), by_hand)
            figure = max(figure, apart)
            if fault is not None:
                return Verdict(apart, fault)
    fault = _written(decoder, memory, memory_mask, subject)
    return Verdict(figure, fault, tell_rounding(figure))


class _Sentences:
    """What stepping gives for the words of the batch.

    Args:
        logits: float (B, T - 1, V), of the token after each.
        sentence: int64 (B, T), bos ... eos.
        predicted: bool (B, T - 1), whether there is a next token.
    """

    def __init__(self, logits: Tensor, sentence: Tensor, predicted: Tensor) -> None:
        self.logits, self.sentence, self.predicted = logits, sentence, predicted

    def loss(self, smoothing: float, shift: int = 0) -> float:
        """The mean of -log p(y_t | y_<t); with a `shift`, of the word so many places behind that."""
        labels = self.sentence.roll(-1 - shift, 1)[:, :-1]
        return float(
            F.cross_entropy(self.logits[self.predicted], labels[self.predicted], label_smoothing=smoothing)
        )  # fmt: skip


def _loss(
    name: str, loss: CaptioningLoss, output: VisionLanguageOutput, trained: float, sentences: _Sentences
) -> tuple[float, str | None]:
    """How far the loss is from its formula, relative to it, and what may have gone wrong."""
    penalty = 0.0 if output.decoder.penalty is None else float(output.decoder.penalty)
    expected = sentences.loss(loss.label_smoothing) + penalty
    apart = abs(trained - expected) / abs(expected)
    if apart <= ROUNDING:
        return apart, None
    labels = sentences.sentence[:, 1:].masked_fill(~sentences.predicted, IGNORE)
    told = f"The loss {name!r} is {trained:.6g}; -log p of the next words by stepping is {expected:.6g} a token."
    if torch.equal(labels, output.labels):
        return apart, f"labels shifted, or a mean over other tokens, inside the loss. {told}"
    for shift in (-1, 1):
        if abs(sentences.loss(loss.label_smoothing, shift) + penalty - trained) <= ROUNDING * abs(trained):
            return apart, f"labels shifted by {shift:+d}: a word is to predict another than the next. {told}"
    return apart, f"labels shifted: those of the model are not the next words. {told}"


def _stepped(decoder: Decoder, tokens: Tensor, memory: Tensor, memory_mask: Tensor | None) -> Tensor:
    """Logits float (B, T, V) from feeding one token after another."""
    state, found = decoder.start(memory, memory_mask), []
    for token in tokens.unbind(1):
        logits, state = decoder.step(token, state)
        found.append(logits)
    return torch.stack(found, dim=1)


def _written(decoder: Decoder, memory: Tensor, memory_mask: Tensor | None, subject: Subject) -> str | None:
    """What the engine writes greedily against the most probable word after the whole prefix, read anew each time."""
    tokenizer = subject.data.tokenizer
    ids: dict[str, Any] = {"bos_id": tokenizer.bos_id, "eos_id": tokenizer.eos_id, "pad_id": tokenizer.pad_id}
    length = min(WRITTEN, subject.data.max_length, decoder.max_length or WRITTEN)
    config = GenerationConfig(max_length=length)
    written = generate(decoder, memory, memory_mask, config=config, **ids).tokens[:, 0]
    with evaluating(decoder):
        prefix = torch.full((len(memory), 1), tokenizer.bos_id)
        over = torch.zeros(len(memory), dtype=torch.bool)
        for _ in range(written.shape[1]):
            hidden = decoder(prefix, memory, memory_mask)[:, -1]
            token = decoder.output_projection(hidden).argmax(1).masked_fill(over, tokenizer.pad_id)
            prefix, over = torch.cat([prefix, token[:, None]], dim=1), over | (token == tokenizer.eos_id)
    different = (prefix[:, 1:] != written).any(1)
    if not different.any() and (over.all() or written.shape[1] == length):
        return None
    row = int(different.nonzero()[0]) if different.any() else int((~over).nonzero()[0])
    return (
        f"the search: {int(different.sum())} of {len(memory)} greedy captions are not the most probable words. Sample "
        f"{row}: {tokenizer.decode(written[row].tolist())!r}, and {tokenizer.decode(prefix[row].tolist())!r} anew."
    )
