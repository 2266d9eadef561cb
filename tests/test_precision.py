"""A precision that this CPU emulates is warned of, by a run and by a pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from velm import _compat
from velm.pipeline import load
from velm.precision import warn_if_emulated

CPU = torch.device("cpu")


@pytest.fixture
def without_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "multiplies_bfloat16", lambda: False)


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "bf16"])
def test_the_warning_says_what_to_give(without_bfloat16: None, precision: str) -> None:
    with pytest.warns(UserWarning, match=rf"no instructions for bfloat16.*{precision}.*Give --trainer.precision=32"):
        warn_if_emulated(CPU, precision, "--trainer.precision=32-true")


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "32-true"), ("cpu", "32"), ("cpu", "16-mixed"), ("cuda", "bf16-mixed")]
)
def test_no_warning_of_others(without_bfloat16: None, device: str, precision: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_emulated(torch.device(device), precision, "32")


def test_no_warning_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_compat, "multiplies_bfloat16", lambda: True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_if_emulated(CPU, "bf16-mixed", "32")


def test_a_pipeline_warns(without_bfloat16: None, write_checkpoint: Callable[..., Path]) -> None:
    with pytest.warns(UserWarning, match="no instructions for bfloat16.* Give precision 32"):
        load(write_checkpoint(), precision="bf16")
