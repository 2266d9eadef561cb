"""Metrics by name, imported when they are used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import velm.metrics


def test_every_name_resolves() -> None:
    assert all(callable(getattr(velm.metrics, name)) for name in velm.metrics.__all__)
    assert dir(velm.metrics) == velm.metrics.__all__


def test_an_unknown_name_lists_the_known() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'blue'; it has: CaptionMetrics"):
        velm.metrics.blue  # noqa: B018


def test_caption_metrics_need_no_torch() -> None:
    program = "import sys, velm.metrics; velm.metrics.bleu(['a'], [['a']]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
