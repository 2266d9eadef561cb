"""The captioning loss equals cross-entropy on the full logits, and never holds them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

from velm.errors import MissingOutputError
from velm.losses.captioning import CaptioningLoss, linear_cross_entropy
from velm.outputs import IGNORE, Batch, DecoderOutput, NextTokenPrediction, VisionLanguageOutput

B, T, D, V = 3, 7, 5, 11


def batch(count: Tensor | None = None) -> Batch:
    return Batch(images=None, tokens=None, mask=None, image_ids=torch.arange(B), target_count=count)


def output(bias: bool = True, dtype: torch.dtype = torch.float64, padding: bool = True) -> VisionLanguageOutput:
    torch.manual_seed(0)
    projection = nn.Linear(D, V, bias=bias, dtype=dtype)
    labels = torch.randint(V, (B, T))
    if padding:
        labels[0, 4:] = IGNORE
        labels[2, 1:] = IGNORE
    hidden = torch.randn(B, T, D, dtype=dtype, requires_grad=True)
    return VisionLanguageOutput(prediction=NextTokenPrediction(DecoderOutput(hidden), labels, projection))


def reference(out: VisionLanguageOutput, smoothing: float = 0.0) -> Tensor:
    logits = out.output_projection(out.decoder.hidden).flatten(0, 1)
    return cross_entropy(logits, out.labels.flatten(), ignore_index=IGNORE, label_smoothing=smoothing)


def gradients(value: Tensor, out: VisionLanguageOutput) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, [out.decoder.hidden, *out.output_projection.parameters()])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("chunk_size", [1, 4, 512])
def test_equals_cross_entropy_of_the_full_logits(bias: bool, smoothing: float, chunk_size: int) -> None:
    out = output(bias)
    value = CaptioningLoss(label_smoothing=smoothing, chunk_size=chunk_size)(out, batch())
    expected = reference(out, smoothing)
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip(gradients(value, out), gradients(expected, out), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-10, atol=1e-14)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    hidden, weight, bias = (
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in [(5, 3), (4, 3), (4,)]
    )
    labels = torch.tensor([0, 3, 1, 1, 2])
    assert torch.autograd.gradcheck(
        lambda h, w, b: linear_cross_entropy(h, w, b, labels, 0.1, 2), (hidden, weight, bias)
    )


def test_no_information_is_log_v() -> None:
    out = output()
    for parameter in out.output_projection.parameters():
        nn.init.zeros_(parameter)
    assert CaptioningLoss()(out, batch()).item() == pytest.approx(torch.tensor(V).log().item(), rel=1e-6)


def test_padding_changes_nothing() -> None:
    out = output()
    longer = output()
    noise = torch.randn(B, 2, D, dtype=torch.float64)
    longer.prediction.decoder = DecoderOutput(torch.cat([out.decoder.hidden, noise], 1))
    longer.prediction.labels = torch.cat([out.labels, torch.full((B, 2), IGNORE)], 1)
    assert torch.equal(CaptioningLoss()(out, batch()), CaptioningLoss()(longer, batch()))


def test_target_count_replaces_the_own_number_of_tokens() -> None:
    out = output()
    own = int((out.labels != IGNORE).sum())
    loss = CaptioningLoss()
    assert loss(out, batch(torch.tensor(2.0 * own))).item() == pytest.approx(loss(out, batch()).item() / 2)


def test_the_decoders_penalty_is_added() -> None:
    out = output()
    plain = CaptioningLoss()(out, batch())
    out.decoder.penalty = torch.tensor(0.25, dtype=torch.float64, requires_grad=True)
    value = CaptioningLoss()(out, batch())
    assert value.item() == pytest.approx(plain.item() + 0.25)
    assert torch.autograd.grad(value, out.decoder.penalty)[0] == 1


def test_nothing_to_predict_costs_nothing() -> None:
    out = output()
    out.prediction.labels = torch.full_like(out.labels, IGNORE)
    value = CaptioningLoss()(out, batch())
    assert value == 0
    assert all((g == 0).all() for g in gradients(value, out))


def test_bfloat16_autocast_is_near_full_precision() -> None:
    out = output(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = CaptioningLoss()(out, batch())
    assert value.dtype == torch.float32
    for ours, theirs in zip(gradients(value, out), gradients(reference(out), out), strict=True):
        assert ours.dtype == torch.float32
        assert torch.allclose(ours, theirs, atol=5e-3)


def test_two_backward_passes_of_one_graph() -> None:
    out = output()
    value = CaptioningLoss()(out, batch())
    first, second = (torch.autograd.grad(value * k, out.decoder.hidden, retain_graph=True)[0] for k in (1.0, 3.0))
    assert torch.allclose(3 * first, second)


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation made, forward and backward, in elements."""

    largest: int = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        made = [t.numel() for t in (result if isinstance(result, (tuple, list)) else [result]) if isinstance(t, Tensor)]
        self.largest = max([self.largest, *made])
        return result


def largest_tensor(tokens: int, loss: CaptioningLoss | None, vocabulary: int) -> int:
    """The largest tensor made, or all that autograd keeps, whichever is more."""
    projection = nn.Linear(4, vocabulary)
    decoder = DecoderOutput(torch.randn(2, tokens // 2, 4, requires_grad=True))
    labels = torch.randint(vocabulary, (2, tokens // 2))
    out = VisionLanguageOutput(prediction=NextTokenPrediction(decoder, labels, projection))
    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with _Largest() as mode, saved_tensors_hooks(keep, lambda tensor: tensor):
        value = reference(out) if loss is None else loss(out, batch())
        value.backward()
    return max(mode.largest, sum(kept))


def test_the_logits_of_all_tokens_are_never_held() -> None:
    tokens, vocabulary = 256, 400
    assert largest_tensor(tokens, None, vocabulary) >= tokens * vocabulary
    assert largest_tensor(tokens, CaptioningLoss(chunk_size=8), vocabulary) < tokens * vocabulary / 20


def test_chunks_are_bounded_in_bytes_whatever_the_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, vocabulary = 256, 400
    monkeypatch.setattr("velm.losses.captioning.CHUNK_BYTES", 8 * vocabulary * 4)
    assert largest_tensor(tokens, CaptioningLoss(), vocabulary) < tokens * vocabulary / 20


def test_without_gradient_none_is_made() -> None:
    out = output()
    with torch.no_grad():
        value = CaptioningLoss()(out, batch())
    assert value.item() == pytest.approx(reference(out).item())
    assert not value.requires_grad


def test_a_missing_decoder_is_named() -> None:
    with pytest.raises(MissingOutputError, match=r"CaptioningLoss needs decoder.*Give the model a decoder"):
        CaptioningLoss()(VisionLanguageOutput(), batch())


def test_hidden_states_and_labels_must_meet() -> None:
    out = output()
    out.prediction.labels = out.labels[:, 1:]
    with pytest.raises(ValueError, match=r"\(3, 7\) \(batch, tokens\) and the labels \(3, 6\)"):
        CaptioningLoss()(out, batch())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing 1.0 is not in"),
        ({"chunk_size": 0}, "chunk_size 0 is below 1"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ValueError, match=message):
        CaptioningLoss(**options)


def test_two_chunks_of_logits_never_exist_at_once() -> None:
    """The allocator's peak is one chunk and the gradients, however many chunks there are."""
    hidden, weight = torch.randn(96, 4, requires_grad=True), torch.randn(5000, 4)
    labels, chunk = torch.zeros(96, dtype=torch.long), 32 * 5000 * 4
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        linear_cross_entropy(hidden, weight, None, labels, chunk_size=32).backward()
    now = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert chunk < peak < 1.1 * chunk
