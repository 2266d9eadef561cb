"""CLIPScore and RefCLIPScore by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from velm.metrics.clipscore import clip_score, ref_clip_score


def test_by_hand() -> None:
    image = [[2.0, 0.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]]
    caption = [[5.0, 0.0], [1.0, 1.0], [-1.0, 0.0], [0.0, 0.0]]
    assert clip_score(image, caption).tolist() == pytest.approx([2.5, 2.5 / math.sqrt(2), 0, 0])


def test_with_references_by_hand() -> None:
    image, caption = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    references, ids = torch.tensor([[0.0, 1.0], [3.0, 0.0], [0.0, 7.0]]), [1, 0, 1]
    score, nearest = 2.5 / math.sqrt(2), 1 / math.sqrt(2)
    expected = [2 * 2.5 * 1 / 3.5, 2 * score * nearest / (score + nearest)]
    assert ref_clip_score(image, caption, references, ids).tolist() == pytest.approx(expected)


def test_zero_where_either_term_is() -> None:
    image, caption = torch.eye(2), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    references = torch.tensor([[-1.0, 0.0], [-1.0, 0.0]])  # opposite of the first caption; the second fits no image
    assert ref_clip_score(image, caption, references, [0, 1]).tolist() == [0, 0]


@settings(deadline=None)
@given(st.integers(0, 99), st.floats(0.1, 9))
def test_scales_and_orders_change_nothing(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    image, caption, references = (torch.randn(n, 3, generator=generator).double() for n in (5, 5, 10))
    ids = torch.arange(10) % 5
    expected = ref_clip_score(image, caption, references, ids)
    assert torch.allclose(ref_clip_score(scale * image, scale * caption, scale * references, ids), expected)
    assert torch.allclose(ref_clip_score(image.flip(0), caption.flip(0), references.flip(0), 4 - ids.flip(0)),
                          expected.flip(0))  # fmt: skip
    assert bool((expected <= 2 * 2.5 / 3.5 + 1e-9).all())


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_embeds \(2, 2\) and caption_embeds \(3, 3\) must be \(n, E\)"):
        clip_score(torch.eye(2), torch.eye(3))
    with pytest.raises(ValueError, match=r"reference_ids is torch.int64 \(1,\).*each of the 2 references"):
        ref_clip_score(torch.eye(2), torch.eye(2), torch.eye(2), [0])
    with pytest.raises(ValueError, match="names 1 rows; each of the rows 0 to 1 is required at least once"):
        ref_clip_score(torch.eye(2), torch.eye(2), torch.eye(2), [0, 0])
