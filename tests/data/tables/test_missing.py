from __future__ import annotations

from pathlib import Path

import pytest

from velm.data.tables import missing
from velm.data.tables.missing import missing_images


@pytest.mark.parametrize("together", [1, 2, 100])
def test_what_is_not_there_is_named_once_and_in_order(
    tmp_path: Path, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(missing, "SLICE", together)
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("1.png", "a/2.png", "a/b/3.png"):
        (tmp_path / name).touch()
    paths = ["1.png", "z/1.png", "a/2.png", "a/1.png", "a/b/3.png", "z/1.png", "2.png", "a/./2.png", "a/1.png"]
    bad_samples = missing_images(str(tmp_path), iter(paths))
    assert [bad_sample.path for bad_sample in bad_samples] == [
        str(tmp_path / name) for name in ("z/1.png", "a/1.png", "2.png")
    ]
    assert "There is no image" in bad_samples[0].cause
    assert repr(str(tmp_path)) in bad_samples[0].advice
    assert missing_images(str(tmp_path), []) == []
