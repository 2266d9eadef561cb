"""Checks of the tokenizer and of the texts of every split: lengths, unknown tokens, odd and repeated texts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from velm.data.base import Record, text_only
from velm.data.batches.lengths import template_lengths
from velm.data.text.base import Tokenizer
from velm.data.text.template import Template
from velm.data.text.vocabulary import sampled_indices, unknown_advice
from velm.findings import Finding, Severity, examples, share

LIMIT = 10_000  # records read per split, evenly spaced
CUT = 0.05  # fraction of texts cut by max_length; at least this is a warning
UNKNOWN = 0.10  # fraction of unknown tokens; more is a warning
HUGE = 1000  # characters
REPEATED = (5, 0.01)  # a warning if one text has more images than this, and more than this fraction of the split


@dataclass(frozen=True)
class TextStatistics:
    """The texts of a split.

    Attributes:
        images: number of records read.
        by_text: image_ids by text.
        lengths: int (texts,), tokens with bos and eos; targets included.
        tokens: number of tokens of all texts, without bos and eos.
        unknown: number of unk among them.
    """

    images: int
    by_text: Mapping[str, set[str]]
    lengths: np.ndarray
    tokens: int
    unknown: int


def read_texts(
    records: Sequence[Record], tokenizer: Tokenizer, limit: int = LIMIT, template: Template | None = None
) -> TextStatistics:
    """Read the texts of at most `limit` records, evenly spaced; with a template, prompt and target have one length."""
    indices = sampled_indices(len(records), limit)
    by_text: dict[str, set[str]] = defaultdict(set)
    lengths, tokens, unknown = [], 0, 0
    for index in indices:
        record = text_only(records, index)
        for text in record.texts:
            by_text[text].add(record.image_id)
        for text in (*record.texts, *(record.targets or ())):
            ids = tokenizer.to_ids(text)
            tokens += len(ids)
            unknown += sum(i == tokenizer.unk_id for i in ids)
            if template is None:
                lengths.append(len(ids) + 2)
        if template is not None:
            lengths += template_lengths(record, template)
    return TextStatistics(len(indices), by_text, np.asarray(lengths, dtype=np.int64), tokens, unknown)


def special_tokens(tokenizer: Tokenizer) -> Finding:
    """Whether pad, bos, eos and unk are four different ids of the vocabulary."""
    ids = {name: int(getattr(tokenizer, f"{name}_id")) for name in ("pad", "bos", "eos", "unk")}
    outside = [name for name, i in ids.items() if not 0 <= i < tokenizer.vocab_size]
    listed = ", ".join(f"{name} {i}" for name, i in ids.items())
    value = {**ids, "vocab_size": tokenizer.vocab_size}
    if len(set(ids.values())) < 4:
        message = f"Special tokens share an id: {listed}."
        return Finding("tokenizer", "error", message, "Give each its own id in the tokenizer.", value)
    if outside:
        message = f"{examples(outside)} lies outside the vocabulary of {tokenizer.vocab_size}: {listed}."
        return Finding("tokenizer", "error", message, "vocab_size includes the special tokens.", value)
    return Finding("tokenizer", "ok", f"A vocabulary of {tokenizer.vocab_size:,}; {listed}.", value=value)


def long_captions(splits: Mapping[str, TextStatistics], max_length: int) -> Finding:
    """Texts of all splits that `max_length` cuts; a warning from 5%."""
    lengths = np.concatenate([split.lengths for split in splits.values()])
    longest, cut = int(lengths.max(initial=0)), int((lengths > max_length).sum())
    part = cut / max(len(lengths), 1)
    value = {"cut": cut, "share": part, "longest": longest, "max_length": max_length}
    if not cut:
        message = f"max_length {max_length} cuts no text: the longest has {longest} tokens, bos and eos included."
        return Finding("long_captions", "ok", message, value=value)
    most = int(np.quantile(lengths, 0.99))
    message = f"max_length {max_length} cuts {share(cut, len(lengths))} texts; the longest has {longest} tokens."
    advice = f"data.max_length={longest} cuts none, {most} cuts 1%."
    return Finding("long_captions", "warning" if part >= CUT else "info", message, advice, value)


def unknown_words(splits: Mapping[str, TextStatistics], tokenizer: Tokenizer) -> Finding:
    """The fraction of unknown tokens by split; a warning above 10%."""
    shares = {name: split.unknown / max(split.tokens, 1) for name, split in splits.items()}
    message = "Unknown tokens: " + ", ".join(f"{100 * value:.1f}% of {name}" for name, value in shares.items()) + "."
    if max(shares.values(), default=0) > UNKNOWN:
        return Finding("unknown_words", "warning", message, unknown_advice(tokenizer), shares)
    return Finding("unknown_words", "info" if any(shares.values()) else "ok", message, value=shares)


def odd_captions(splits: Mapping[str, TextStatistics]) -> list[Finding]:
    """Texts that are empty, longer than 1,000 characters, or hold NUL or U+FFFD (the mark of a wrong encoding)."""
    kinds = {
        "empty": ("are empty", lambda text: not text.strip(), "Remove their rows."),
        "huge": (
            f"are longer than {HUGE:,} characters",
            lambda text: len(text) > HUGE,
            "Check whether rows were joined.",
        ),
        "nul": ("hold a NUL character", lambda text: "\0" in text, "Clean the file: this is not plain text."),
        "replacement": (
            "hold U+FFFD, which stands for bytes that could not be decoded",
            lambda text: "�" in text,
            "Read the source in its own encoding and write the file in UTF-8.",
        ),
    }
    findings = []
    for kind, (predicate, is_odd, advice) in kinds.items():
        odd = [(name, text) for name, split in splits.items() for text in split.by_text if is_odd(text)]
        if odd:
            shown = examples([f"{name} {text[:40]!r}" for name, text in odd])
            message = f"{len(odd):,} different texts {predicate}: {shown}."
            findings.append(Finding("odd_captions", "warning", message, advice, {"kind": kind, "count": len(odd)}))
    return findings or [Finding("odd_captions", "ok", "No text is empty, huge or broken.", value={"count": 0})]


def repeated_captions(splits: Mapping[str, TextStatistics]) -> Finding:
    """One text for many images: such rows are false negatives, and retrieval cannot tell the images apart."""
    parts, worst = [], {}
    severity: Severity = "ok"
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
    message = "Images that share a text with another: " + ("; ".join(parts) or "none") + "."
    advice = "In a batch these are false negatives: describe the images more closely, or remove the text."
    return Finding("repeated_captions", severity, message, advice if severity == "warning" else "", worst)
