"""Each broken loss is reported by its violation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor
from torch.nn.functional import cross_entropy

from velm.losses.base import Loss
from velm.losses.captioning import CaptioningLoss
from velm.outputs import Batch, VisionLanguageOutput
from velm.testing import check_loss


class Distance(Loss):
    requires = frozenset({"image_embeds", "text_embeds"})

    def forward(self, output: VisionLanguageOutput, batch: Batch) -> Tensor:
        return (output.image_embeds - output.text_embeds).square().mean()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("reduce", "violation"),
    [
        (lambda d: d.mean(1), "not a scalar"),
        (lambda d: d.mean().detach(), "no gradient"),
        (lambda d: d[0].mean(), "order matters"),
        (lambda d: d.sum() / (len(d) - 1), "batch of one"),
    ],
)
def test_broken_losses_are_caught_by_name(reduce: Callable[[Tensor], Tensor], violation: str) -> None:
    class Broken(Distance):
        def forward(self, output: VisionLanguageOutput, batch: Batch) -> Tensor:
            return reduce((output.image_embeds - output.text_embeds).square())  # type: ignore[operator]

    assert not check_loss(Distance).violations
    assert [f.check for f in check_loss(Broken).violations] == [violation]


def test_an_unknown_requirement_is_named_with_the_known_ones() -> None:
    class Asks(Distance):
        requires = frozenset({"images"})

    violations = check_loss(Asks).violations
    assert [f.check for f in violations] == ["raised"]
    assert "'images'" in violations[0].message
    assert "'image_embeds'" in violations[0].message


def test_a_loss_that_reads_more_than_it_requires_is_caught() -> None:
    class Silent(Distance):
        requires = frozenset({"image_embeds"})

    assert [f.check for f in check_loss(Silent).violations] == ["raised"]


class Worded(Loss):
    """A mean over the tokens of whatever batch it sees."""

    requires = frozenset({"decoder"})

    def forward(self, output: VisionLanguageOutput, batch: Batch) -> Tensor:
        logits = output.output_projection(output.decoder.hidden)  # type: ignore[misc, union-attr]
        return cross_entropy(logits.flatten(0, 1), output.labels.flatten())  # type: ignore[union-attr]


def test_a_loss_that_says_it_is_additive_and_is_not_is_caught() -> None:
    class Claims(Worded):
        additive = True

    assert not check_loss(Worded).violations
    [violation] = check_loss(Claims).violations
    assert violation.check == "not additive"
    assert "batch.target_count" in violation.message


def test_the_captioning_loss_is_additive() -> None:
    assert CaptioningLoss.additive
    assert not check_loss(CaptioningLoss).violations
