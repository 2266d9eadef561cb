"""Distillation: open_clip's relations, CLIP-KD's features, gradients, and every message."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import mse_loss, normalize

from velm.errors import ConfigError, MissingOutputError
from velm.losses.distillation import DistillationLoss
from velm.losses.tiled import tiles
from velm.losses.weighted import build_losses
from velm.outputs import Batch, JointEmbeddings, TeacherEmbeddings, VisionLanguageOutput


def embeddings(rows: int = 7, width: int = 5, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [normalize(torch.randn(rows, width, generator=generator, dtype=dtype), dim=1) for _ in range(2)]


def loss_of(loss: DistillationLoss, student: list[Tensor], teacher: TeacherEmbeddings | None) -> Tensor:
    batch = Batch(None, None, None, torch.arange(len(student[0])), teacher=teacher)
    return loss(VisionLanguageOutput(embeddings=JointEmbeddings(*student)), batch)


@pytest.mark.parametrize("scale", [14.0, 100.0])
def test_relations_and_their_gradients_are_those_of_open_clip(scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    open_clip = pytest.importorskip("open_clip", reason="pip install 'velm[bench]'")
    monkeypatch.setattr(tiles, "tile_size", lambda _: (2, 3))
    student = [each.requires_grad_() for each in embeddings()]
    teacher = embeddings(width=4, seed=1)
    loss = DistillationLoss(teacher="a.ckpt", feature=0, temperature=1 / scale).double()
    ours = loss_of(loss, student, TeacherEmbeddings(*teacher, scale=30.0))
    log_scale = loss.log_scale.detach().clone().requires_grad_()
    _, theirs = open_clip.DistillClipLoss()(*student, log_scale.exp(), *teacher, torch.tensor(30.0))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)
    found = torch.autograd.grad(ours, [*student, loss.log_scale])
    expected = torch.autograd.grad(theirs, [*student, log_scale])
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


def test_single_precision_agrees_to_1e6() -> None:
    open_clip = pytest.importorskip("open_clip", reason="pip install 'velm[bench]'")
    student = [each.requires_grad_() for each in embeddings(64, 16, dtype=torch.float32)]
    teacher = embeddings(64, 8, seed=1, dtype=torch.float32)
    loss = DistillationLoss(teacher="a.ckpt", feature=0)
    ours = loss_of(loss, student, TeacherEmbeddings(*teacher, scale=20.0))
    _, theirs = open_clip.DistillClipLoss()(*student, loss.logit_scale.detach(), *teacher, torch.tensor(20.0))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    for one, other in zip(torch.autograd.grad(ours, student), torch.autograd.grad(theirs, student), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_features_are_those_of_clip_kd_with_and_without_a_map() -> None:
    student, teacher = [each.requires_grad_() for each in embeddings()], embeddings(seed=1)
    loss = DistillationLoss(teacher="a.ckpt", relation=0, feature=2000.0)
    assert not list(loss.parameters())
    assert not loss.logged()
    ours = loss_of(loss, student, TeacherEmbeddings(*teacher))
    expected = 2000 * (mse_loss(student[0], teacher[0]) + mse_loss(student[1], teacher[1]))
    torch.testing.assert_close(ours, expected)
    wide = embeddings(width=6, seed=2)
    loss = DistillationLoss(teacher="a.ckpt", relation=0, feature=3.0, teacher_dim=6, embed_dim=5).double()
    ours = loss_of(loss, student, TeacherEmbeddings(*wide))
    mapped = [normalize(layer(each), dim=1) for layer, each in zip(loss.maps, student, strict=True)]
    expected = 3 * (mse_loss(mapped[0], wide[0]) + mse_loss(mapped[1], wide[1]))
    inputs = [*student, *loss.parameters()]
    for one, other in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs), strict=True):
        torch.testing.assert_close(one, other)


def test_a_student_that_is_its_teacher_has_the_entropy_and_no_gradient() -> None:
    teacher = embeddings()
    student = [each.clone().requires_grad_() for each in teacher]
    loss = DistillationLoss(teacher="a.ckpt", temperature=0.1).double()
    found = loss_of(loss, student, TeacherEmbeddings(*teacher, scale=10.0))
    logits = 10 * teacher[0] @ teacher[1].T
    entropy = sum(torch.distributions.Categorical(logits=each).entropy().mean() for each in (logits, logits.T)) / 2
    torch.testing.assert_close(found, entropy)
    for gradient in torch.autograd.grad(found, student):
        assert gradient.abs().max() < 1e-6  # the temperature is a float32


def test_equal_images_are_no_negatives_of_each_other() -> None:
    """A row that occurs twice: the optimum gives both copies the probability that the teacher gives them."""
    rows = torch.tensor([0, 0, 1, 2])
    teacher = [embeddings(3)[0][rows], embeddings(4)[1]]
    student = [each.clone().requires_grad_() for each in teacher]
    loss = DistillationLoss(teacher="a.ckpt", feature=0, temperature=0.1).double()
    found = torch.autograd.grad(loss_of(loss, student, TeacherEmbeddings(*teacher, scale=10.0)), student)
    assert all(gradient.abs().max() < 1e-6 for gradient in found)


def test_half_precision_of_the_cache_is_normalised_again() -> None:
    student, teacher = embeddings(dtype=torch.float32), embeddings(seed=1, dtype=torch.float32)
    loss = DistillationLoss(teacher="a.ckpt")
    half = TeacherEmbeddings(*(each.half() for each in teacher), scale=10.0)
    longer = TeacherEmbeddings(*(each.half() * 3 for each in teacher), scale=10.0)
    torch.testing.assert_close(loss_of(loss, student, half), loss_of(loss, student, longer), rtol=1e-3, atol=0)
    whole = TeacherEmbeddings(*teacher, scale=10.0)
    torch.testing.assert_close(loss_of(loss, student, half), loss_of(loss, student, whole), rtol=1e-3, atol=0)


def test_the_teachers_scale_or_that_of_the_config() -> None:
    student, teacher = embeddings(), embeddings(seed=1)
    own = DistillationLoss(teacher="a.ckpt").double()
    set_ = DistillationLoss(teacher="a.ckpt", teacher_temperature=0.1).double()
    expected = loss_of(own, student, TeacherEmbeddings(*teacher, scale=10.0))
    torch.testing.assert_close(loss_of(set_, student, TeacherEmbeddings(*teacher)), expected)
    with pytest.raises(ConfigError, match=r"learned no scale.*set teacher_temperature.*or relation: 0"):
        loss_of(own, student, TeacherEmbeddings(*teacher))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"relation": 0, "feature": 0}, "weights >= 0, one of them above 0"),
        ({"relation": -1}, "weights >= 0, one of them above 0"),
        ({"temperature": 0.001}, "temperature 0.001 is at least 0.01"),
        ({"teacher_temperature": 0}, "teacher_temperature 0(.0)? above 0"),
        ({"teacher_dim": 0}, "teacher_dim 0 is a width >= 1"),
        ({"teacher_dim": 4, "feature": 0}, r"for feature above 0 \(got 0(.0)?\)"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_losses({"distillation": {"teacher": "a.ckpt", **options}})


def test_what_does_not_fit_is_refused() -> None:
    loss, student, teacher = DistillationLoss(teacher="a.ckpt"), embeddings(), embeddings(width=6, seed=1)
    with pytest.raises(MissingOutputError, match=r"needs the teacher's embeddings in batch\.teacher"):
        loss_of(loss, student, None)
    with pytest.raises(ValueError, match=r"one row per pair: got image_embeds 7, text_embeds 7, and 3 and 3"):
        loss_of(loss, student, TeacherEmbeddings(teacher[0][:3], teacher[1][:3], 10.0))
    words = "have 6 dimensions and the student's 5, and there is no map.*teacher_dim: 6 .*model.embed_dim: 6, or featu"
    with pytest.raises(ConfigError, match=words):
        loss_of(loss, student, TeacherEmbeddings(*teacher, 10.0))
    mapped = DistillationLoss(teacher="a.ckpt", teacher_dim=4, embed_dim=5)
    with pytest.raises(ConfigError, match="and teacher_dim is 4: set teacher_dim: 6"):
        loss_of(mapped, student, TeacherEmbeddings(*teacher, 10.0))
    with pytest.raises(ConfigError, match="needs teacher"):
        build_losses({"distillation": {}})


def test_the_losses_know_which_of_them_has_a_teacher() -> None:
    losses = build_losses({"contrastive": {"weight": 2.0}, "distillation": {"teacher": "a.ckpt", "teacher_dim": 3}})
    assert losses.teacher_loss is losses["distillation"]
    kept = losses.without_teacher()
    assert (dict(kept), kept.weights) == ({"contrastive": losses["contrastive"]}, {"contrastive": 2.0})
    assert kept.without_teacher().teacher_loss is None
    assert losses.stand_in_teacher(4, 256).image.shape == (4, 3)
    assert kept.stand_in_teacher(4, 256) is None
    assert float(kept.without_teacher().weighted({})) == 0
    losses["second"] = DistillationLoss(teacher="b.ckpt")
    with pytest.raises(ConfigError, match="several with a teacher, distillation and second; one is possible"):
        _ = losses.teacher_loss


def test_scale_is_clamped_and_logged() -> None:
    loss = DistillationLoss(teacher="a.ckpt", feature=0).double()
    with torch.no_grad():
        loss.log_scale.fill_(math.log(1000))
    loss_of(loss, embeddings(), TeacherEmbeddings(*embeddings(seed=1), scale=10.0))
    assert float(loss.logged()["distillation_scale"]) == pytest.approx(100)
