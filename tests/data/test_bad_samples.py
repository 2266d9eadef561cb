"""What is bad is named; what is only odd is read; a bad sample changes nothing for the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from corpus import Corpus, build, odd, unreadable
from PIL import Image

from velm.data.bad_samples import BadSample, check_bad_share, count_bad_records, text_problem
from velm.data.base import EncodedImage, Record
from velm.data.batches.collate import Collate
from velm.data.batches.loader import Loader
from velm.data.batches.samplers import ImageBatchSampler
from velm.data.batches.samples import CaptionSamples
from velm.data.formats.delimited import CSV
from velm.data.images.transforms import EvalTransform, TrainTransform, read_image
from velm.data.tables.validate import invalid_utf8, text_problems
from velm.data.text.word import WordTokenizer
from velm.errors import BadDataError, DataError
from velm.outputs import Batch

TEXTS = ["fine", "", " \u3000", None, "a\0b", "x" * 10_001, "x" * 10_000, "Ωμέγα"]
SOUND = Image.new("RGB", (2, 2))


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(tmp_path_factory.mktemp("clean") / "corpus", good=61, bad_samples=False)


@pytest.mark.parametrize(("name", "content"), unreadable(np.random.default_rng(3)))
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"Cannot read image '.*{name}': [A-Z]"):
        TrainTransform(image_size=16)(str(tmp_path / name), np.random.default_rng(0))


def test_a_huge_image_is_refused_by_its_header(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(self: Image.Image) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    for name, content in unreadable(np.random.default_rng(0)):
        if name.startswith("huge"):
            with pytest.raises(DataError, match=r"1600000000 pixels"):
                read_image(_encoded(name, content), minimum=32)


def _encoded(name: str, content: bytes) -> EncodedImage:
    return EncodedImage(name, lambda: content)


def test_what_is_only_odd_is_read_rightly() -> None:
    """All of them show one image, in their own ways."""
    files = dict(odd(np.random.default_rng(0)))
    plain = np.asarray(read_image(_encoded("a", files["wrong_extension.jpg"])), dtype=int)
    grey = np.asarray(Image.fromarray(plain.astype(np.uint8)).convert("L").convert("RGB"), dtype=int)
    white = (plain + 255) // 2
    expected = {
        "wrong_extension.png": plain, "CAPITALS.JPG": plain, "cmyk.jpg": plain, "progressive.jpg": plain,
        "grey.jpg": grey, "sixteen_bits.png": grey, "sixteen_bits.tif": grey, "turned.jpg": np.rot90(plain, -1),
        "palette.png": plain, "moving.gif": plain, "moving.webp": plain, "alpha.png": white,
        "grey_and_alpha.png": (grey + 255) // 2,
    }  # fmt: skip
    for name, pixels in expected.items():
        read = np.asarray(read_image(_encoded(name, files[name])), dtype=int)
        assert read.shape == pixels.shape, name
        assert np.abs(read - pixels).mean() < 12, name
    for name, content in files.items():
        for transform in (EvalTransform(image_size=16), TrainTransform(image_size=16)):
            assert transform(_encoded(name, content), np.random.default_rng(1)).shape == (3, 16, 16)


def items(corpus: Corpus, replace: bool = True) -> CaptionSamples:
    records = CSV(path=corpus.table, image_id_column=None).split("train")
    tokenizer = WordTokenizer()
    tokenizer.train(text for record in records for text in record.texts)
    return CaptionSamples(records, tokenizer=tokenizer, transform=TrainTransform(image_size=16), replace=replace)


def loaded(samples: CaptionSamples, batches: list[Any]) -> list[tuple[Batch, list[BadSample]]]:
    """Each batch with its bad samples."""
    loader = Loader(samples, batch_sampler=batches, collate_fn=Collate(0))
    return [(batch, loader.take_bad_samples()) for batch in loader]


def test_a_bad_sample_changes_no_other(clean: Corpus) -> None:
    """On two ranks, over two epochs: every row of every batch but its own is as it was."""
    sound = items(clean)
    names = [Path(record.image).name for record in sound.records]
    ranks = [
        ImageBatchSampler(image_of=sound.image_of, batch_size=8, drop_last=True, rank=rank, world_size=2)
        for rank in (0, 1)
    ]
    plan = [batch for epoch in (0, 1) for rank in ranks for batch in (rank.set_epoch(epoch), list(rank))[1]]
    before = loaded(sound, plan)
    bad = names[7]
    content = (clean.folder / bad).read_bytes()
    try:
        (clean.folder / bad).write_bytes(content[:30])
        after = loaded(sound, plan)
    finally:
        (clean.folder / bad).write_bytes(content)
    met = 0
    for batch, (one, _), (other, bad_samples) in zip(plan, before, after, strict=True):
        theirs = torch.tensor([sample == 7 for _, sample in batch])
        met += int(theirs.sum())
        assert len(one) == len(other)
        assert torch.equal(one.images[~theirs], other.images[~theirs])
        assert torch.equal(one.image_ids[~theirs], other.image_ids[~theirs])
        assert (other.image_ids != 7).all()
        assert [bad_sample.path for bad_sample in bad_samples] == [str(clean.folder / bad)] * int(theirs.sum())
    assert met == 2


def test_left_out_of_a_batch_and_a_batch_of_nothing(clean: Corpus) -> None:
    sound = items(clean, replace=False)
    one, bad = 5, sound.records[5].image

    def read(image: str, rng: np.random.Generator) -> torch.Tensor:
        if image == bad:
            raise OSError("disk")
        return torch.zeros(3, 2, 2)

    sound.transform = read
    (batch, bad_samples), (empty, other_bad_samples) = loaded(sound, [[one, one + 1], [one]])
    assert len(batch) == 1
    assert [bad_sample.cause for bad_sample in bad_samples] == ["OSError: disk"]
    assert other_bad_samples == bad_samples
    batch = empty
    assert len(batch) == 0
    assert batch.images is None
    assert batch.tokens.shape == batch.mask.shape == (0, 0)


def test_when_nothing_can_be_read_it_says_so(clean: Corpus) -> None:
    sound = items(clean)

    def read(image: str, rng: np.random.Generator) -> torch.Tensor:
        raise DataError("no")

    sound.transform = read
    with pytest.raises(DataError, match=r"100 samples in a row cannot be read\. The last, .*: no"):
        sound.__getitems__([0])


def test_sentences_of_data_that_nobody_checked() -> None:
    records = [Record("a", SOUND, ("a dog",)), Record("b", SOUND, ("a\0dog",))]
    tokenizer = WordTokenizer()
    tokenizer.train(["a dog"])
    made = CaptionSamples(records, tokenizer=tokenizer, transform=EvalTransform(image_size=4)).__getitems__([1])
    assert made[0] == BadSample("b", "text 1 holds NUL characters", lost=0)
    assert made[-1].image_id == 0


def test_texts_one_by_one_and_as_a_column() -> None:
    for chunks in ([TEXTS], [TEXTS[:3], [], TEXTS[3:]]):
        column = pa.chunked_array(chunks, pa.large_string())
        expected = {place: text_problem(text or "") for place, text in enumerate(TEXTS) if text_problem(text or "")}
        assert text_problems(column) == expected
    assert expected[5] == "has 10,001 characters, more than 10,000"


def test_bytes_that_are_not_utf8() -> None:
    binary = pa.array([b"fine", b"caf\xe9", None, b"\xff\xfea\0"], pa.large_binary())
    column = pa.chunked_array([binary.view(pa.large_string()), pa.array(["a"], pa.large_string())])
    assert invalid_utf8(column) == [1, 3]


def test_the_share_counts_images(recwarn: pytest.WarningsRecorder) -> None:
    bad_samples = [
        BadSample("a", "x", lost=1),
        BadSample("a", "y", lost=0),
        BadSample("b", "z", lost=0, advice="Do."),
        BadSample("s", "w", lost=5),
    ]
    assert count_bad_records(bad_samples) == 7
    check_bad_share(bad_samples, 64, 0.1, "it")  # 7 of 70
    assert "7 of 70 records of it cannot be used: a (x), a (y), b (z), ..." in str(recwarn.pop().message)
    with pytest.raises(BadDataError, match=r"7 of 69 records of it \(10\.1%\) .* max_bad is 10\.0%") as raised:
        check_bad_share(bad_samples, 63, 0.1, "it")
    assert raised.value.bad_samples == tuple(bad_samples)
    assert str(raised.value).endswith("raise data.max_bad to leave them out. Do.")
    with pytest.raises(BadDataError, match="There are no records in it"):
        check_bad_share([], 0, 1.0, "it")
    with pytest.raises(BadDataError, match="1 of 1 records"):
        check_bad_share(bad_samples[:1], 0, 1.0, "it")
