"""Document frequencies of one set of images score captions of any other; `test_captioning.py` has the values."""

from __future__ import annotations

import pytest

from velm.metrics.captioning import caption_scores
from velm.metrics.document_frequency import DocumentFrequencies

REFERENCES = [
    ["a dog runs on the grass .", "a brown dog runs ."],
    ["two dogs play on the beach .", "dogs on the sand by the sea ."],
    ["a man rides a horse on the beach .", "a man on a horse ."],
]
CAPTIONS = ["a dog runs on the beach .", "two dogs on the grass .", "a man rides a horse ."]


def words(captions: list[str]) -> list[list[str]]:
    return [caption.split() for caption in captions]


def test_a_part_of_the_images_scores_as_in_the_whole() -> None:
    frequencies = DocumentFrequencies(words(each) for each in REFERENCES)
    whole = caption_scores(CAPTIONS, REFERENCES, tokenize=str.split).cider_d
    assert frequencies.images == 3
    for i, expected in enumerate(whole):
        found = frequencies.scores([CAPTIONS[i].split()], [words(REFERENCES[i])], d=True)
        assert found == [pytest.approx(expected, rel=1e-12)]
        assert expected > 0


def test_captions_that_share_references_score_as_alone() -> None:
    frequencies = DocumentFrequencies(words(each) for each in REFERENCES)
    right, other = words(REFERENCES[0]), words(REFERENCES[2])
    together = frequencies.scores(words(CAPTIONS), [right, right, other], d=True)
    alone = [
        frequencies.scores([caption], [each], d=True)[0]
        for caption, each in zip(words(CAPTIONS), (right, right, other), strict=True)
    ]
    assert together == alone


def test_an_n_gram_of_one_image_weighs_as_much_as_one_of_none() -> None:
    frequencies = DocumentFrequencies(words(each) for each in REFERENCES)
    assert frequencies.frequency[("on", "the")] == 3
    assert ("a", "horse") not in frequencies.frequency
