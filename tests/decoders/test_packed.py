"""Laws of texts behind one prefix: hidden states and gradients are those of texts with a prefix each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.decoders.test_llm import CONFIGS, build
from velm.encoders.vit import ViTEncoder
from velm.model import VisionLanguageModel
from velm.outputs import Batch
from velm.prompt import Prompt, text_follows

ROWS = torch.tensor([0, 0, 3, 1, 3, 3, 0])  # memory 2 has no text
BEFORE = torch.tensor([[5, 6], [5, 6], [5, 6], [5, 6], [5, 6], [5, 6], [5, 6]])


def prompts(read: bool) -> Prompt:
    """The same tokens before the image; behind it 0 to 3 of each text."""
    lengths = torch.tensor([3, 1, 2, 0, 3, 2, 1])[:, None]
    after = torch.randint(4, 32, (7, 3)) if read else torch.zeros(7, 0, dtype=torch.int64)
    return Prompt(BEFORE, torch.ones_like(BEFORE, dtype=torch.bool), after, torch.arange(after.shape[1]) < lengths)


CASES = [("causal", "padded"), ("causal", "prompts"), ("bidirectional", "regular")]


@pytest.mark.parametrize(
    ("name", "attention", "case"),
    [(name, *case) for name in CONFIGS for case in CASES]
    + [("llama", "causal", "regular"), ("gemma3_text", "causal", "image last"), ("gpt2", "bidirectional", "whole")],
)
def test_equals_a_prefix_for_each_text(name, attention, case):
    torch.manual_seed(0)
    template = {"prompts": "{image}{text}", "image last": "Describe {image}"}.get(case)
    decoder = build(name, prefix_attention=attention, template=template)
    assert decoder.shares_memory
    rows = torch.tensor([0, 0, 1, 1, 2, 2]) if case == "regular" else ROWS
    memory = torch.randn(4, 5, 12)[: int(rows.max()) + 1].requires_grad_()
    mask = torch.arange(5) < torch.tensor([[5], [3], [4], [2]]) if case == "padded" else None
    prompt = None if template is None else prompts(case == "prompts")
    tokens = torch.randint(4, 32, (len(rows), 6))

    shared = decoder.decode_shared(tokens, memory, mask, rows, 4 if case == "padded" else 3, prompt).hidden
    own, own_mask = memory[rows], None if mask is None else mask[rows]
    if prompt is not None:
        own, own_mask = decoder.read_prompt(own, own_mask, prompt)
    expected = decoder(tokens, own, own_mask)
    torch.testing.assert_close(shared, expected, atol=1e-5, rtol=0)

    weights, parameters = torch.randn_like(shared), [memory, *decoder.parameters()]
    gradients = [
        torch.autograd.grad((hidden * weights).sum(), parameters, allow_unused=True) for hidden in (shared, expected)
    ]
    for ours, theirs in zip(*gradients, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            torch.testing.assert_close(ours, theirs, atol=2e-5 * max(1.0, theirs.abs().max().item()), rtol=0)


def test_texts_before_the_image_are_not_shared():
    assert text_follows(None)
    assert text_follows("chat")
    assert text_follows("Question: {text} Answer:")
    assert text_follows("Describe {image}")
    assert not text_follows("{text} {image}")
    assert not build(template="{text} {image}").shares_memory
    assert not build(template="{image}{text}", prefix_attention="bidirectional").shares_memory


def test_a_context_holds_the_longest_text_and_not_their_sum():
    decoder = build("gpt2")
    length = decoder.places - 5
    tokens = torch.randint(4, 32, (3, length))
    hidden = decoder.decode_shared(tokens, torch.randn(1, 5, 12), None, torch.zeros(3, dtype=torch.int64), 3).hidden
    assert hidden.shape[:2] == (3, length)


@pytest.mark.parametrize("template", [None, "{image}{text}"])
def test_a_training_step_reads_each_image_once(template):
    """Also in micro-batches; the loss and its gradients are those of an image for each text."""
    model = VisionLanguageModel(
        image_encoder=ViTEncoder(patch_size=8, dim=12, depth=1, heads=2), text_encoder=None,
        decoder=build(template=template), pad_id=3,
    )  # fmt: skip
    rows = torch.tensor([0, 0, 1, 1, 1])
    images, tokens = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8), torch.randint(4, 32, (5, 6))
    prompt = None if template is None else prompts(True).select(torch.arange(5))
    each = Batch(images[rows], tokens, torch.ones_like(tokens, dtype=torch.bool), rows, prompt=prompt)
    shared = replace(each, images=images, image_rows=rows, sharing=3)
    read = []
    model.decoder.projector.register_forward_hook(lambda module, args, output: read.append(len(args[0])))
    hidden = [model(batch).decoder.hidden for batch in (each, shared)]
    assert read == [5, 2]
    torch.testing.assert_close(*hidden, atol=1e-5, rtol=0)
    parts = torch.cat([model(part).decoder.hidden for part in shared.micro_batches(3)])
    torch.testing.assert_close(parts, hidden[0], atol=1e-5, rtol=0)
    parameters = list(model.decoder.projector.parameters())
    for ours, theirs in zip(*(torch.autograd.grad(h.square().sum(), parameters) for h in hidden), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
