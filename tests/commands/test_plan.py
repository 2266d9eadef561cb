"""`velm plan` says what fits, what to set if it does not, and its assumptions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from velm import cli

CONFIG = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
SMALL = [
    "--config", CONFIG, "--vocab_size", "50", "--model.text_encoder={name: transformer, dim: 32, depth: 1, heads: 2}",
    "--model.image_encoder={name: vit, dim: 32, depth: 2, heads: 2, patch_size: 16}",
    "--model.decoder={name: transformer, dim: 32, depth: 1, heads: 2}",
]  # fmt: skip
GIB = 2**30

pytestmark = pytest.mark.filterwarnings("ignore")


def plan(capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, dict[str, Any]]:
    status = cli.main(["plan", *SMALL, "--json", *options])
    content: dict[str, Any] = json.loads(capsys.readouterr().out)
    return status, content


def test_what_fits_and_its_parts(capsys: pytest.CaptureFixture[str]) -> None:
    status, content = plan(capsys, "--gpus", "64", "--gpu-memory", "80", "--samples", "8192000")
    assert status == 0
    assert content["fits"]
    assert content["gpu_memory"] == 80 * GIB
    assert content["setup"]["batch"] == 128
    assert content["memory"]["total"] == sum(size for part, size in content["memory"].items() if part != "total")
    rate = 128 * 64 / content["seconds"]["total"]
    assert content["samples_a_second"] == pytest.approx(rate)
    assert content["hours_an_epoch"] == pytest.approx(8192000 / rate / 3600)


def test_what_does_not_fit_comes_with_options_that_fit(capsys: pytest.CaptureFixture[str]) -> None:
    _, whole = plan(capsys, "--data.batch_size=512")
    small = f"{0.6 * whole['memory']['total'] / GIB:.4f}"
    status, content = plan(capsys, "--data.batch_size=512", "--gpu_memory", small)
    assert status == 1
    assert not content["fits"]
    (flag,) = content["advice"]["flags"]
    assert flag.startswith("--model.micro_batch_size=")
    assert content["advice"]["memory"]["total"] <= 0.9 * float(small) * GIB
    again, _ = plan(capsys, "--data.batch_size=512", "--gpu_memory", small, flag)
    assert again == 0
    assert cli.main(["plan", *SMALL, "--data.batch_size=512", "--gpu_memory", small]) == 1
    printed = capsys.readouterr().out
    assert "DOES NOT FIT" in printed
    assert flag in printed


def test_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *SMALL, "--gpu_memory", "0.0001"]) == 1
    assert "Nothing fits, not even one sample per device" in capsys.readouterr().out


def test_assumptions_are_options_and_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["plan", *SMALL, "--gpus", "16", "--utilisation", "0.25", "--interconnect_gb_s", "12"]) == 0
    printed = capsys.readouterr().out
    assert "assumed: 25% of 989 TFLOP/s" in printed
    assert "12 GB/s per device between machines" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--gpus", "0"], "0 is too small; it is at least 1"),
        (["--gpu_memory", "-3"], "-3 is not above 0"),
        (["--utilisation", "1.5"], "1.5 is not a fraction, above 0 and at most 1"),
        (["--device", "h1000"], "Unknown device 'h1000'. Known: v100"),
        (["--model.image_encoder.name=vitt"], "vitt"),
    ],
)
def test_what_makes_no_sense_is_refused(capsys: pytest.CaptureFixture[str], options: list[str], words: str) -> None:
    try:
        status = cli.main(["plan", *SMALL, *options])
    except SystemExit as stop:
        status = stop.code  # type: ignore[assignment]
    assert status == 2
    assert words in capsys.readouterr().err
