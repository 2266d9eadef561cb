from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from velm.training.data import VisionLanguageData
from velm.training.monitor.validate_at_end import ValidateAtEnd


@pytest.mark.parametrize(
    ("max_steps", "accumulate", "every", "expected"),
    [(2, 1, 1, 2), (2, 3, 1, 6), (9, 1, 1, 8), (-1, 1, 1, 8), (2, 1, 2, 8)],
)
def test_a_short_run_is_validated_at_its_last_step(max_steps: int, accumulate: int, every: int, expected: int) -> None:
    trainer: Any = SimpleNamespace(
        max_steps=max_steps, accumulate_grad_batches=accumulate, check_val_every_n_epoch=every, val_check_batch=8
    )
    ValidateAtEnd().on_train_start(trainer, SimpleNamespace())  # type: ignore[arg-type]
    assert trainer.val_check_batch == expected


def test_a_run_without_validation_says_so(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\na dog\n")
    data = VisionLanguageData(dataset={"name": "csv", "path": str(tmp_path / "a.csv"), "image_column": None})
    data.trainer = SimpleNamespace(state=SimpleNamespace(fn="fit"))  # type: ignore[assignment]
    with pytest.warns(
        UserWarning, match=r"Set val_fraction, to 0.1 .* no validation, and so last.ckpt but no best.ckpt"
    ):
        assert data.val_dataloader() == []
