"""The benchmark of decoding, on sizes that take no time."""

from __future__ import annotations

import pytest
import torch

from benchmarks.workloads import generate

SMALL = {"VOCABULARY": 40, "TOKENS": 5, "BOS": 38, "EOS": 39, "DIM": 16, "HEADS": 2, "IMAGE_DEPTH": 1, "SIZE": 32}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SMALL, "PATCH": 8}.items():
        monkeypatch.setattr(generate, name, value)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("beams", "dtype"), [(1, torch.float32), (3, torch.float32), (1, torch.bfloat16)])
def test_all_write_as_many_tokens(images, beams, dtype) -> None:
    for system in ("velm", "transformers"):
        assert generate.build(system, beams, dtype)(images)[..., -5:].numel() == 10
    pytest.importorskip("open_clip", reason="pip install 'velm[bench]'")
    assert generate.build("open_clip", beams, dtype)(images).shape == (2 * beams, 6)  # with bos, all beams
    assert generate.build("velm_coca", beams, dtype)(images).shape == (2, 1, 5)


def test_the_loop_is_greedy_over_the_whole_text(images) -> None:
    pytest.importorskip("open_clip", reason="pip install 'velm[bench]'")
    torch.manual_seed(0)  # else a word may be the padding, which its text tower masks
    model = generate.coca(1, 1)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    words = generate.open_clip_loop(model, 1)(images)
    assert not (words == generate.PAD).any()
    with torch.no_grad():
        logits = model(images.float() / 255 - 0.5, words[:, :-1], output_labels=False)["logits"]
    assert torch.equal(logits.argmax(-1), words[:, 1:])


def test_coca_has_as_many_weights_in_matrices() -> None:
    pytest.importorskip("open_clip", reason="pip install 'velm[bench]'")
    theirs, mine = generate.coca_pair()
    decoder = theirs.text_decoder
    theirs_count = generate.matrices(theirs.text.transformer, decoder.resblocks, decoder.cross_attn)
    assert generate.matrices(mine.decoder.blocks) == theirs_count
