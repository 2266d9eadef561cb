"""What opening a table warns of is a finding of `velm doctor`."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from velm.data.formats.delimited import CSV
from velm.doctor.examine import _Examination


def test_warnings_of_a_table_are_findings(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = [
        "image_path;text;image_id",
        "a.jpg;one, two;1",
        "a.jpg;three;2",
        'b.jpg;"open;3',
        'c.jpg;"x;y";4',
        "d.jpg;;5",
    ]
    path.write_text("\n".join(lines) + "\n")
    dataset = CSV(path=str(path), check_files=False)
    dataset.max_bad = 1.0
    data: Any = SimpleNamespace(records=dataset.split)
    examination = _Examination({"data": {"max_bad": 0.9}})
    assert list(examination.open_splits(data)) == ["train"]
    found = {(finding.severity, part) for finding in examination.findings for part in (
        "delimiter: semicolon", "a file has several ids: 'a.jpg' is image '1' and image '2'", "a stray quotation mark"
    ) if part in finding.message}  # fmt: skip
    assert found == {
        ("info", "delimiter: semicolon"),
        ("warning", "a file has several ids: 'a.jpg' is image '1' and image '2'"),
        ("warning", "a stray quotation mark"),
    }
