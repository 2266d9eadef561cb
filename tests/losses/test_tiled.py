"""Alignment losses equal their formula on the whole matrix, value and gradient, for any tiles, matches and scale."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize

from velm.losses.alignment import ContrastiveLoss, SigmoidLoss, TripletLoss
from velm.losses.base import Loss
from velm.losses.tiled import tiles as tiled
from velm.losses.tiled.tiles import Matches, TiledScores, with_gradient
from velm.outputs import Batch, JointEmbeddings, VisionLanguageOutput

IDS = {
    "distinct": list(range(23)),
    "several": [i // 2 for i in range(23)],
    "scattered": [i % 7 for i in range(23)],
    "unequal": [0] * 12 + list(range(1, 12)),
    "one": [3] * 23,
    "single": [5],
}


def plain_contrastive(loss: ContrastiveLoss, similarity: Tensor, positive: Tensor) -> Tensor:
    """As the docstring's formula: each match against the negatives, on the whole matrix."""
    total = similarity.new_zeros(())
    for logits in (loss.logit_scale * similarity, loss.logit_scale * similarity.T):
        for i in range(len(logits)):
            against = torch.cat([logits[i][~positive[i]], logits.new_full((1,), -1e30)])
            per_match = torch.stack([torch.cat([m[None], against]).logsumexp(0) - m for m in logits[i][positive[i]]])
            total = total + per_match.mean()
    return total / (2 * len(similarity))


def plain_sigmoid(loss: SigmoidLoss, similarity: Tensor, positive: Tensor) -> Tensor:
    logits = loss.logit_scale * similarity + loss.bias
    return -logsigmoid(torch.where(positive, logits, -logits)).sum() / len(similarity)


def plain_triplet(loss: TripletLoss, similarity: Tensor, positive: Tensor) -> Tensor:
    match, total = similarity.diagonal(), similarity.new_zeros(())
    for scores in (similarity, similarity.T):
        hinge = (loss.margin + scores - match[:, None]).clamp(min=0).masked_fill(positive, 0)
        total = total + (hinge.amax(1) if loss.hardest else hinge.sum(1)).sum()
    return total / len(similarity)


CASES = {
    "contrastive": (ContrastiveLoss, plain_contrastive),
    "contrastive, scale 100": (lambda: ContrastiveLoss(temperature=0.01), plain_contrastive),
    "sigmoid": (SigmoidLoss, plain_sigmoid),
    "sigmoid, above 0": (lambda: SigmoidLoss(bias=5.0), plain_sigmoid),
    "triplet": (TripletLoss, plain_triplet),
    "triplet, all": (lambda: TripletLoss(hardest=False), plain_triplet),
}


TILED = [name for name in CASES if "triplet" not in name]


@pytest.fixture(autouse=True, params=[(4, 7), (64, 64)], ids=["small tiles", "one tile"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "tile_size", lambda _: request.param)


def embeddings(rows: int, dtype: torch.dtype = torch.float64, spread: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(rows)
    made = (torch.randn(rows, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    return [(spread * normalize(each, dim=1)).to(dtype).requires_grad_() for each in made]


def run(loss: Loss, image: Tensor, text: Tensor, ids: list[int]) -> Tensor:
    batch = Batch(images=None, tokens=None, mask=None, image_ids=torch.tensor(ids))
    value: Tensor = loss(VisionLanguageOutput(embeddings=JointEmbeddings(image, text)), batch)
    return value


def both(
    name: str, ids: list[int], dtype: torch.dtype, spread: float = 1.0
) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Value and gradients: of the loss, then of the formula on the whole matrix."""
    make, plain = CASES[name]
    loss, (image, text) = make().to(dtype), embeddings(len(ids), dtype, spread)
    inputs = (image, text, *loss.parameters())
    same = torch.tensor(ids)[:, None] == torch.tensor(ids)
    values = run(loss, image, text, ids), plain(loss, image @ text.T, same)
    ours, theirs = ((value, *torch.autograd.grad(value, inputs)) for value in values)
    return ours, theirs


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "exact"), [(torch.float32, 1e-6), (torch.float64, 1e-10)])
def test_tiles_are_the_whole_matrix(name: str, ids: list[int], dtype: torch.dtype, exact: float) -> None:
    if "100" in name and dtype == torch.float32:
        exact = 1e-5  # a logit of 100 is rounded to 4e-6, in the whole matrix as well
    ours, theirs = both(name, ids, dtype)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype
        torch.testing.assert_close(a, b, rtol=exact, atol=exact * max(1.0, float(b.detach().abs().max())))


@pytest.mark.parametrize("name", ["contrastive", "contrastive, scale 100", "sigmoid"])
@pytest.mark.parametrize("spread", [3.0, 30.0])
def test_long_embeddings_neither_overflow_nor_vanish(name: str, spread: float) -> None:
    # logits up to 90,000: rows far below the highest of their tile
    ours, theirs = both(name, IDS["several"], torch.float64, spread)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    assert all(each.isfinite().all() for each in both(name, IDS["several"], torch.float32, spread)[0])


def test_a_row_far_below_the_peak_of_its_tile_keeps_its_negatives() -> None:
    # float32: exp(-200) is 0, yet row 1 has to tell -100 from -101
    image = torch.tensor([[10.0, 0.0], [-10.0, 1.0], [10.0, 0.5]], requires_grad=True)
    text = torch.tensor([[10.0, 0.0], [10.0, 0.0], [10.0, -1.0]])
    loss = ContrastiveLoss(temperature=1.0, learnable=False)
    logits = image @ text.T
    whole = plain_contrastive(loss, logits, torch.eye(3, dtype=torch.bool))
    value = run(loss, image, text, [0, 1, 2])
    torch.testing.assert_close(value, whole)
    torch.testing.assert_close(*(torch.autograd.grad(each, image)[0] for each in (value, whole)))


@pytest.mark.parametrize("name", CASES)
def test_nan_stays_nan(name: str) -> None:
    image, text = embeddings(23, torch.float32)
    with torch.no_grad():
        image[3, 2] = math.nan
    assert run(CASES[name][0](), image, text, IDS["several"]).isnan()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_embeddings_get_a_gradient_of_their_kind(name: str, dtype: torch.dtype) -> None:
    image, text = (e.detach().to(dtype).requires_grad_() for e in embeddings(23))
    wide = image.detach().float().requires_grad_()
    loss = CASES[name][0]()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = run(loss, image, text, IDS["several"])
    of_wide = run(loss, wide, text.float(), IDS["several"])
    assert value.dtype == torch.float32
    assert value == of_wide
    (gradient,), (expected,) = torch.autograd.grad(value, image), torch.autograd.grad(of_wide, wide)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, expected.to(dtype))


@pytest.mark.parametrize("name", CASES)
def test_only_what_is_trained_gets_a_gradient(name: str) -> None:
    loss, (image, text) = CASES[name][0]().double(), embeddings(23)
    value = run(loss, image, text, IDS["several"])
    d_image, d_text = torch.autograd.grad(value, (image, text), retain_graph=True)
    value.backward()
    for parameter in loss.parameters():
        alone = run(loss, image.detach(), text.detach(), IDS["several"])
        torch.testing.assert_close(torch.autograd.grad(alone, parameter)[0], parameter.grad)
    loss.requires_grad_(False)
    for side, expected in ((0, d_image), (1, d_text)):
        inputs = [image.detach(), text.detach()]
        inputs[side].requires_grad_()
        run(loss, *inputs, IDS["several"]).backward()
        torch.testing.assert_close(inputs[side].grad, expected)
        assert inputs[1 - side].grad is None


@pytest.mark.parametrize("name", CASES)
def test_a_retained_graph_gives_the_same_again_and_scaled(name: str) -> None:
    loss, (image, text) = CASES[name][0]().double(), embeddings(23)
    value = run(loss, image, text, IDS["several"])
    inputs = (image, text, *loss.parameters())
    first = torch.autograd.grad(value, inputs, retain_graph=True)
    kept = [each.clone() for each in first]
    third = torch.autograd.grad(3 * value, inputs)
    for a, b, c in zip(first, kept, third, strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, 3 * b)


@pytest.mark.parametrize("name", CASES)
def test_without_gradient_the_value_is_the_same(name: str) -> None:
    loss, (image, text) = CASES[name][0](), embeddings(23, torch.float32)
    with torch.no_grad():
        quiet = run(loss, image, text, IDS["several"])
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, run(loss, image, text, IDS["several"]).detach())


@pytest.mark.parametrize("name", TILED)
def test_a_second_derivative_is_refused(name: str) -> None:
    loss, (image, text) = CASES[name][0](), embeddings(4, torch.float32)
    with pytest.raises(RuntimeError, match="no second derivative, which create_graph=True requests"):
        torch.autograd.grad(run(loss, image, text, [0, 1, 2, 3]), image, create_graph=True)


@pytest.mark.parametrize("ids", IDS.values(), ids=IDS.keys())
def test_matches_are_those_of_the_whole_comparison(ids: list[int]) -> None:
    columns = torch.tensor(ids)
    rows = columns[len(ids) // 3 :]
    places = Matches(rows, columns, (4, 7))
    found = torch.zeros(len(rows), len(columns), dtype=torch.bool)
    found[places.rows, places.columns] = True
    assert torch.equal(found, rows[:, None] == columns)
    assert len(places.rows) == int(found.sum()) == places.bounds[-1]
    image, text = torch.ones(len(rows), 1), torch.ones(len(columns), 1)
    for tile in TiledScores(image, text, rows, columns, (4, 7))():
        inside = torch.zeros_like(tile.scores, dtype=torch.bool)
        inside[tile.at] = True
        assert torch.equal(inside, found[tile.rows, tile.columns])


@pytest.mark.parametrize("name", TILED)
def test_no_tensor_has_a_number_a_pair(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "tile_size", lambda _: (16, 16))
    rows, largest = 160, [0]

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for each in result if isinstance(result, list | tuple) else [result]:
                if isinstance(each, Tensor):
                    largest[0] = max(largest[0], each.numel())
            return result

    image, text = embeddings(rows)
    with Watch():
        run(CASES[name][0](), image, text, list(range(rows))).backward()
    assert 0 < largest[0] <= rows * image.shape[1]


def test_what_is_computed_is_what_autograd_gets() -> None:
    def square(x: Tensor, needs_grad: tuple[bool, ...]) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        return x.square().sum(), (2 * x if needs_grad[0] else None,)

    x = torch.tensor([1.0, 2.0], requires_grad=True)
    with_gradient(square, x).backward()
    assert x.grad is not None
    assert x.grad.tolist() == [2.0, 4.0]
