"""Findings are told gravest first, counted, and decide the exit code."""

from __future__ import annotations

import pytest

from velm.findings import Finding, exit_code, share, summary, table

ALL = [
    Finding("steps", "ok", "All is well."),
    Finding("data", "error", "It cannot be read.", "Mend it."),
    Finding("warmup", "warning", "Too long.", "Shorten it."),
    Finding("memory", "info", "About 3 MiB."),
]


@pytest.mark.parametrize(("kept", "code"), [((0, 3), 0), ((0, 2, 3), 1), ((0, 1, 2, 3), 2), ((), 0)])
def test_the_gravest_finding_decides_the_exit_code(kept: tuple[int, ...], code: int) -> None:
    findings = [ALL[i] for i in kept]
    assert exit_code(findings) == summary(findings)["exit_code"] == code


def test_the_table_is_grouped_by_severity_and_ends_with_a_summary() -> None:
    lines = table(ALL).splitlines()
    assert [line.split()[0] for line in lines if line[:1].strip()] == ["error", "warning", "info", "ok", "1"]
    assert "> Mend it." in lines[1]
    assert lines[-1] == "1 error, 1 warning, 2 others: mend the errors first."
    assert table(ALL[:1]).endswith("0 errors, 0 warnings, 1 others: nothing stands in the way.")


def test_a_finding_is_of_a_known_check_and_severity() -> None:
    with pytest.raises(ValueError, match="a check of CHECKS and a Severity; got 'stepz', 'ok'"):
        Finding("stepz", "ok", "")
    with pytest.raises(ValueError, match="'fatal'"):
        Finding("steps", "fatal", "")  # type: ignore[arg-type]


def test_shares() -> None:
    assert share(3, 40) == "3 of 40 (7.5%)"
    assert share(0, 0) == "0 of 0 (0.0%)"
