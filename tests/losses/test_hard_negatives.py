"""The contrastive loss with hard negatives equals its formula by brute force, in value and in all gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from velm.losses.alignment import ContrastiveLoss, SigmoidLoss
from velm.losses.base import Loss
from velm.losses.tiled import tiles
from velm.losses.weighted import build_losses
from velm.negatives import NegativeEmbeddings
from velm.outputs import Batch, JointEmbeddings, VisionLanguageOutput

ROWS, NEGATIVES, WIDTH = 13, 3, 5
IDS = {
    "distinct": list(range(ROWS)),
    "several": [i // 3 for i in range(ROWS)],
    "scattered": [i % 4 for i in range(ROWS)],
    "one": [7] * ROWS,  # the hard negatives are the only ones
}


@pytest.fixture(autouse=True, params=[(4, 7), (64, 64)], ids=["small tiles", "one tile"])
def tile_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "tile_size", lambda _: request.param)


def embeddings(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image (B, E), text (B, E), hard negatives (B, K, E), and which of these count (B, K): rows with 0 to K."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, WIDTH), (ROWS, WIDTH), (ROWS, NEGATIVES, WIDTH))
    made = [normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1) for shape in shapes]
    image, text, negative = (each.to(dtype).requires_grad_() for each in made)
    return image, text, negative, torch.arange(NEGATIVES) < (torch.arange(ROWS) % (NEGATIVES + 1))[:, None]


def run(loss: Loss, image: Tensor, text: Tensor, ids: list[int], negatives: NegativeEmbeddings | None) -> Tensor:
    output = VisionLanguageOutput(embeddings=JointEmbeddings(image, text, negatives))
    value: Tensor = loss(output, Batch(images=None, tokens=None, mask=None, image_ids=torch.tensor(ids)))
    return value


def brute_force(scale: Tensor, image: Tensor, text: Tensor, negative: Tensor, valid: Tensor, ids: list[int]) -> Tensor:
    """The formula of docs/models.md, one exponential at a time."""
    total = image.new_zeros(())
    for i in range(len(ids)):
        matches = [j for j in range(len(ids)) if ids[j] == ids[i]]
        others = [j for j in range(len(ids)) if ids[j] != ids[i]]
        own = [(scale * image[i] @ negative[i, k]).exp() for k in range(NEGATIVES) if valid[i, k]]
        by_row = sum([(scale * image[i] @ text[j]).exp() for j in others] + own, image.new_zeros(()))
        by_column = sum([(scale * image[j] @ text[i]).exp() for j in others], image.new_zeros(()))
        for p in matches:
            row, column = (scale * image[i] @ text[p]).exp(), (scale * image[p] @ text[i]).exp()
            total = total - ((row / (row + by_row)).log() + (column / (column + by_column)).log()) / len(matches)
    return total / (2 * len(ids))


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
@pytest.mark.parametrize("temperature", [0.5, 0.07, 0.02])
def test_value_and_gradients_are_those_of_the_formula(ids: list[int], temperature: float) -> None:
    loss = ContrastiveLoss(temperature=temperature, hard_negatives=NEGATIVES).double()
    image, text, negative, valid = embeddings()
    inputs = (image, text, negative, loss.log_scale)
    values = (
        run(loss, image, text, ids, NegativeEmbeddings(negative, valid)),
        brute_force(loss.logit_scale, image, text, negative, valid, ids),
    )
    ours, theirs = ((value, *torch.autograd.grad(value, inputs)) for value in values)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    assert not ours[3][~valid].any()  # a missing negative gets no gradient
    assert ours[3][valid].any()


def test_numeric_gradients() -> None:
    loss = ContrastiveLoss(temperature=0.3, hard_negatives=NEGATIVES).double()
    image, text, negative, valid = embeddings()

    def value(image: Tensor, text: Tensor, negative: Tensor, log_scale: Tensor) -> Tensor:
        with torch.no_grad():
            loss.log_scale.copy_(log_scale)
        return run(loss, image, text, IDS["several"], NegativeEmbeddings(negative, valid)) + 0 * log_scale

    assert torch.autograd.gradcheck(value, (image, text, negative, torch.tensor(1.0, dtype=torch.float64)))


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_hard_negative_is_todays_loss_bit_for_bit(ids: list[int], dtype: torch.dtype) -> None:
    """Where K is 0, where the batch has none, and where all are missing."""
    image, text, negative, valid = embeddings(dtype)
    none, missing = ContrastiveLoss().to(dtype), NegativeEmbeddings(negative, torch.zeros_like(valid))
    several = ContrastiveLoss(hard_negatives=NEGATIVES).to(dtype)
    cases = [(none, None), (none, NegativeEmbeddings(negative, valid)), (several, None), (several, missing)]
    found = []
    for loss, negatives in cases:
        value = run(loss, image, text, ids, negatives)
        found.append((value, *torch.autograd.grad(value, (image, text, loss.log_scale))))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.equal(a, b)


def test_by_hand() -> None:
    # two images at scale 2: matches at 1, negatives at 0; the hard negative of image 0 at 1, of image 1 none
    loss, eye = ContrastiveLoss(temperature=0.5, hard_negatives=1), torch.eye(2)
    negatives = NegativeEmbeddings(torch.tensor([[[1.0, 0.0]], [[1.0, 0.0]]]), torch.tensor([[True], [False]]))
    value = run(loss, eye, eye, [0, 1], negatives)
    easy = math.log(1 + math.exp(-2))
    assert value.item() == pytest.approx((math.log(2 + math.exp(-2)) + 3 * easy) / 4, abs=1e-6)


def test_half_precision_and_no_gradient_give_the_same_value() -> None:
    loss, (image, text, negative, valid) = ContrastiveLoss(hard_negatives=NEGATIVES), embeddings(torch.float32)
    halves = [each.detach().bfloat16().requires_grad_() for each in (image, text, negative)]
    wide = [each.detach().float().requires_grad_() for each in halves]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = run(loss, *halves[:2], IDS["several"], NegativeEmbeddings(halves[2], valid))
    expected = run(loss, *wide[:2], IDS["several"], NegativeEmbeddings(wide[2], valid))
    assert value.dtype == torch.float32
    assert value == expected
    for a, b in zip(torch.autograd.grad(value, halves), torch.autograd.grad(expected, wide), strict=True):
        torch.testing.assert_close(a, b.bfloat16())
    with torch.no_grad():
        assert run(loss, *wide[:2], IDS["several"], NegativeEmbeddings(wide[2], valid)) == expected


def test_only_the_negatives_may_be_trained() -> None:
    loss, (image, text, negative, valid) = ContrastiveLoss(hard_negatives=NEGATIVES).double(), embeddings()
    whole = run(loss, image, text, IDS["several"], NegativeEmbeddings(negative, valid))
    (expected,) = torch.autograd.grad(whole, negative)
    loss.requires_grad_(False)
    alone = run(loss, image.detach(), text.detach(), IDS["several"], NegativeEmbeddings(negative, valid))
    torch.testing.assert_close(torch.autograd.grad(alone, negative)[0], expected)


def test_losses_know_how_many_hard_negatives_they_read() -> None:
    assert build_losses({"contrastive": {"hard_negatives": 2}, "sigmoid": {}}).hard_negatives == 2
    assert build_losses({"sigmoid": {}}).hard_negatives == SigmoidLoss().hard_negatives == 0


def test_a_negative_number_of_hard_negatives_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hard_negatives -1 is below 0: it is a number of captions; 0 adds none."):
        ContrastiveLoss(hard_negatives=-1)
