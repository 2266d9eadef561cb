"""Small foreign models, made once for each process that runs tests."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import foreign
import pytest


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`folders(kind, **options) -> Path` of a model that was saved with its tokenizer and image processor."""
    made: dict[str, Path] = {}
    makers = {"clip": foreign.save_clip, "siglip": foreign.save_siglip}

    def folder(kind: str, **options: Any) -> Path:
        key = f"{kind} {options}"
        if key not in made:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made[key] = makers[kind](tmp_path_factory.mktemp(kind), **options)
        return made[key]

    return folder
