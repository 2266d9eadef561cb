"""Findings are sorted by severity, counted, and decide the exit code; their JSON form is plain."""

from __future__ import annotations

import json

import pytest

from velm.findings import Finding, as_dict, exit_code, share, summary, table

ALL = [
    Finding("steps", "ok", "All is well."),
    Finding("decoding", "skipped", "The model has no decoder.", seconds=0.04),
    Finding("data", "error", "It cannot be read.", "Repair it."),
    Finding("warmup", "warning", "Too long.", "Shorten it."),
    Finding("memory", "info", "About 3 MiB.", value={"total": 3}),
]


@pytest.mark.parametrize(("chosen", "code"), [((0, 1, 4), 0), ((0, 3, 4), 1), ((0, 2, 3, 4), 2), ((), 0)])
def test_the_worst_severity_decides_the_exit_code(chosen: tuple[int, ...], code: int) -> None:
    assert exit_code([ALL[i] for i in chosen]) == code


def test_the_table_is_sorted_by_severity_and_ends_with_counts() -> None:
    lines = table(ALL).splitlines()
    rows = [line.split()[0] for line in lines if line[:1].strip()]
    assert rows == ["error", "warning", "info", "ok", "skipped", "1"]
    assert "> Repair it." in lines[1]
    assert "0.0 s  The model has no decoder." in table(ALL)
    assert lines[-1] == "1 error, 1 warning, 1 info, 1 ok, 1 skipped."
    assert table(ALL[:1]).endswith("0 errors, 0 warnings, 1 ok.")
    assert table([Finding("steps", "ok")]).startswith("ok       steps\n")


def test_the_json_form_has_every_field_and_the_counts() -> None:
    content = as_dict(ALL, 2)
    assert json.loads(json.dumps(content, allow_nan=False)) == content
    assert content["findings"][4] == {
        "check": "memory", "severity": "info", "message": "About 3 MiB.", "advice": "", "value": {"total": 3},
        "seconds": None,
    }  # fmt: skip
    assert content["summary"] == {**summary(ALL), "exit_code": 2}
    assert summary(ALL) == {"error": 1, "warning": 1, "info": 1, "ok": 1, "skipped": 1}


def test_a_finding_has_a_known_severity() -> None:
    with pytest.raises(ValueError, match=r"Unknown severity 'fatal'\. Severities: error, warning, info, ok, skipped"):
        Finding("steps", "fatal", "")  # type: ignore[arg-type]


def test_a_finding_as_text_is_its_check_its_message_and_its_advice() -> None:
    assert str(ALL[2]) == "data: It cannot be read. Repair it."
    assert str(Finding("steps", "ok")) == "steps:"


def test_shares() -> None:
    assert share(3, 40) == "3 of 40 (7.5%)"
    assert share(0, 0) == "0 of 0 (0.0%)"
