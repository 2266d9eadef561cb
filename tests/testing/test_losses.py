"""Each broken loss is caught by its fault."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from torch import Tensor

from velm.losses.base import Loss
from velm.outputs import Batch, VisionLanguageOutput
from velm.testing import check_loss


class Distance(Loss):
    requires = frozenset({"image_embeds", "text_embeds"})

    def forward(self, output: VisionLanguageOutput, batch: Batch) -> Tensor:
        return (output.image_embeds - output.text_embeds).square().mean()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("reduce", "fault"),
    [
        (lambda d: d.mean(1), "not a scalar"),
        (lambda d: d.mean().detach(), "no gradient"),
        (lambda d: d[0].mean(), "order matters"),
        (lambda d: d.sum() / (len(d) - 1), "batch of one"),
    ],
)
def test_broken_losses_are_caught_by_name(reduce: Callable[[Tensor], Tensor], fault: str) -> None:
    class Broken(Distance):
        def forward(self, output: VisionLanguageOutput, batch: Batch) -> Tensor:
            return reduce((output.image_embeds - output.text_embeds).square())  # type: ignore[operator]

    assert not check_loss(Distance).faults
    assert [f.name for f in check_loss(Broken).faults] == [fault]


def test_a_loss_that_requires_what_does_not_exist_is_told_what_does() -> None:
    class Asks(Distance):
        requires = frozenset({"pictures"})

    faults = check_loss(Asks).faults
    assert [f.name for f in faults] == ["raised"]
    assert "'pictures'" in faults[0].message
    assert "'image_embeds'" in faults[0].message


def test_a_loss_that_reads_more_than_it_requires_is_caught() -> None:
    class Silent(Distance):
        requires = frozenset({"image_embeds"})

    assert [f.name for f in check_loss(Silent).faults] == ["raised"]
