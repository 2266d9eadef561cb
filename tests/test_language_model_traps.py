"""What goes wrong in other code with a language model behind an image, planted here: each shows in a law that holds.

The laws compare a batch of questions of unequal length, right-padded, with transformers' own model, which reads each
sample alone and without padding.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F

from velm.data.bad_samples import BadSample
from velm.data.base import Record
from velm.data.batches import samples as samples_module
from velm.data.batches.collate import Collate
from velm.data.batches.samples import CaptionSamples
from velm.data.text.base import Tokenizer
from velm.data.text.bpe import BPETokenizer
from velm.data.text.template import PromptIds, Template
from velm.decoders import prefix as prefix_module
from velm.decoders.llm import LLMDecoder
from velm.decoders.prefix import PrefixDecoder
from velm.decoders.views import Sequence
from velm.generation import generate
from velm.losses.captioning import CaptioningLoss
from velm.model import build_model
from velm.model.model import VisionLanguageModel
from velm.outputs import Batch
from velm.pretrained.freezing import FrozenPartsInEval

SMALL = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8,
    "intermediate_size": 32, "max_position_embeddings": 160, "tie_word_embeddings": True, "initializer_range": 0.5,
}  # fmt: skip
RECORDS = [
    Record("a", None, ("what colour is the star",), ("deep red",)),
    Record("b", None, ("is it large",), ("no",), histories=((("which is it", "a dog"), ("where", "left of it")),)),
    Record("c", None, ("and",), ("a small blue circle",)),
]


@dataclasses.dataclass
class Case:
    """A small model, its tokenizer and a batch of `RECORDS` with random images."""

    model: VisionLanguageModel
    tokenizer: BPETokenizer
    batch: Batch

    @property
    def decoder(self) -> LLMDecoder:
        decoder = self.model.decoder
        assert isinstance(decoder, LLMDecoder)
        return decoder


def samples_of(tokenizer: Tokenizer, max_length: int = 80) -> CaptionSamples:
    template = Template("ask{text} reply:", tokenizer)
    return CaptionSamples(
        RECORDS, tokenizer=tokenizer, transform=None, max_length=max_length, template=template, all_turns=True,
        replace=False,
    )  # fmt: skip


def case(kind: str = "llama", **options: Any) -> Case:
    torch.manual_seed(0)
    tokenizer = BPETokenizer(vocab_size=300)
    tokenizer.train(text for r in RECORDS for text in (*r.texts, *r.targets, "ask", "reply:", "askwhat", "askis"))
    config = {
        "image_encoder": {"name": "cnn", "dim": 8},
        "decoder": {
            "name": f"llm/{kind}", "config": {**SMALL, **options.pop("config", {})}, "template": "x", **options
        },
        "vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id,
    }  # fmt: skip
    model = build_model(config).eval()
    items = samples_of(tokenizer)
    batch = Collate(tokenizer.pad_id)(list(items.__getitems__([0, 1, 2])))
    return Case(model, tokenizer, dataclasses.replace(batch, images=torch.randn(3, 3, 32, 32)))


def whole_model(decoder: LLMDecoder) -> Any:
    whole = transformers.AutoModelForCausalLM.from_config(decoder.model.config).eval()
    whole.base_model.load_state_dict(decoder.model.state_dict())
    whole.get_output_embeddings().load_state_dict(decoder.output_projection.state_dict())
    return whole


def alone(case: Case, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The prefix of one sample for transformers, float (1, P, D), and its target without bos."""
    words, prompt = whole_model(case.decoder).get_input_embeddings(), case.batch.prompt
    image = case.decoder.projector(case.model.encode_image(case.batch.images[row : row + 1]).features)[0]
    before, after = prompt.before[row][prompt.before_mask[row]], prompt.after[row][prompt.after_mask[row]]
    target = case.batch.target_tokens[row][case.batch.target_mask[row]][1:]
    return torch.cat([words(before)[None], image, words(after)[None]], dim=1), target


@torch.no_grad()
def law_of_the_loss(case: Case) -> None:
    """The loss is that of the answers and their eos, over each sample alone."""
    whole, total, count = whole_model(case.decoder), 0.0, 0
    eos = case.tokenizer.eos_id
    for row in range(3):
        prefix, target = alone(case, row)
        x = torch.cat([prefix, whole.get_input_embeddings()(target[:-1])[None]], dim=1)
        logits = whole(inputs_embeds=x, **mask_of(case, prefix.shape[1], x)).logits[0, prefix.shape[1] - 1 :]
        answers = [[*case.tokenizer.to_ids(text), eos] for text in spoken(RECORDS[row])]
        learnt = places_of(target.tolist(), answers)
        total += float(F.cross_entropy(logits[learnt], target[learnt], reduction="sum"))
        count += len(learnt)
    output = case.model(case.batch, {"decoder"})
    torch.testing.assert_close(float(CaptioningLoss()(output, case.batch)), total / count, rtol=1e-4, atol=0)


def spoken(record: Record) -> list[str]:
    return [*(answer for _, answer in record.history(0)), record.targets[0]]


def places_of(ids: list[int], parts: list[list[int]]) -> list[int]:
    """The places of the parts, one behind the other, in ids."""
    places, start = [], 0
    for part in parts:
        start = next(i for i in range(start, len(ids)) if ids[i : i + len(part)] == part)
        places += range(start, start + len(part))
        start += len(part)
    return places


def mask_of(case: Case, prefix: int, x: torch.Tensor) -> dict[str, torch.Tensor]:
    if not case.decoder.bidirectional:
        return {}
    seen = torch.ones(x.shape[1], x.shape[1]).tril()
    seen[:prefix, :prefix] = 1
    return {"attention_mask": torch.zeros(seen.shape).masked_fill(seen == 0, -torch.inf)[None, None]}


@torch.no_grad()
def law_of_the_search(case: Case) -> None:
    """Greedy answers are those of `generate` of transformers for each sample alone."""
    output = case.model(case.batch, {"decoder"})
    memory = case.model.memory(output.image, None, case.batch.prompt)
    ids = {"bos_id": case.tokenizer.bos_id, "eos_id": case.tokenizer.eos_id, "pad_id": case.tokenizer.pad_id}
    found = generate(case.decoder, *memory, **ids).tokens[:, 0]
    whole = whole_model(case.decoder)
    for row in range(3):
        prefix, _ = alone(case, row)
        config = {"max_new_tokens": found.shape[1], "do_sample": False, "eos_token_id": ids["eos_id"]}
        expected = whole.generate(inputs_embeds=prefix, pad_token_id=ids["pad_id"], **config)[0]
        assert found[row, : len(expected)].tolist() == expected.tolist()


def law_of_the_seam(case: Case) -> None:
    """A prompt is tokenized as the whole that it is."""
    template = Template("ask{text} reply:", case.tokenizer)
    assert template.prompt("what colour").after == case.tokenizer.to_ids("askwhat colour reply:")


def law_of_the_frozen(case: Case) -> None:
    """A frozen model has no dropout while the rest trains."""
    frozen = globals()["case"](trainable="projector", config={"attention_dropout": 0.5})
    frozen.model.train()
    once, again = (frozen.model(frozen.batch, {"decoder"}).decoder.hidden for _ in range(2))
    torch.testing.assert_close(once, again, atol=0, rtol=0)


def law_of_the_tied(case: Case) -> None:
    """One matrix is word vectors and output projection, trained as one."""
    assert case.decoder.output_projection.weight is case.decoder.embedding[0].weight


def law_of_truncation(case: Case) -> None:
    """What is trained on has an answer to learn; what has none is named."""
    items = samples_of(case.tokenizer, max_length=14)
    for sample in items.__getitems__([0, 1, 2]):
        assert isinstance(sample, BadSample) or len(sample.target) > 2


def trap(target: Any, name: str, value: Any) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setattr(target, name, value)


SAMPLE, PREDICTING, WHOLE, START = Template.sample, PrefixDecoder._predicting, PrefixDecoder._whole, PrefixDecoder.start
EMBED, START, SHIFT = LLMDecoder.embed_prefix, PrefixDecoder.start, VisionLanguageModel._shift


def without_eos(self: Template, *args: Any, **options: Any) -> Any:
    prompt, target, learnt = SAMPLE(self, *args, **options)
    ends = zip(target, learnt, strict=True)
    return prompt, target, [each and token != self.tokenizer.eos_id for token, each in ends]


def everything_learnt(self: Template, *args: Any, **options: Any) -> Any:
    prompt, target, learnt = SAMPLE(self, *args, **options)
    return prompt, target, [False, *[True] * (len(learnt) - 1)]


def without_first(self: LLMDecoder, *args: Any) -> Any:
    image, mask = EMBED(self, *args)
    return image[:, 1:], mask


def scaled(self: LLMDecoder, *args: Any) -> Any:
    image, mask = EMBED(self, *args)
    return image * 4, mask


def without_prefix(self: PrefixDecoder, *args: Any) -> Any:
    state = START(self, *args)
    content = torch.zeros(len(state.cache.layers[0].keys), state.prefix, dtype=torch.bool)
    content[:, 0] = True
    return dataclasses.replace(state, mask=content)


def with_bos(self: PrefixDecoder, tokens: torch.Tensor, prefix: torch.Tensor, mask: Any) -> Any:
    bos = self.embed_tokens(tokens[:, :1], 0)
    mask = None if mask is None else torch.cat([mask[:, 1:], mask.new_ones(len(mask), 1)], dim=1)
    return WHOLE(self, tokens, torch.cat([prefix[:, 1:], bos], dim=1), mask)


def learn_padding(self: VisionLanguageModel, batch: Batch) -> Any:
    inputs, labels = SHIFT(self, batch)
    return inputs, labels.masked_fill(~batch.target_mask[:, 1:], self.pad_id)


def cut_anyhow(prompt: PromptIds, target: list[int], learnt: list[bool], max_length: int | None) -> dict[str, Any]:
    room = max((max_length or 10**9) - len(prompt.before) - len(prompt.after), 0)
    return {"prompt": prompt, "target": target[:room], "learnt": learnt[:room]}


def causal(self: PrefixDecoder, x: torch.Tensor, prefix: int, content: Any, first: int = 0) -> Sequence:
    return Sequence(x.shape[1], 0, x.device, 0, content, first)


def untie(patch: pytest.MonkeyPatch) -> None:
    init = LLMDecoder.__init__

    @functools.wraps(init)
    def build(self: LLMDecoder, **options: Any) -> None:
        init(self, **options)
        self.output_projection.weight = nn.Parameter(self.output_projection.weight.detach().clone())

    patch.setattr(LLMDecoder, "__init__", build)


TRAPS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], Callable[[Case], None], dict[str, Any]]] = {
    "eos is never learnt": (trap(Template, "sample", without_eos), law_of_the_loss, {}),
    "questions are learnt": (trap(Template, "sample", everything_learnt), law_of_the_loss, {}),
    "padding is learnt": (trap(VisionLanguageModel, "_shift", learn_padding), law_of_the_loss, {}),
    "shifted twice": (
        trap(PrefixDecoder, "_predicting", lambda self, x, *args: PREDICTING(self, x.roll(1, dims=1), *args)),
        law_of_the_loss, {},
    ),
    "a position of the image is dropped": (trap(LLMDecoder, "embed_prefix", without_first), law_of_the_loss, {}),
    "the image is scaled as words are": (trap(LLMDecoder, "embed_prefix", scaled), law_of_the_loss, {}),
    "bos behind the prompt": (trap(PrefixDecoder, "_whole", with_bos), law_of_the_loss, {}),
    "logits read at padding": (trap(prefix_module, "_last", lambda hidden, mask: hidden[:, -1]), law_of_the_search, {}),
    "positions count padding": (
        trap(Sequence, "_places", lambda self: torch.arange(self.total, device=self.device)[None]), law_of_the_loss, {},
    ),
    "the cache is dropped at the prefill": (trap(PrefixDecoder, "start", without_prefix), law_of_the_search, {}),
    "a causal prefix": (trap(PrefixDecoder, "_view", causal), law_of_the_loss, {"prefix_attention": "bidirectional"}),
    "tokenized by pieces": (
        trap(BPETokenizer, "to_ids_of_parts", Tokenizer.to_ids_of_parts), law_of_the_seam, {},
    ),
    "a frozen model in training mode": (trap(FrozenPartsInEval, "train", nn.Module.train), law_of_the_frozen, {}),
    "the output projection is untied": (untie, law_of_the_tied, {}),
    "truncation eats the target": (trap(samples_module, "fit_answer", cut_anyhow), law_of_truncation, {}),
}  # fmt: skip


@pytest.mark.parametrize("name", TRAPS)
def test_a_trap_shows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, law, options = TRAPS[name]
    law(case(**options))  # holds
    with monkeypatch.context() as patch:
        plant(patch)
        with pytest.raises((AssertionError, StopIteration)):
            law(case(**options))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "gemma3_text", "smollm3", "gpt2"])
def test_laws_hold_for(kind: str) -> None:
    if kind == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 160, "initializer_range": 0.5}
        made = case(kind, config=sizes)
    else:
        made = case(kind, config={"sliding_window": 160} if kind == "gemma3_text" else {})
    law_of_the_loss(made)
    law_of_the_search(made)
