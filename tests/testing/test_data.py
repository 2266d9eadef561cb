"""Each broken tokenizer and dataset is reported by its violation."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from velm.data.base import Dataset, Record
from velm.data.text.base import Tokenizer
from velm.errors import DataError, MissingSplitError
from velm.testing import check, check_dataset, check_tokenizer


class Letters(Tokenizer):
    """The smallest right tokenizer: a letter is a token."""

    letters = ""

    @property
    def vocab_size(self) -> int:
        return 4 + len(self.letters)

    @property
    def trained(self) -> bool:
        return bool(self.letters)

    def train(self, texts: Iterable[str]) -> None:
        self.letters = "".join(sorted({letter for text in texts for letter in text}))

    def to_ids(self, text: str) -> list[int]:
        return [4 + self.letters.index(letter) if letter in self.letters else self.unk_id for letter in text]

    def to_text(self, ids: list[int]) -> str:
        return "".join(self.letters[i - 4] for i in ids)

    def state(self) -> dict[str, Any]:
        return {"letters": self.letters}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Letters:
        made = cls()
        made.letters = state["letters"]
        return made


class OneIdForTwo(Letters):
    unk_id = 0


class NoEos(Letters):
    def encode(self, text: str) -> list[int]:
        return super().encode(text)[:-1]


class ReadsOn(Letters):
    def decode(self, ids: Sequence[int]) -> str:
        return self.to_text([i for i in ids if i >= 4])


class Forgets(Letters):
    def state(self) -> dict[str, Any]:
        return {"letters": self.letters[::-1]}


class NeverTrained(Letters):
    def encode(self, text: str) -> list[int]:
        return [self.bos_id, self.eos_id]

    @property
    def trained(self) -> bool:
        return False


@pytest.mark.parametrize(
    ("tokenizer", "violation"),
    [
        (OneIdForTwo, "special ids"),
        (NoEos, "not bos ... eos"),
        (ReadsOn, "decode"),
        (Forgets, "state not restored"),
        (NeverTrained, "raised"),
    ],
)
def test_broken_tokenizers_are_caught_by_name(tokenizer: type, violation: str) -> None:
    assert not check(Letters).violations
    assert [f.check for f in check_tokenizer(tokenizer).violations] == [violation]


class Numbers(Dataset):
    """The smallest right dataset: three splits of two numbers, without images."""

    def split(self, name: str) -> Sequence[Any]:
        splits = ("train", "val", "test")
        if name not in splits:
            raise MissingSplitError(f"There is no split {name!r}. Splits: {', '.join(splits)}.")
        return self.records(name)

    def records(self, name: str) -> Sequence[Any]:
        return [Record(f"{name}-{i}", None, (f"number {i}",)) for i in range(2)]


class AnySplit(Numbers):
    def split(self, name: str) -> Sequence[Any]:
        return self.records(name)


class KeepsSplitsToItself(Numbers):
    def split(self, name: str) -> Sequence[Any]:
        if name == "no such split":
            raise MissingSplitError("No.")
        return self.records(name)


class SaysItInOtherWords(Numbers):
    """`velm fit` could not tell it from a split that is broken."""

    def split(self, name: str) -> Sequence[Any]:
        if name == "no such split":
            raise DataError("Splits: train, val, test.")
        return self.records(name)


class NoTexts(Numbers):
    def records(self, name: str) -> Sequence[Any]:
        return [Record(f"{name}-0", None, ())]


class Plain(Numbers):
    def records(self, name: str) -> Sequence[Any]:
        return [{"image_id": f"{name}-0"}]


class Empty(Numbers):
    def records(self, name: str) -> Sequence[Any]:
        return []


class FewTargets(Numbers):
    def records(self, name: str) -> Sequence[Any]:
        return [Record(f"{name}-0", None, ("one", "two"), targets=("eins",))]


class Overlap(Numbers):
    def records(self, name: str) -> Sequence[Any]:
        return super().records("all")


class Dice(Numbers):
    def records(self, name: str) -> Sequence[Any]:
        class Throws(list[Any]):
            def __getitem__(self, index: Any) -> Any:
                return Record(f"{name}-{index}", None, (str(random.random()),))

            def __reduce__(self) -> Any:
                return list, ([self[0], self[1]],)

        return Throws([0, 1])


@pytest.mark.parametrize(
    ("dataset", "violation"),
    [
        (AnySplit, "unknown split"),
        (KeepsSplitsToItself, "unknown split"),
        (SaysItInOtherWords, "unknown split"),
        (NoTexts, "records"),
        (Plain, "records"),
        (Empty, "records"),
        (FewTargets, "records"),
        (Overlap, "splits overlap"),
        (Dice, "not repeatable"),
    ],
)
def test_broken_datasets_are_caught_by_name(dataset: type, violation: str) -> None:
    assert not check(Numbers).violations
    assert [f.check for f in check_dataset(dataset).violations] == [violation]
