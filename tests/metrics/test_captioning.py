"""Caption metrics equal pycocoevalcap's; the golden values were made with it, on these made-up captions."""

from __future__ import annotations

import math
import random

import pytest

from velm.metrics.captioning import (
    bleu,
    caption_metrics,
    caption_scores,
    cider,
    cider_d,
    exact_match,
    rouge_l,
)

HYPOTHESES = [
    "a small red circle above a blue square",
    "a green triangle",
    "two robots play chess in the kitchen of an old lighthouse by the sea",
    "a blue square below a circle",
]
REFERENCES = [
    ["a red circle above a big blue square", "a blue square is below a small red circle", "a red circle"],
    ["a large green triangle", "one green triangle"],
    ["two robots are playing chess in a lighthouse", "robots play chess in an old kitchen near the sea"],
    ["a blue square below a circle", "a circle above a blue square", "there is a blue square below a circle"],
]
GOLDEN_BLEU = [0.9032258064224766, 0.7972473551142835, 0.6723834385328566, 0.5566243079734324]
GOLDEN_ROUGE_L = 0.8669076618762155
GOLDEN_CIDER_D = 3.942032483812344

WORDS = ["a", "the", "dog", "cat", "red", "blue", "runs", "sits", "on", "under", "near", "two"]


def made_up(seed: int, images: int = 12) -> tuple[list[str], list[list[str]]]:
    rng = random.Random(seed)

    def sentence() -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(1, 9)))

    return [sentence() for _ in range(images)], [[sentence() for _ in range(rng.randint(1, 5))] for _ in range(images)]


def test_equal_to_the_golden_values() -> None:
    assert bleu(HYPOTHESES, REFERENCES) == pytest.approx(GOLDEN_BLEU, abs=1e-12)
    assert rouge_l(HYPOTHESES, REFERENCES) == pytest.approx(GOLDEN_ROUGE_L, abs=1e-12)
    assert cider_d(HYPOTHESES, REFERENCES) == pytest.approx(GOLDEN_CIDER_D, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_equal_to_pycocoevalcap(seed: int) -> None:
    reason = "pip install --no-deps pycocoevalcap to compare with it"
    theirs_bleu = pytest.importorskip("pycocoevalcap.bleu.bleu", reason=reason)
    theirs_rouge = pytest.importorskip("pycocoevalcap.rouge.rouge", reason=reason)
    theirs_cider = pytest.importorskip("pycocoevalcap.cider.cider", reason=reason)
    hypotheses, references = made_up(seed)
    given = dict(enumerate(references)), {i: [h] for i, h in enumerate(hypotheses)}
    assert bleu(hypotheses, references) == pytest.approx(
        theirs_bleu.Bleu(4).compute_score(*given, verbose=0)[0], abs=1e-9
    )
    assert rouge_l(hypotheses, references) == pytest.approx(theirs_rouge.Rouge().compute_score(*given)[0], abs=1e-9)
    assert cider_d(hypotheses, references) == pytest.approx(theirs_cider.Cider().compute_score(*given)[0], abs=1e-9)


def test_bleu_by_hand() -> None:
    # 3 of 4 words, 1 of 3 pairs, no triple; 4 words where the reference has 6
    scores = bleu(["a dog on grass"], [["the big dog on the grass"]])
    brevity = math.exp(1 - 6 / 4)
    assert scores[0] == pytest.approx(3 / 4 * brevity, abs=1e-8)
    assert scores[1] == pytest.approx(math.sqrt(3 / 4 * 1 / 3) * brevity, abs=1e-8)
    assert scores[2] == pytest.approx(0, abs=1e-4)
    # with "a dog": 4 words and 2 pairs; of the lengths 6 and 2, equally near, the shorter one counts
    scores = bleu(["a dog on grass"], [["the big dog on the grass", "a dog"]])
    assert scores[:2] == pytest.approx([1.0, math.sqrt(2 / 3)], abs=1e-8)


def test_bleu_counts_a_word_as_often_as_one_reference_has_it() -> None:
    assert bleu(["the the the the"], [["the cat the", "the dog"]])[0] == pytest.approx(2 / 4, abs=1e-8)


def test_rouge_l_by_hand() -> None:
    # longest common subsequence "dog the grass": 3 of 4 and 3 of 5
    precision, recall = 3 / 4, 3 / 5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(["dog in the grass"], [["the dog on the grass"]]) == pytest.approx(expected)


def test_cider_by_hand() -> None:
    # two images, no word in common: every idf is log 2; identical sentences have cosine 1, for n = 1 and 2
    hypotheses, references = ["red dog", "blue cat"], [["red dog"], ["blue cat"]]
    assert cider(hypotheses, references) == pytest.approx(10 * 2 / 4)
    assert cider_d(hypotheses, references) == pytest.approx(10 * 2 / 4)
    # "red red": tf 2 against (1, 1): cosine 2 / (2 sqrt 2), clipped 1 / (2 sqrt 2); the second image as before
    hypotheses = ["red red", "blue cat"]
    assert cider(hypotheses, references) == pytest.approx(10 * (2 + 1 / math.sqrt(2)) / 4 / 2)
    assert cider_d(hypotheses, references) == pytest.approx(10 * (2 + 1 / (2 * math.sqrt(2))) / 4 / 2)


def test_cider_d_punishes_a_wrong_length() -> None:
    references = [["red dog"], ["blue cat"]]
    hypotheses = ["red dog x y z u v w", "blue cat"]
    # every idf is log 2: cosine 2 / (sqrt 2 sqrt 8) for words and 1 / (sqrt 1 sqrt 7) for pairs
    cosines = 1 / 2 + 1 / math.sqrt(7)
    penalty = math.exp(-(6**2) / (2 * 6**2))
    assert cider(hypotheses, references) == pytest.approx(10 * (cosines + 2) / 4 / 2)
    assert cider_d(hypotheses, references) == pytest.approx(10 * (cosines * penalty + 2) / 4 / 2)


def test_one_image_has_no_cider() -> None:
    assert cider(["a dog"], [["a dog"]]) == cider_d(["a dog"], [["a dog"]]) == 0


@pytest.mark.parametrize("metric", [rouge_l, cider, cider_d, exact_match, lambda h, r: bleu(h, r)[3]])
def test_the_order_of_images_and_references_changes_nothing(metric) -> None:  # type: ignore[no-untyped-def]
    hypotheses, references = made_up(0)
    back = [r[::-1] for r in references[::-1]]
    assert metric(hypotheses[::-1], back) == pytest.approx(metric(hypotheses, references), abs=1e-12)


def test_perfect_captions_have_perfect_scores() -> None:
    best = [r[0] for r in REFERENCES]
    assert bleu([REFERENCES[0][0]], [REFERENCES[0]]) == pytest.approx([1.0] * 4, abs=1e-8)
    assert rouge_l(best, [[b] for b in best]) == pytest.approx(1.0)
    assert exact_match(best, REFERENCES) == 1.0


def test_scores_of_single_captions_add_up_to_the_metrics() -> None:
    scores = caption_scores(HYPOTHESES, REFERENCES)
    assert sum(scores.cider_d) / 4 == cider_d(HYPOTHESES, REFERENCES)
    assert sum(scores.rouge_l) / 4 == rouge_l(HYPOTHESES, REFERENCES)
    assert scores.exact == [False, False, False, True]


def test_empty_hypotheses_score_zero() -> None:
    scores = caption_metrics(["", ""], [["a dog"], ["a cat"]])
    assert scores.pop("caption/distinct") == 0.5
    assert all(value == pytest.approx(0, abs=1e-9) for value in scores.values())


def test_exact_match_ignores_case_and_punctuation() -> None:
    assert exact_match(["A dog.", "a cat"], [["the dog", "a dog !"], ["a dog"]]) == 0.5


def test_another_tokenizer() -> None:
    assert exact_match(["A dog"], [["a dog"]], tokenize=str.split) == 0
    assert exact_match(["a  dog"], [["a dog"]], tokenize=str.split) == 1


def test_names_are_those_of_metrics_json() -> None:
    scores = caption_metrics(HYPOTHESES, REFERENCES)
    assert list(scores) == [
        *(f"caption/bleu{n}" for n in range(1, 5)),
        "caption/rouge_l",
        "caption/cider",
        "caption/exact_match",
        "caption/distinct",
        "caption/distinct1",
        "caption/distinct2",
        "caption/length",
    ]
    assert scores["caption/cider"] == cider_d(HYPOTHESES, REFERENCES)


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ([], [], "0 hypotheses and 0 lists"),
        (["a"], [["a"], ["b"]], "1 hypotheses and 2 lists"),
        (["a"], [[]], r"references\[0\] is \[\]"),
        (["a", "b"], [["a"], "b"], r"references\[1\] is 'b'; it takes a list"),
    ],
)
def test_bad_input_is_refused(hypotheses: list[str], references: list[list[str]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bleu(hypotheses, references)
