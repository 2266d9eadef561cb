"""Laws of the alignment losses, and values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from velm.errors import MissingOutputError
from velm.losses.alignment import ContrastiveLoss, SigmoidLoss, TripletLoss
from velm.losses.base import Loss
from velm.outputs import Batch, JointEmbeddings, VisionLanguageOutput

LOSSES: list[type[Loss]] = [ContrastiveLoss, SigmoidLoss, TripletLoss]


def run(loss: Loss, image: Tensor, text: Tensor, ids: list[int] | Tensor | None = None) -> Tensor:
    ids = torch.arange(len(image)) if ids is None else torch.as_tensor(ids)
    batch = Batch(images=None, tokens=None, mask=None, image_ids=ids)
    value: Tensor = loss(VisionLanguageOutput(embeddings=JointEmbeddings(image, text)), batch)
    return value


def embeddings(rows: int, dim: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [normalize(torch.randn(rows, dim, generator=generator, dtype=dtype), dim=1) for _ in range(2)]


def of_similarities(loss: Loss, similarity: Tensor, ids: list[int]) -> Tensor:
    """The loss of a similarity matrix as it stands: images are the axes, texts the columns."""
    return run(loss, torch.eye(len(similarity), dtype=similarity.dtype), similarity.T, ids)


@pytest.mark.parametrize("kind", LOSSES)
def test_shuffling_pairs_leaves_the_value(kind: type[Loss]) -> None:
    image, text = embeddings(6)
    ids = torch.tensor([0, 1, 1, 2, 3, 3])
    order = torch.randperm(6, generator=torch.Generator().manual_seed(1))
    loss = kind()
    assert torch.allclose(run(loss, image, text, ids), run(loss, image[order], text[order], ids[order]))


@pytest.mark.parametrize("kind", LOSSES)
def test_images_and_texts_may_change_places(kind: type[Loss]) -> None:
    image, text = embeddings(6)
    loss = kind()
    assert torch.allclose(run(loss, image, text, [0, 1, 1, 2, 3, 3]), run(loss, text, image, [0, 1, 1, 2, 3, 3]))


@pytest.mark.parametrize("kind", LOSSES)
def test_a_match_is_never_pushed_away(kind: type[Loss]) -> None:
    ids = torch.tensor([0, 0, 0, 1, 2, 2])
    same = ids[:, None] == ids
    for seed in range(5):
        image, text = embeddings(6, seed=seed)
        similarity = (image @ text.T).requires_grad_()
        of_similarities(kind(), similarity, ids.tolist()).backward()
        assert similarity.grad is not None
        assert (similarity.grad[same] <= 0).all()
        assert (similarity.grad[~same] >= 0).all()


@pytest.mark.parametrize("kind", LOSSES)
def test_one_image_only_has_a_finite_gradient(kind: type[Loss]) -> None:
    for ids in ([0], [0, 0, 0]):
        image, text = embeddings(len(ids), dtype=torch.float32)
        image.requires_grad_()
        value = run(kind(), image, text, ids)
        value.backward()
        assert value.isfinite()
        assert image.grad is not None
        assert image.grad.isfinite().all()
        if kind is not SigmoidLoss:  # nothing to tell apart, nothing to pay
            assert value == 0


@pytest.mark.parametrize("kind", LOSSES)
def test_gradient_is_right_in_float64(kind: type[Loss]) -> None:
    image, text = (e.requires_grad_() for e in embeddings(5, dim=3))
    loss = kind().double()
    scalars = tuple(loss.parameters())

    def value(image: Tensor, text: Tensor, *_: Tensor) -> Tensor:
        return run(loss, image, text, [0, 1, 1, 2, 3])

    assert torch.autograd.gradcheck(value, (image, text, *scalars))


@pytest.mark.parametrize("kind", LOSSES)
def test_half_precision_embeddings_are_compared_in_full(kind: type[Loss]) -> None:
    image, text = (e.bfloat16() for e in embeddings(6))
    loss = kind()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = run(loss, image, text)
    assert value.dtype == torch.float32
    assert torch.allclose(value, run(loss, image.float(), text.float()))


@pytest.mark.parametrize("kind", LOSSES)
def test_missing_embeddings_are_named(kind: type[Loss]) -> None:
    batch = Batch(images=None, tokens=None, mask=None, image_ids=torch.arange(2))
    with pytest.raises(MissingOutputError, match=r"needs image_embeds, text_embeds.*an image_encoder and a text_enc"):
        kind()(VisionLanguageOutput(), batch)


@pytest.mark.parametrize("kind", LOSSES)
def test_every_row_needs_its_image(kind: type[Loss]) -> None:
    with pytest.raises(ValueError, match=r"got image_embeds 2, text_embeds 2, image_ids 3\. Gather all three"):
        run(kind(), torch.eye(2), torch.eye(2), [0, 1, 2])


@pytest.mark.parametrize("rows", [1, 4, 9])
def test_contrastive_is_log_b_at_no_information(rows: int) -> None:
    same = normalize(torch.ones(rows, 3), dim=1)
    assert run(ContrastiveLoss(), same, same).item() == pytest.approx(math.log(rows), abs=1e-6)


def test_contrastive_is_clips_on_distinct_images() -> None:
    image, text = embeddings(7)
    logits = image @ text.T / 0.07
    clip = (cross_entropy(logits, torch.arange(7)) + cross_entropy(logits.T, torch.arange(7))) / 2
    loss = ContrastiveLoss(temperature=0.07).double()
    assert run(loss, image, text).item() == pytest.approx(clip.item(), rel=1e-6)


def test_contrastive_by_hand() -> None:
    # rows:    s_00 = 1 and s_11 = 1 are matches, everything else is 0; scale 2; distinct images
    value = of_similarities(ContrastiveLoss(temperature=0.5), torch.eye(2), [0, 1])
    assert value.item() == pytest.approx(math.log(1 + math.exp(-2)), abs=1e-6)
    # images 0 0 1: rows 0 and 1 have matches at 1 and 0 and a negative at 0; row 2 a match, two negatives
    value = of_similarities(ContrastiveLoss(temperature=0.5), torch.eye(3), [0, 0, 1])
    easy, even = math.log(1 + math.exp(-2)), math.log(2)
    alone = math.log(1 + 2 * math.exp(-2))
    assert value.item() == pytest.approx((2 * (easy + even) / 2 + alone) / 3, abs=1e-6)


def test_contrastive_floor_is_zero_with_several_captions() -> None:
    embeds = torch.eye(3)[[0, 0, 1, 2, 2]]
    assert run(ContrastiveLoss(temperature=0.01), embeds, embeds, [0, 0, 1, 2, 2]).item() < 1e-6


def test_contrastive_scale_stops_at_its_bound_and_comes_back() -> None:
    image, text = embeddings(4, dtype=torch.float32)
    loss = ContrastiveLoss(max_scale=20.0)
    with torch.no_grad():
        loss.log_scale.fill_(5.0)
    run(loss, image, text).backward()
    assert loss.logged()["logit_scale"] == pytest.approx(20.0, rel=1e-5)
    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad > 0


def test_two_forward_passes_before_one_backward() -> None:
    loss = ContrastiveLoss()
    first, second = (run(loss, *embeddings(4, seed=seed, dtype=torch.float32)) for seed in (0, 1))
    (first + second).backward()
    assert loss.log_scale.grad is not None


def test_contrastive_scale_can_be_fixed() -> None:
    loss = ContrastiveLoss(temperature=0.1, learnable=False)
    assert not [p for p in loss.parameters() if p.requires_grad]
    assert loss.logit_scale.item() == pytest.approx(10.0, rel=1e-6)
    assert "log_scale" in loss.state_dict()


def test_sigmoid_by_hand() -> None:
    # scale 10, bias -10: a match at 1 has logit 0, a non-match at 0 has logit -10
    value = of_similarities(SigmoidLoss(), torch.eye(3), [0, 1, 2])
    assert value.item() == pytest.approx((3 * math.log(2) + 6 * math.log1p(math.exp(-10))) / 3, rel=1e-5)
    # the same with images 0 0 1: the two pairs across are matches too, at logit -10
    value = of_similarities(SigmoidLoss(), torch.eye(3), [0, 0, 1])
    expected = 3 * math.log(2) + 2 * math.log1p(math.exp(10)) + 4 * math.log1p(math.exp(-10))
    assert value.item() == pytest.approx(expected / 3, rel=1e-5)


def test_sigmoid_logs_its_scalars() -> None:
    logged = SigmoidLoss(temperature=0.2, bias=-3.0).logged()
    assert {name: pytest.approx(float(value)) for name, value in logged.items()} == {
        "logit_scale": 5.0,
        "logit_bias": -3.0,
    }


def test_triplet_by_hand() -> None:
    similarity = torch.tensor([[0.9, 0.8, 0.1], [0.3, 0.5, 0.4], [0.0, 0.2, 0.6]])
    # images: max over 0.1 0   | 0.0 0.1 | 0 0      texts: 0 0 | 0.5 0.0 | 0 0 (0.4 + 0.2 - 0.6)
    assert of_similarities(TripletLoss(), similarity, [0, 1, 2]).item() == pytest.approx(0.7 / 3, abs=1e-6)
    # margin 0.4 and all negatives: images 0.3 + (0.2 + 0.3) + 0, texts 0 + (0.7 + 0.1) + 0.2
    loss = TripletLoss(margin=0.4, hardest=False)
    assert of_similarities(loss, similarity, [0, 1, 2]).item() == pytest.approx(1.8 / 3, abs=1e-6)
    # images 0 and 1 are the same: 0.8 is a match; texts: row 1 keeps 0.2 + 0.2 - 0.5 < 0
    assert of_similarities(TripletLoss(), similarity, [0, 0, 1]).item() == pytest.approx(0.1 / 3, abs=1e-6)


def test_triplet_pays_two_margins_at_no_information() -> None:
    same = normalize(torch.ones(4, 3), dim=1)
    assert run(TripletLoss(margin=0.3), same, same).item() == pytest.approx(0.6, abs=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveLoss(temperature=0.0), "temperature 0.0 is not above 0"),
        (lambda: SigmoidLoss(temperature=-1.0), "temperature -1.0 is not above 0"),
        (lambda: ContrastiveLoss(max_scale=0.0), "max_scale 0.0 is not above 0"),
        (lambda: ContrastiveLoss(temperature=0.001), "scale of 1000, above max_scale 100"),
        (lambda: TripletLoss(margin=-0.1), "margin -0.1 is below 0"),
    ],
)
def test_bad_options_are_refused(make: type[Loss], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("requires", "expected"),
    [({"image_embeds", "text_embeds"}, True), ({"image_embeds"}, True), ({"decoder", "text_embeds"}, True),
     ({"decoder"}, False), ((), False)],
)  # fmt: skip
def test_a_loss_of_one_side_aligns_as_well(requires: set[str], expected: bool) -> None:
    class Custom(TripletLoss):
        pass

    Custom.requires = frozenset(requires)
    assert Custom().aligns is expected
