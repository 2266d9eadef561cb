"""What a check has to say, how grave it is, and how all of it is told."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

__all__ = ["CHECKS", "Finding", "Severity", "examples", "exit_code", "share", "summary", "table"]

Severity = Literal["error", "warning", "info", "ok"]

#: Every check and what it looks at.
CHECKS: dict[str, str] = {
    "data": "the dataset and each of its splits can be read, and what of it cannot be used",
    "images": "every image file is there and can be decoded",
    "duplicates_across_splits": "no image of one split is in another, byte for byte or nearly",
    "duplicates_within_a_split": "the same image under two names",
    "tokenizer": "pad, bos, eos and unk are four different ids of the vocabulary",
    "long_captions": "how many sentences max_length cuts",
    "unknown_words": "how many tokens of a split are unknown to the tokenizer",
    "odd_captions": "sentences that are empty, huge, or hold NUL or replacement characters",
    "repeated_captions": "one sentence for many images",
    "trainer": "the Trainer can be built; how many devices share a step",
    "batch_size": "the training split fills a batch",
    "false_negatives": "rows of a batch with a caption of their own image among the negatives",
    "first_loss": "what a model that knows nothing scores",
    "steps": "optimizer steps of the whole run",
    "warmup": "the rate comes up well before the run is over",
    "accumulation": "accumulated batches are not taken for one large batch",
    "model": "model, losses and optimizer can be built, and suit the data",
    "lengths": "encoder and decoder hold the longest sentence",
    "learning_rate": "a pretrained part is trained gently",
    "parameters": "numbers to learn, by part",
    "memory": "a step runs, and how much memory it takes",
}


@dataclass(frozen=True)
class Finding:
    """One thing a check says.

    Attributes:
        check: a name in `CHECKS`.
        severity: 'error', the run fails or cannot learn what is meant; 'warning', its figures or its learning suffer;
            'info', a figure to know; 'ok', looked at and nothing to say.
        message: what was found, with its numbers.
        advice: what to do; empty where there is nothing to do.
        value: the numbers, as JSON can hold them.
    """

    check: str
    severity: Severity
    message: str
    advice: str = ""
    value: Any = None

    def __post_init__(self) -> None:
        if self.check not in CHECKS or self.severity not in get_args(Severity):
            raise ValueError(f"A finding has a check of CHECKS and a Severity; got {self.check!r}, {self.severity!r}.")


def exit_code(findings: Iterable[Finding]) -> int:
    """0: nothing but information; 1: warnings; 2: errors."""
    return max(({"error": 2, "warning": 1}.get(finding.severity, 0) for finding in findings), default=0)


def summary(findings: Sequence[Finding]) -> dict[str, int]:
    """How many findings there are of each severity, and the exit code."""
    counts = {severity: sum(f.severity == severity for f in findings) for severity in get_args(Severity)}
    return {**counts, "exit_code": exit_code(findings)}


def as_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """All of it as JSON can hold it: {'findings': [...], 'summary': {...}}."""
    return {"findings": [asdict(finding) for finding in findings], "summary": summary(findings)}


def table(findings: Sequence[Finding], width: int = 110) -> str:
    """All of it for people, gravest first, and a line that sums it up."""
    names = max((len(finding.check) for finding in findings), default=0)
    severities = max(map(len, get_args(Severity)))
    indent = " " * (severities + names + 4)
    lines = []
    for severity in get_args(Severity):
        for finding in findings:
            if finding.severity == severity:
                head = f"{severity.ljust(severities)}  {finding.check.ljust(names)}  "
                lines += textwrap.wrap(finding.message, width, initial_indent=head, subsequent_indent=indent)
                lines += textwrap.wrap(finding.advice, width, initial_indent=f"{indent}> ", subsequent_indent=indent)
    counted = summary(findings)
    verdict = {0: "nothing stands in the way", 1: "look at the warnings first", 2: "mend the errors first"}
    errors, warnings = _plural(counted["error"], "error"), _plural(counted["warning"], "warning")
    lines.append(f"\n{errors}, {warnings}, {counted['info'] + counted['ok']} others: {verdict[counted['exit_code']]}.")
    return "\n".join(lines)


def _plural(count: int, word: str) -> str:
    return f"{count} {word}" + ("" if count == 1 else "s")


def examples(items: Sequence[str], count: int = 3) -> str:
    """The first few of a list, and dots where there are more."""
    return ", ".join(items[:count]) + (", ..." if len(items) > count else "")


def share(part: int, whole: int) -> str:
    """'3 of 40 (7.5%)'."""
    return f"{part:,} of {whole:,} ({100 * part / max(whole, 1):.1f}%)"
