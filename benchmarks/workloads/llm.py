"""A language model behind an image, beside transformers' `LlavaForConditionalGeneration` with the same weights.

The language model has the sizes of SmolLM2-135M (30 layers of width 576, 9 heads over 3 of keys, tied vocabulary); an
image makes 196 positions; the image tower (CLIP's, 4 layers of width 192) is small and encodes on both sides.
Generation writes 32 tokens, none of which can end the text; `llm_step` has the vocabulary of Qwen2.5.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload
from benchmarks.inputs import BOS, EOS, PAD, Feed, feed
from benchmarks.peers import llava
from benchmarks.steps import run_of

IMAGES, TOKENS, VOCABULARY, STEP_VOCABULARY = 8, 32, 49_408, 151_936
SMOLLM: dict[str, Any] = {
    "hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "intermediate_size": 1536, "max_position_embeddings": 2048, "tie_word_embeddings": True,
}  # fmt: skip

Search = Callable[[Feed], Tensor]


def theirs(layers: int) -> Any:
    torch.manual_seed(0)
    model = llava.llava({**SMOLLM, "vocab_size": VOCABULARY, "num_hidden_layers": layers})
    for weight in model.model.language_model.layers.parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(
                weight, std=2.4 * weight.shape[1] ** -0.5
            )  # smaller ones write one token again and again
    return model.eval()


def ours(source: Any) -> Any:
    """VELM's model with the weights of `source`."""
    from velm.model import build_model

    layers = source.config.text_config.num_hidden_layers
    model = build_model(llava.our_config({**SMOLLM, "vocab_size": VOCABULARY, "num_hidden_layers": layers})).eval()
    model.load_state_dict(llava.from_llava(source.state_dict()))
    return model


def our_search(model: Any, beams: int) -> Search:
    from velm.generation import GenerationConfig, generate

    how = GenerationConfig(max_length=TOKENS, min_length=TOKENS, num_beams=beams)

    @torch.inference_mode()
    def run(batch: Feed) -> Tensor:
        memory = model.encode_image(batch.pixels).features
        return generate(model.decoder, memory, bos_id=BOS, eos_id=EOS, pad_id=PAD, config=how).tokens[:, 0]

    return run


def their_search(model: Any, beams: int) -> Search:
    dtype = next(model.parameters()).dtype
    how = {"num_beams": beams, "min_new_tokens": TOKENS, "max_new_tokens": TOKENS, "do_sample": False}
    how |= {"eos_token_id": EOS, "pad_token_id": PAD}

    @torch.inference_mode()
    def run(batch: Feed) -> Tensor:
        ids = llava.prompts(batch.tokens[:, :1])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": batch.floats.to(dtype)}
        return model.generate(**given, **how)[:, -TOKENS:]

    return run


def search(system: str, beams: int, settings: Settings) -> Run:
    to: dict[str, Any] = {"dtype": torch.bfloat16 if settings.precision == "bf16" else torch.float32}
    to["device"] = settings.device
    source = theirs(SMOLLM["num_hidden_layers"])
    model = ours(source).to(**to) if system == OURS else source.to(**to)
    run, batch = (our_search if system == OURS else their_search)(model, beams), feed(0, IMAGES, device=settings.device)
    return Run(lambda: run(batch).numel(), warm=1, steps=3)


def prove_search(settings: Settings, beams: int) -> list[Agreement]:
    """The same tokens from the same weights, in float64, on a few layers."""
    source = theirs(min(4, SMOLLM["num_hidden_layers"])).double()
    batch = feed(0, 2)
    mine = our_search(ours(source).double(), beams)(batch)
    other = their_search(source, beams)(batch)
    assert torch.equal(mine, other), (mine, other)
    parameters = sum(p.numel() for p in source.parameters())
    assert len(mine.unique()) > TOKENS // 4, mine
    return [
        Agreement("parameters", parameters, parameters, "loaded from theirs, none left over"),
        Agreement(
            f"tokens of two images, {beams} beams", "equal", "equal", f"{mine.numel()} tokens, float64, four layers"
        ),
    ]


def step(system: str, trainable: str, captions: int, recompute: bool, settings: Settings) -> Run:
    def make(number: int) -> Feed:
        return feed(number, IMAGES if captions == 1 else 2 * captions, device=settings.device, captions=captions)

    return run_of(trained(system, trainable, recompute, settings), make)


def trained(system: str, trainable: str, recompute: bool, settings: Settings) -> Any:
    from benchmarks.ours import trained

    language = {**SMOLLM, "vocab_size": STEP_VOCABULARY}
    if system == OURS:
        return trained(llava.our_config(language, trainable), settings, recompute)
    return llava.Llava(llava.llava(language), settings, trainable)


def prove_step(settings: Settings, trainable: str, captions: int) -> list[Agreement]:
    """Loss and gradients in float64 from equal weights, on two layers."""
    from benchmarks.ours import Trained
    from benchmarks.proofs import differ, in_double

    exact = Settings(precision="32", threads=settings.threads)
    language = {**SMOLLM, "vocab_size": STEP_VOCABULARY, "num_hidden_layers": 2}
    torch.manual_seed(0)
    other = llava.Llava(llava.llava(language), exact, trainable)
    mine = Trained(llava.our_config(language, trainable), exact)
    mine.model.load_state_dict(llava.from_llava(other.model.state_dict()))
    mine.model.double(), other.model.double()
    batch = in_double(feed(0, 2 * captions, captions=captions))
    loss, expected = mine.loss(batch), other.loss(batch)
    lines = [Agreement("loss", loss.item(), expected.item(), "float64, equal weights, two layers")]
    assert differ(loss, expected) < 1e-6, lines  # transformers computes it in float32
    loss.backward(), expected.backward()
    named = (model.named_parameters(remove_duplicate=False) for model in (mine.model, other.model))  # tied ones twice
    own, gradients = ({n: p.grad for n, p in each if p.grad is not None} for each in named)
    gradients = llava.from_llava(gradients)
    assert set(own) == set(gradients), set(own) ^ set(gradients)
    worst = max(differ(own[name], gradients[name]) for name in own)
    assert worst < 1e-6, worst
    return [*lines, Agreement(f"largest relative difference of {len(own)} gradients", worst, 0.0)]


def generation(beams: int) -> Workload:
    return Workload(
        name="llm_generate" if beams == 1 else f"llm_beams{beams}",
        title=f"8 images to 8 texts of 32 tokens by a language model of SmolLM2-135M's size behind 196 positions, "
        f"{'greedy' if beams == 1 else f'{beams} beams'}",
        unit="tokens",
        systems={system: partial(search, system, beams) for system in (OURS, "transformers")},
        against={"transformers": OURS},
        prove=partial(prove_search, beams=beams),
        repeats=3 if beams == 1 else 2,
    )


def training(trainable: str, captions: int = 1, recompute: bool = False) -> Workload:
    name = "llm_step" if trainable == "all" else f"llm_step_{trainable}"
    name = f"{name}_recompute" if recompute else name
    part = "all but the image tower" if trainable == "all" else "the projector"
    how = ", VELM with model.checkpoint_blocks" if recompute else ""
    samples = f"{IMAGES} pairs" if captions == 1 else f"2 images with {captions} captions each"
    return Workload(
        name=name if captions == 1 else f"{name}_captions{captions}",
        title=f"A language model of SmolLM2-135M's size with 151,936 tokens behind 196 positions, {samples}, "
        f"{part} trained: forward, backward, AdamW{how}",
        unit="samples",
        systems={system: partial(step, system, trainable, captions, recompute) for system in (OURS, "transformers")},
        against={"transformers": OURS},
        prove=partial(prove_step, trainable=trainable, captions=captions),
        repeats=3,
        notes=("Captions have the lengths of Flickr8k's and are padded to the longest of the batch on both sides.",),
    )


WORKLOADS = [
    *(generation(beams) for beams in (1, 5)),
    *(training(part) for part in ("all", "projector")),
    training("projector", captions=5),
    training("all", recompute=True),
]
