"""Small foreign models, made once for each process that runs tests."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import pytest
import vlm_cases


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


@pytest.fixture(scope="session")
def vlm_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], vlm_cases.Case]:
    """The `Case` of a family's name, see `vlm_cases.SAVE`."""

    @functools.cache
    def case(name: str) -> vlm_cases.Case:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return vlm_cases.Case(name, tmp_path_factory.mktemp("vlm") / name)

    return case
