"""Exports that are read in this process, where a process of its own is not what a test is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from velm.exports import formats
from velm.exports.change import Exercise, model_metrics
from velm.exports.readers import MODELS, READERS


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Saves the seconds that a new process takes to import its libraries."""

    def metrics(reader: str, folder: Path, exercise: dict[str, Any], plugins: Any) -> dict[str, float]:
        return model_metrics(MODELS[reader](folder, plugins), Exercise(**json.loads(json.dumps(exercise))))

    monkeypatch.setattr(formats, "in_fresh_process", lambda reader, *args: READERS[reader](*args))
    monkeypatch.setattr(formats, "metrics_in_fresh_process", metrics)
