"""A file that cannot be written is warned of once and does not end the run."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from velm.training.monitor.loggers import ResumableCSVLogger
from velm.util import warn_on_oserror


def test_a_full_disk_is_warned_of_once_per_file(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match=r"a.txt cannot be written .*No space left.*training continues"),
        warn_on_oserror(tmp_path / "a.txt"),
    ):
        Path("/dev/full").write_text("a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with warn_on_oserror(tmp_path / "a.txt"):
            Path("/dev/full").write_text("a")


def test_other_errors_are_raised(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="wrong"), warn_on_oserror(tmp_path / "b.txt"):
        raise ValueError("wrong")


@pytest.mark.filterwarnings("ignore")
def test_metrics_that_could_not_be_written_are_written_when_there_is_space(tmp_path: Path) -> None:
    logger = ResumableCSVLogger(tmp_path / "run")
    logger.log_metrics({"train/loss": 1.0}, step=0)
    file = tmp_path / "run" / "metrics.csv"
    file.symlink_to("/dev/full")
    logger.save()
    file.unlink()
    logger.log_metrics({"train/loss": 2.0}, step=1)
    logger.save()
    assert file.read_text(encoding="utf-8").splitlines() == ["step,train/loss", "0,1.0", "1,2.0"]
