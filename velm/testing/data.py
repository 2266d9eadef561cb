"""The contract checks of tokenizers and datasets."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from velm.data.base import Dataset, Record
from velm.data.text.base import Tokenizer
from velm.errors import MissingSplitError
from velm.testing.laws import PartUnderTest
from velm.testing.report import Report

TEXTS = (
    "a small red circle left of a large blue square",
    "two dogs play in the snow.",
    "a man, in a hat, rides a horse",
)


def check_tokenizer(tokenizer: Any, *, texts: Sequence[str] = TEXTS) -> Report:
    """Check every law of `velm.Tokenizer`.

    Args:
        tokenizer: a callable without arguments that builds a fresh instance, or an instance.
        texts: training texts, which are also encoded.
    """
    tested = PartUnderTest.of(tokenizer, "tokenizer")
    report, instance = tested.report, tested.instance
    if not tested.judge_type(Tokenizer):
        return report
    report.judge("raised", lambda: _trains(instance, texts))
    report.judge("special ids", lambda: _special_ids(instance), ("raised",))
    sound = ("raised", "special ids")
    report.judge("not bos ... eos", lambda: _framed(instance, ["", *texts]), sound)
    report.judge("decode", lambda: _round_trip(instance, texts), (*sound, "not bos ... eos"))
    report.judge("state not restored", lambda: _tokenizer_state(instance, texts), sound)
    return report


def _trains(tokenizer: Any, texts: Sequence[str]) -> str | None:
    tokenizer.train(texts)
    tokenizer.encode(texts[0])
    return None if tokenizer.trained else ".trained is False after train(); expected True."


def _special_ids(tokenizer: Any) -> str | None:
    ids = {name: getattr(tokenizer, name) for name in ("pad_id", "bos_id", "eos_id", "unk_id")}
    if len(set(ids.values())) < 4 or not all(0 <= i < tokenizer.vocab_size for i in ids.values()):
        return f"{ids} with vocab_size {tokenizer.vocab_size}; expected four distinct ids below it."
    return None


def _framed(tokenizer: Any, texts: Sequence[str]) -> str | None:
    for text in texts:
        ids = tokenizer.encode(text)
        if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids):
            return f"encode({text!r}) gave {ids!r}; expected a list of plain ints below {tokenizer.vocab_size}."
        special = [i for i in ids if i in (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id)]
        if len(ids) < 2 or ids[0] != tokenizer.bos_id or ids[-1] != tokenizer.eos_id or len(special) != 2:
            return (
                f"encode({text!r}) gave {ids}; expected one bos ({tokenizer.bos_id}) first, one eos "
                f"({tokenizer.eos_id}) last, and no padding between."
            )
    return None


def _round_trip(tokenizer: Any, texts: Sequence[str]) -> str | None:
    for text in texts:
        ids = tokenizer.encode(text)
        text_again = tokenizer.decode([*ids, tokenizer.pad_id, *ids])
        if tokenizer.encode(text_again) != ids:
            return (
                f"{text!r} becomes {text_again!r} by encode, padding and decode, whose ids differ; "
                "expected the same ids. Stop at the first eos, and drop special ids."
            )
    return None


def _tokenizer_state(tokenizer: Any, texts: Sequence[str]) -> str | None:
    second = type(tokenizer).from_state(json.loads(json.dumps(tokenizer.state())))
    wrong = [text for text in texts if second.encode(text) != tokenizer.encode(text)]
    if wrong or second.vocab_size != tokenizer.vocab_size:
        return (
            f"from_state(state()), through JSON, encodes {wrong[:1]} differently (vocab_size {second.vocab_size}, "
            f"was {tokenizer.vocab_size}); expected the same ids. Put everything needed into state()."
        )
    return None


def check_dataset(dataset: Any, *, splits: Sequence[str] = ("train", "val", "test")) -> Report:
    """Check every law of `velm.Dataset` on the first records of each split.

    Args:
        dataset: a callable without arguments that builds a fresh instance, or an instance.
        splits: names of the expected splits.
    """
    tested = PartUnderTest.of(dataset, "dataset")
    report, instance = tested.report, tested.instance
    if not tested.judge_type(Dataset):
        return report
    opened: dict[str, Sequence[Record]] = {}
    report.judge("raised", lambda: opened.update({name: instance.split(name) for name in splits}))
    report.judge("unknown split", lambda: _unknown_split(instance, splits))
    report.judge("records", lambda: _records(opened), ("raised",))
    report.judge("splits overlap", lambda: _overlap(opened), ("raised", "records"))
    report.judge("not repeatable", lambda: _repeatable(opened), ("raised", "records"))
    return report


def _unknown_split(dataset: Any, splits: Sequence[str]) -> str | None:
    try:
        dataset.split("no such split")
    except MissingSplitError as error:
        missing = [name for name in splits if name not in str(error)]
        return f"its message does not name {missing[0]!r}: {error}. List the existing splits." if missing else None
    return "split('no such split') returned a value; expected a MissingSplitError that lists the existing splits."


def _records(opened: dict[str, Sequence[Any]]) -> str | None:
    for name, records in opened.items():
        if len(records) == 0:
            return f"split {name!r} is empty; expected records, or a MissingSplitError."
        for i in range(min(len(records), 20)):
            record, title = records[i], f"record {i} of split {name!r}"
            if not isinstance(record, Record):
                return f"{title} is a {type(record).__name__}; expected velm.Record."
            if not isinstance(record.image_id, str) or not record.texts:
                return f"{title} has image_id {record.image_id!r}, texts {record.texts!r}; expected a str and texts."
            if not all(isinstance(text, str) for text in record.texts):
                return f"{title} has texts {record.texts!r}; expected a tuple of str."
            if record.targets is not None and len(record.targets) != len(record.texts):
                return f"{title} has {len(record.targets)} targets for {len(record.texts)} texts; expected one each."
    return None


def _overlap(opened: dict[str, Sequence[Record]]) -> str | None:
    seen: dict[str, str] = {}
    for name, records in opened.items():
        for i in range(min(len(records), 1000)):
            owner = seen.setdefault(records[i].image_id, name)
            if owner != name:
                return f"image {records[i].image_id!r} is in the splits {owner!r} and {name!r}; expected only one."
    return None


def _repeatable(opened: dict[str, Sequence[Record]]) -> str | None:
    for name, records in opened.items():
        copied = pickle.loads(pickle.dumps(records))  # as a DataLoader worker gets them
        for i in range(min(len(records), 3)):
            if not _same(records[i], records[i]) or not _same(records[i], copied[i]):
                return f"record {i} of split {name!r} differs when read again; expected the same. Seed by index."
    return None


def _same(first: Record, second: Record) -> bool:
    fields = [(r.image_id, r.texts, r.targets) for r in (first, second)]
    return fields[0] == fields[1] and np.array_equal(_pixels(first.image), _pixels(second.image))


def _pixels(image: Any) -> np.ndarray[Any, Any]:
    """An array to compare: the pixels, or the path or None as text."""
    is_image = image is not None and not isinstance(image, str) and not hasattr(image, "__fspath__")
    return np.asarray(image) if is_image else np.asarray(str(image))
