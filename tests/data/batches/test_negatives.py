"""Hard negatives of training captions: false of the image, of known words, functions of seed, epoch and sample."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from velm.data.base import Record
from velm.data.batches.collate import Collate
from velm.data.batches.negatives import NegativeDraws
from velm.data.batches.samples import CaptionSamples
from velm.data.synthetic.scenes import Scenes, describe
from velm.data.text.hard_negatives import KINDS, all_hard_negatives, make_hard_negative, words_of
from velm.data.text.word import WordTokenizer
from velm.errors import DataError

TEXTS = [
    ("a small red circle left of a large blue square", "a large blue square right of a small red circle"),
    ("a green star above a red square", "a red square below a green star"),
    ("a star", "nothing here"),
]
RECORDS = [Record(str(i), None, texts) for i, texts in enumerate(TEXTS)]


def tokenizer() -> WordTokenizer:
    made = WordTokenizer()
    made.train([*(text for texts in TEXTS for text in texts), "below right blue ring"])
    return made


def items(count: int = 3, **options) -> CaptionSamples:
    draws = NegativeDraws.of_records(RECORDS, count) if count else None
    return CaptionSamples(RECORDS, tokenizer=tokenizer(), transform=None, negatives=draws, **options)


def test_the_first_of_all_is_the_one_of_the_evaluation() -> None:
    scenes = Scenes(2, held_out=False)
    known = {"red", "green", "blue", "yellow", "small", "large", "circle", "square", "star"}
    for number in range(0, len(scenes), len(scenes) // 40):
        for text in describe(scenes[number]):
            for kind in KINDS:
                found = list(all_hard_negatives(text, kind, known))
                assert make_hard_negative(text, kind, known) == (found[0] if found else None)


def test_every_change_of_a_kind() -> None:
    caption = "a red dog behind a blue dog above a green dog"
    assert list(all_hard_negatives(caption, "colour")) == [
        "a blue dog behind a red dog above a green dog",
        "a green dog behind a blue dog above a red dog",
        "a red dog behind a green dog above a blue dog",
    ]
    assert list(all_hard_negatives(caption, "relation")) == [
        "a red dog in front of a blue dog above a green dog",
        "a red dog behind a blue dog below a green dog",
    ]
    assert list(all_hard_negatives("a red dog", "new_colour", {"blue", "pink"})) == ["a blue dog", "a pink dog"]


def test_negatives_are_distinct_false_and_of_training_words() -> None:
    draws = NegativeDraws.of_records(RECORDS, 4)
    words = {word for texts in TEXTS for text in texts for word in words_of(text)}
    opposites = {"below", "right"}
    for texts in TEXTS[:2]:
        for epoch in range(30):
            drawn = draws(texts, 0, np.random.default_rng(epoch))
            assert len({*drawn}) == 4
            assert not {words_of(negative) for negative in drawn} & {words_of(text) for text in texts}
            assert {word for negative in drawn for word in words_of(negative)} <= words | opposites


def test_kinds_come_before_a_second_of_one_kind() -> None:
    draws = NegativeDraws.of_records(RECORDS, 6)
    by_kind = draws.candidates(TEXTS[0], 0)
    assert len(by_kind) >= 6
    assert max(map(len, by_kind)) > 1
    for seed in range(20):
        drawn = draws(TEXTS[0], 0, np.random.default_rng(seed))
        assert max(len({*drawn} & {*found}) for found in by_kind) == 1


def test_the_exchange_that_another_caption_describes_is_no_negative() -> None:
    texts = ["a red cat above a blue dog", "a blue dog above a red cat"]
    drawn = NegativeDraws(20, [])(texts, 0, np.random.default_rng(0))
    assert "a blue dog above a red cat" not in drawn
    assert "a blue cat above a red dog" in drawn


def test_samples_are_functions_of_seed_epoch_and_caption() -> None:
    whole = {(epoch, sample): items(captions="all")[epoch, sample] for epoch in range(6) for sample in range(6)}
    again = items(captions="all")
    for key in reversed(whole):  # in another order, as after a resume
        assert again[key].hard_negatives == whole[key].hard_negatives
        assert again[key].tokens == items(0, captions="all")[key].tokens  # nothing else changes
    for sample in (0, 1, 2, 3):
        assert len({str(whole[epoch, sample].hard_negatives) for epoch in range(6)}) > 1
    other = items(captions="all", seed=1)
    assert any(other[key].hard_negatives != whole[key].hard_negatives for key in whole)


def test_a_batch_holds_them_and_masks_the_missing() -> None:
    source, own = items(captions="first"), tokenizer()
    batch = Collate(own.pad_id)(source.__getitems__([0, 1, 2]))
    negatives = batch.hard_negatives
    assert negatives is not None
    counts = [len(NegativeDraws.of_records(RECORDS, 3)(texts, 0, np.random.default_rng(0))) for texts in TEXTS]
    assert counts[:2] == [3, 3]
    assert counts[2] < 3
    assert negatives.valid.sum(1).tolist() == counts
    for row in range(3):
        for k in range(3):
            text = own.decode(negatives.tokens[row, k].tolist())
            assert (text == TEXTS[row][0]) == (not negatives.valid[row, k])
            assert negatives.mask[row, k].sum() == len(own.encode(text))
    alone = batch.micro_batches(2)[1].hard_negatives
    assert alone is not None
    assert alone.tokens.shape[2] == len(own.encode("a star"))
    assert torch.equal(alone.valid, negatives.valid[2:])
    assert Collate(0)(items(0).__getitems__([0, 1])).hard_negatives is None


def test_a_change_behind_the_truncation_is_no_negative() -> None:
    source = items(captions="first", max_length=5)  # bos a small red eos
    samples = [source[epoch, 0] for epoch in range(30)]
    assert all(ids is None or ids != each.tokens for each in samples for ids in each.hard_negatives or ())
    assert any(None in (each.hard_negatives or ()) for each in samples)
    assert all(len(each.hard_negatives or ()) == 3 for each in samples)


@pytest.mark.parametrize("texts", [("nothing here",), ("红色的圆",)])
def test_captions_without_words_to_change_are_refused(texts: tuple[str, ...]) -> None:
    message = rf"hard_negatives is 2, and none of the 1 training captions .* e\.g\. '{texts[0]}'.*Set hard_negatives: 0"
    with pytest.raises(DataError, match=message):
        NegativeDraws.of_records([Record("a", None, texts)], 2)
