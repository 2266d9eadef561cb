from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from velm.data.base import Record, text_counts
from velm.data.batches.collate import Collate
from velm.data.batches.lengths import check_lengths
from velm.data.batches.samplers import ImageBatchSampler
from velm.data.batches.samples import CaptionSamples, Sample
from velm.data.images.transforms import EvalTransform, TrainTransform
from velm.data.text.bpe import ByteTokenizer
from velm.data.text.word import WordTokenizer
from velm.errors import DataError

TOKENIZER = ByteTokenizer()
FLICKR8K = Path(__file__).resolve().parents[4] / "shared" / "data" / "flickr8k"


def records(count: int = 12, captions: int = 3, targets: bool = False) -> list[Record]:
    rng = np.random.default_rng(0)
    return [
        Record(
            image_id=f"image {i}",
            image=rng.integers(0, 256, (10, 12, 3), dtype=np.uint8),
            texts=tuple(f"{i} sentence {k}" for k in range(captions)),
            targets=tuple(f"{i} target {k}" for k in range(captions)) if targets else None,
        )
        for i in range(count)
    ]


def items(source: list[Record] | None = None, **options) -> CaptionSamples:
    given = {"transform": EvalTransform(image_size=8), "tokenizer": TOKENIZER, **options}
    return CaptionSamples(records() if source is None else source, **given)


def text_of(item: Sample) -> str:
    return TOKENIZER.decode(item.tokens)


def test_all_captions_are_samples_of_their_image() -> None:
    every = items(captions="all")
    assert len(every) == 36
    assert every.image_of.tolist() == np.repeat(np.arange(12), 3).tolist()
    for sample, place in enumerate(every.image_of):
        item = every[sample]
        assert (item.image_id, item.text_index) == (place, sample % 3)
        assert text_of(item) == f"{place} sentence {sample % 3}"


def test_the_first_caption_is_always_the_first() -> None:
    first = items(captions="first")
    assert len(first) == 12
    assert all(first[(epoch, 4)].text_index == 0 for epoch in range(5))


def test_random_captions_all_come_within_as_many_epochs() -> None:
    some = items(captions="random")
    assert len(some) == 12
    for sample in range(12):
        lap = [some[(epoch, sample)].text_index for epoch in range(6)]
        assert sorted(lap[:3]) == sorted(lap[3:]) == [0, 1, 2]
    assert len({some[(0, sample)].text_index for sample in range(12)}) > 1


def test_a_stand_in_is_a_sample_that_does_not_count() -> None:
    some = items(captions="random", captions_per_image=2)
    stand_in, own = (Collate(0)(some.__getitems__([(0, sample)])) for sample in (~4, 4))
    assert stand_in.tokens.tolist() == own.tokens.tolist()
    assert (len(stand_in), stand_in.samples, own.samples) == (2, 0, 2)


def test_several_captions_share_one_image() -> None:
    some = items(captions="random", captions_per_image=2, transform=TrainTransform(image_size=8))
    assert len(some) == 12
    together = some.__getitems__([(0, 4), (0, 7)])
    assert [item.image_id for item in together] == [4, 4, 7, 7]
    assert together[0].image is together[1].image
    assert together[0].text_index != together[1].text_index
    batch = Collate(0)(together)
    assert batch.images.shape[0] == 2
    assert batch.image_rows.tolist() == [0, 0, 1, 1]
    assert batch.image_ids.tolist() == [4, 4, 7, 7]
    assert len(batch) == len(batch.tokens) == 4
    assert Collate(0)(items().__getitems__([0, 1])).image_rows is None


def test_captions_that_come_together_take_equal_turns() -> None:
    some = items(captions="random", captions_per_image=2)
    three_epochs = [item.text_index for epoch in range(3) for item in some.__getitems__([(epoch, 5)])]
    assert sorted(three_epochs) == [0, 0, 1, 1, 2, 2]
    single = items(records(captions=1), captions_per_image=2)
    assert [item.text_index for item in single.__getitems__([(0, 5)])] == [0, 0]  # an image with fewer repeats some


@pytest.mark.parametrize(("captions", "count"), [("all", 2), ("first", 3), ("random", 0)])
def test_several_captions_are_for_random_ones(captions: str, count: int) -> None:
    with pytest.raises(ValueError, match=f"captions_per_image is {count} with captions"):
        items(captions=captions, captions_per_image=count)


def test_a_sample_is_a_function_of_seed_epoch_and_number() -> None:
    transform = TrainTransform(image_size=8)
    one, same, other = (items(transform=transform, seed=seed) for seed in (0, 0, 1))
    for key in ((0, 3), (2, 3)):
        assert torch.equal(one[key].image, same[key].image)
        assert one[key].tokens == same[key].tokens
    assert not torch.equal(one[(0, 3)].image, one[(1, 3)].image)
    assert not torch.equal(one[(0, 3)].image, other[(0, 3)].image)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_is_the_same_whatever_the_number_of_workers(workers: int) -> None:
    source = items(captions="all", transform=TrainTransform(image_size=8))
    sampler = ImageBatchSampler(image_of=source.image_of, batch_size=6)
    loader = DataLoader(
        source, batch_sampler=sampler, collate_fn=Collate(0), num_workers=workers, persistent_workers=workers > 0
    )
    for epoch in (0, 1):  # persistent workers are not told of the new epoch, and need not be
        sampler.set_epoch(epoch)
        seen = list(loader)
        expected = [Collate(0)([source[key] for key in keys]) for keys in sampler]
        assert len(seen) == len(expected) == 6
        for batch, same in zip(seen, expected, strict=True):
            assert torch.equal(batch.images, same.images)
            assert torch.equal(batch.tokens, same.tokens)
            assert len(batch.image_ids.unique()) == len(batch)


def test_a_batch_is_padded_to_its_longest_and_says_where_content_is() -> None:
    image = torch.full((3, 2, 2), 7, dtype=torch.uint8)
    batch = Collate(9)([Sample(image, [1, 5, 2], None, 4, 0), Sample(image, [1, 5, 9, 6, 2], None, 0, 1)])
    assert batch.tokens.tolist() == [[1, 5, 2, 9, 9], [1, 5, 9, 6, 2]]
    assert batch.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (2, 3, 2, 2)
    assert batch.image_ids.tolist() == [4, 0]
    assert batch.target_tokens is None
    assert batch.target_mask is None


def test_a_missing_image_is_black_and_a_batch_without_images_has_none() -> None:
    image = torch.full((3, 2, 2), 7, dtype=torch.uint8)
    batch = Collate(0)([Sample(None, [1, 2], None, 0, 0), Sample(image, [1, 2], None, 1, 0)])
    assert batch.images[0].sum() == 0
    assert torch.equal(batch.images[1], image)
    assert Collate(0)([Sample(None, [1, 2], None, 0, 0)]).images is None
    assert items(transform=None)[0].image is None


def test_targets_go_with_their_sentence() -> None:
    source = items(records(targets=True), captions="all")
    batch = Collate(0)([source[4], source[5]])
    assert TOKENIZER.decode(batch.target_tokens[0].tolist()) == "1 target 1"
    assert TOKENIZER.decode(batch.tokens[1].tolist()) == "1 sentence 2"
    assert batch.target_mask.shape == batch.target_tokens.shape
    assert items(records(targets=True), has_target=False)[0].target is None


def test_a_wanted_target_that_is_not_there() -> None:
    with pytest.raises(DataError, match="'image 0' has no target; the data must name a target column"):
        items(has_target=True)[0]


def test_long_sentences_are_cut_before_their_eos() -> None:
    whole, cut = items(), items(max_length=5)
    ids, short = whole[0].tokens, cut[0].tokens
    assert short == [*ids[:4], TOKENIZER.eos_id]
    assert items(max_length=len(ids))[0].tokens == ids


def test_long_sentences_are_counted_with_one_warning() -> None:
    tokenizer = WordTokenizer()
    tokenizer.train(["a b c d"])
    source = [Record("0", None, ("a", "a b c d"), targets=("a b c", "a")), Record("1", None, ("a b",))]
    with pytest.warns(
        UserWarning, match=r"2 of 5 captions \(40.0%\) are longer than max_length = 4 .*Set max_length to 6"
    ) as told:
        assert check_lengths(source, tokenizer, max_length=4) == 2
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_lengths(source, tokenizer, max_length=6) == 0


def test_lengths_of_a_large_split_are_looked_at_here_and_there() -> None:
    source = [Record(str(i), None, ("x" * (i + 1),)) for i in range(100)]
    with pytest.warns(UserWarning, match=r"5 of 10 captions"):
        check_lengths(source, TOKENIZER, max_length=52, limit=10)


def test_text_counts_are_asked_for_where_they_are_known() -> None:
    class Known(list):
        text_counts = (2, 1)

    assert text_counts(Known()).tolist() == [2, 1]
    assert text_counts(records(2, captions=4)).tolist() == [4, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": "every"}, "captions must be one of random, weighted, all, first; got 'every'"),
        ({"max_length": 2}, "max_length must be at least 3 tokens"),
    ],
)
def test_impossible_options_are_refused(options, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        items(**options)


@pytest.mark.skipif(not FLICKR8K.is_dir(), reason="the Flickr8k photographs are not there")
def test_a_batch_of_real_photographs() -> None:
    from velm.data.formats.delimited import CSV

    source = CaptionSamples(
        CSV(path=str(FLICKR8K / "captions.csv")).split("test"), tokenizer=TOKENIZER, captions="all",
        transform=TrainTransform(image_size=64),
    )  # fmt: skip
    sampler = ImageBatchSampler(image_of=source.image_of, batch_size=32, drop_last=True)
    assert (len(source), len(sampler)) == (4000, 125)
    batch = next(iter(DataLoader(source, batch_sampler=sampler, collate_fn=Collate(TOKENIZER.pad_id))))
    assert batch.images.shape == (32, 3, 64, 64)
    assert len(batch.image_ids.unique()) == 32
    assert 60 < batch.images.float().mean() < 190
    assert len({image.sum().item() for image in batch.images}) == 32


# --- captions by weight


def test_captions_come_by_their_weights() -> None:
    """Over a thousand epochs within four standard deviations; a weight of 0 never; no weights, all alike."""
    records = [
        Record("a", None, ("one", "two", "three"), weights=(3.0, 1.0, 0.0)),
        Record("b", None, ("one", "two")),
        Record("c", None, ("one",), weights=(0.0,)),
    ]
    tokenizer = WordTokenizer()
    tokenizer.train(["one two three"])
    items = CaptionSamples(records, tokenizer=tokenizer, transform=None, captions="weighted")
    assert len(items) == 3
    drawn = np.array([[items[epoch, sample].text_index for sample in (0, 1)] for epoch in range(1000)])
    assert abs((drawn[:, 0] == 0).mean() - 0.75) < 0.055
    assert abs((drawn[:, 1] == 0).mean() - 0.5) < 0.065
    assert drawn[:, 0].max() == 1
    assert items[7, 0].text_index == items[7, 0].text_index
    with pytest.raises(DataError, match="all of its captions have the weight 0"):
        items[0, 2]


def test_several_captions_by_weight_differ_while_they_can() -> None:
    records = [Record("a", None, ("one", "two", "three"), weights=(3.0, 1.0, 0.0))]
    tokenizer = WordTokenizer()
    tokenizer.train(["one two three"])
    two, three = (
        CaptionSamples(records, tokenizer=tokenizer, transform=None, captions="weighted", captions_per_image=n)
        for n in (2, 3)
    )
    for epoch in range(20):
        assert sorted(item.text_index for item in two.__getitems__([(epoch, 0)])) == [0, 1]
        assert {item.text_index for item in three.__getitems__([(epoch, 0)])} <= {0, 1}
