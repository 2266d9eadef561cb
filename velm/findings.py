"""`Finding`: the result of one check, and its table and JSON form, for `doctor`, `selfcheck` and `plugins check`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

__all__ = ["Finding", "Severity", "as_dict", "examples", "exit_code", "share", "summary", "table"]

Severity = Literal["error", "warning", "info", "ok", "skipped"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: name of the check.
        severity: 'error', the check failed; 'warning', the run works but its metrics or its learning suffer; 'info', a
            number or a remark; 'ok', the check passed; 'skipped', the check does not apply.
        message: what was measured or what differs, with its numbers.
        advice: what to do; empty if there is nothing to do.
        value: the numbers of the message as JSON types, with finite floats.
        seconds: duration of the check; None if it was not timed.

    Raises:
        ValueError: an unknown severity.
    """

    check: str
    severity: Severity
    message: str = ""
    advice: str = ""
    value: Any = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if self.severity not in SEVERITIES:
            raise ValueError(f"Unknown severity {self.severity!r}. Severities: {', '.join(SEVERITIES)}.")

    def __str__(self) -> str:
        return " ".join(part for part in (f"{self.check}:", self.message, self.advice) if part)


def exit_code(findings: Iterable[Finding]) -> int:
    """2 with errors, 1 with warnings, else 0."""
    return max(({"error": 2, "warning": 1}.get(finding.severity, 0) for finding in findings), default=0)


def summary(findings: Sequence[Finding]) -> dict[str, int]:
    """Number of findings by severity."""
    return {severity: sum(f.severity == severity for f in findings) for severity in SEVERITIES}


def as_dict(findings: Sequence[Finding], code: int) -> dict[str, Any]:
    """The JSON form: {'findings': [{'check', 'severity', ...}, ...], 'summary': {severity: count, 'exit_code': code}}.

    Args:
        findings: in any order, which is kept.
        code: exit code of the command.
    """
    return {"findings": [asdict(finding) for finding in findings], "summary": {**summary(findings), "exit_code": code}}


def table(findings: Sequence[Finding], width: int = 110) -> str:
    """Text form: one row per finding, errors first, advice below its message behind '>', counts in the last line."""
    names = max((len(finding.check) for finding in findings), default=0)
    severities = max(map(len, SEVERITIES))
    timed = any(finding.seconds is not None for finding in findings)
    lines = []
    for finding in sorted(findings, key=lambda finding: SEVERITIES.index(finding.severity)):
        head = f"{finding.severity:{severities}}  {finding.check:{names}}  "
        if timed:
            head += f"{'' if finding.seconds is None else f'{finding.seconds:.1f} s':>8}  "
        indent = " " * len(head)
        lines += textwrap.wrap(finding.message, width, initial_indent=head, subsequent_indent=indent) or [head.rstrip()]
        lines += textwrap.wrap(finding.advice, width, initial_indent=f"{indent}> ", subsequent_indent=indent)
    counts = summary(findings)
    plural = {"error": "errors", "warning": "warnings"}
    counted = [
        f"{count} {severity if count == 1 else plural.get(severity, severity)}"
        for severity, count in counts.items()
        if count or severity in plural
    ]
    return "\n".join([*lines, "", f"{', '.join(counted)}."])


def examples(items: Sequence[str], count: int = 3, separator: str = ", ") -> str:
    """The first `count` items, followed by '...' if there are more."""
    return separator.join([*items[:count], *(["..."] if len(items) > count else [])])


def share(part: int, whole: int) -> str:
    """'3 of 40 (7.5%)'."""
    return f"{part:,} of {whole:,} ({100 * part / max(whole, 1):.1f}%)"
