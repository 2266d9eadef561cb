"""The sentences of every split: their length in tokens, their unknown words, and what should not be in them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from velm.data.base import Record
from velm.data.text.base import Tokenizer
from velm.findings import Finding, Severity, examples, share

__all__ = [
    "Sentences", "long_captions", "odd_captions", "read_sentences", "repeated_captions", "special_tokens",
    "unknown_words",
]  # fmt: skip

LIMIT = 10_000  # records of a split whose sentences are read, evenly spaced
CUT = 0.05  # share of sentences cut from which it is a warning
UNKNOWN = 0.10  # share of tokens unknown from which it is a warning
HUGE = 1000  # characters
REPEATED = (5, 0.01)  # one sentence for more images than this, and for more than this share of them: a warning


@dataclass(frozen=True)
class Sentences:
    """The sentences of a split.

    Attributes:
        images: records read.
        by_text: the image_ids that each sentence belongs to.
        lengths: int (sentences,), tokens with bos and eos; targets are sentences too.
        tokens: of all sentences, without bos and eos.
        unknown: of these, how many are unk.
    """

    images: int
    by_text: Mapping[str, set[str]]
    lengths: np.ndarray
    tokens: int
    unknown: int


def read_sentences(records: Sequence[Record], tokenizer: Tokenizer, limit: int = LIMIT) -> Sentences:
    """Read the sentences of at most `limit` records, evenly spaced."""
    places = np.unique(np.linspace(0, len(records) - 1, min(limit, len(records))).round().astype(int)).tolist()
    by_text: dict[str, set[str]] = defaultdict(set)
    lengths, unknown = [], 0
    for place in places:
        record = records[place]
        for text in record.texts:
            by_text[text].add(record.image_id)
        for text in (*record.texts, *(record.targets or ())):
            ids = tokenizer.to_ids(text)
            lengths.append(len(ids) + 2)
            unknown += sum(i == tokenizer.unk_id for i in ids)
    counted = np.asarray(lengths, dtype=np.int64)
    return Sentences(len(places), by_text, counted, int(counted.sum()) - 2 * len(counted), unknown)


def special_tokens(tokenizer: Tokenizer) -> Finding:
    """Are pad, bos, eos and unk four different ids of the vocabulary?"""
    ids = {name: int(getattr(tokenizer, f"{name}_id")) for name in ("pad", "bos", "eos", "unk")}
    outside = [name for name, i in ids.items() if not 0 <= i < tokenizer.vocab_size]
    listed = ", ".join(f"{name} {i}" for name, i in ids.items())
    value = {**ids, "vocab_size": tokenizer.vocab_size}
    if len(set(ids.values())) < 4:
        message = f"Special tokens share an id: {listed}."
        return Finding("tokenizer", "error", message, "Give each an id of its own in the tokenizer.", value)
    if outside:
        message = f"{examples(outside)} lies outside the vocabulary of {tokenizer.vocab_size}: {listed}."
        return Finding("tokenizer", "error", message, "vocab_size counts the special tokens too.", value)
    return Finding("tokenizer", "ok", f"A vocabulary of {tokenizer.vocab_size:,}; {listed}.", value=value)


def long_captions(splits: Mapping[str, Sentences], max_length: int) -> Finding:
    """How many sentences `max_length` tokens cut, of all splits together; a warning from 5%."""
    lengths = np.concatenate([split.lengths for split in splits.values()])
    longest, cut = int(lengths.max(initial=0)), int((lengths > max_length).sum())
    part = cut / max(len(lengths), 1)
    value = {"cut": cut, "share": part, "longest": longest, "max_length": max_length}
    if not cut:
        message = f"max_length {max_length} cuts no sentence: the longest has {longest} tokens, bos and eos included."
        return Finding("long_captions", "ok", message, value=value)
    most = int(np.quantile(lengths, 0.99))
    message = f"max_length {max_length} cuts {share(cut, len(lengths))} sentences; the longest has {longest} tokens."
    advice = f"data.max_length={longest} keeps all of them whole, {most} keeps 99%."
    return Finding("long_captions", "warning" if part >= CUT else "info", message, advice, value)


def unknown_words(splits: Mapping[str, Sentences]) -> Finding:
    """The share of unknown tokens in each split; a warning where it is above 10%."""
    shares = {name: split.unknown / max(split.tokens, 1) for name, split in splits.items()}
    message = "Unknown tokens: " + ", ".join(f"{100 * value:.1f}% of {name}" for name, value in shares.items()) + "."
    if max(shares.values(), default=0) > UNKNOWN:
        advice = "Lower the tokenizer's min_frequency, raise its size, or take one without unknown words: bpe, byte."
        return Finding("unknown_words", "warning", message, advice, shares)
    return Finding("unknown_words", "info" if any(shares.values()) else "ok", message, value=shares)


def odd_captions(splits: Mapping[str, Sentences]) -> list[Finding]:
    """Sentences that are empty, longer than 1,000 characters, or hold NUL or U+FFFD, the mark of a wrong encoding."""
    kinds = {
        "empty": ("are empty", lambda text: not text.strip(), "Take their rows out."),
        "huge": (f"are longer than {HUGE:,} characters", lambda text: len(text) > HUGE, "See if rows ran together."),
        "nul": ("hold a NUL character", lambda text: "\0" in text, "Clean the file: it is no plain text there."),
        "replacement": (
            "hold U+FFFD, which stands for bytes that could not be decoded",
            lambda text: "�" in text,
            "Read the source in its own encoding and write the file anew in UTF-8.",
        ),
    }
    findings = []
    for kind, (words, is_odd, advice) in kinds.items():
        found = [(name, text) for name, split in splits.items() for text in split.by_text if is_odd(text)]
        if found:
            shown = examples([f"{name} {text[:40]!r}" for name, text in found])
            message = f"{len(found):,} different sentences {words}: {shown}."
            findings.append(Finding("odd_captions", "warning", message, advice, {"kind": kind, "count": len(found)}))
    return findings or [Finding("odd_captions", "ok", "No sentence is empty, huge or broken.", value={"count": 0})]


def repeated_captions(splits: Mapping[str, Sentences]) -> Finding:
    """One sentence for many images: negatives that are right, and a retrieval that cannot be."""
    parts, worst, severity = [], {}, "ok"
    for name, split in splits.items():
        shared = [(len(ids), text) for text, ids in split.by_text.items() if len(ids) > 1]
        sharing = len(set().union(*(ids for ids in split.by_text.values() if len(ids) > 1)))
        most, text = max(shared, default=(1, ""))
        worst[name] = {"images": most, "share": sharing / max(split.images, 1), "text": text}
        if shared:
            severity = "info" if severity == "ok" else severity
            parts.append(f"{name}: {share(sharing, split.images)} images, {text[:40]!r} for {most} of them")
        if most > REPEATED[0] and most > REPEATED[1] * split.images:
            severity = "warning"
    message = "Images that share a sentence with another: " + ("; ".join(parts) or "none") + "."
    advice = "In a batch it is a right answer counted as wrong; describe images more closely, or leave it out."
    return Finding("repeated_captions", _severity(severity), message, advice if severity == "warning" else "", worst)


def _severity(name: str) -> Severity:
    return {"warning": "warning", "info": "info"}.get(name, "ok")  # type: ignore[return-value]
