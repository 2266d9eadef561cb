"""Files that cannot be written are told once and end nothing."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from velm.training.monitor.loggers import ResumableCSVLogger
from velm.training.recovery.writing import forgiving


def test_it_is_told_once_a_file(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match=r"a.txt cannot be written .*No space left.*training goes on"),
        forgiving(tmp_path / "a.txt"),
    ):
        Path("/dev/full").write_text("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with forgiving(tmp_path / "a.txt"):
            Path("/dev/full").write_text("a")


def test_other_errors_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), forgiving(tmp_path / "b.txt"):
        raise ValueError("wrong")


@pytest.mark.filterwarnings("ignore")
def test_rows_that_found_no_room_are_written_when_there_is_some(tmp_path: Path) -> None:
    logger = ResumableCSVLogger(tmp_path / "run")
    logger.log_metrics({"train/loss": 1.0}, step=0)
    file = tmp_path / "run" / "metrics.csv"
    file.symlink_to("/dev/full")
    logger.save()
    file.unlink()
    logger.log_metrics({"train/loss": 2.0}, step=1)
    logger.save()
    assert file.read_text(encoding="utf-8").splitlines() == ["step,train/loss", "0,1.0", "1,2.0"]
