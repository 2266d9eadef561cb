"""What `velm fit` prints on a terminal of 80 columns: parameters by part, one moving line, a line a validation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import TINY

from tests.training.test_task import make_task
from velm.training.monitor.progress import parameter_lines

CONFIG = {
    **TINY,
    "model": {**TINY["model"], "watch": {"chance": 0, "effective_rank": 0, "distinct": 0}},
    "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
}


def on_a_terminal(command: list[str], folder: Path) -> str:
    """What a command writes to a terminal of 80 columns and 24 rows."""
    fcntl, pty, termios = (pytest.importorskip(name) for name in ("fcntl", "pty", "termios"))
    import struct

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    environment = {**os.environ, "PYTHONPATH": os.getcwd(), "TERM": "xterm", "COLUMNS": "80"}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=theirs, stderr=theirs, stdin=theirs)
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 65536):
            written += chunk
    except OSError:  # the terminal is closed when the command has ended
        pass
    os.close(ours)
    assert process.wait(60) == 0, written.decode()
    return written.decode()


@pytest.mark.timeout(200)
def test_fit_on_eighty_columns(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    written = on_a_terminal([sys.executable, "-m", "velm", "fit", "--config", "tiny.yaml"], tmp_path)
    lines = [line for line in re.split(r"[\r\n]+", written) if line.strip()]
    assert all(len(line) <= 80 for line in lines)
    assert "\x1b[A" not in written, "nothing moves up: the line that changes is one line"
    bars = [line for line in lines if " left]" in line]
    assert re.search(r"epoch 2/2  loss \d+\.\d{3}  val/score 0\.\d{3} \|.*\| \d/8 \[[\d:]+ left\]", bars[-1])
    validations = [line for line in lines if "best so far" in line]
    assert len(validations) == 2
    assert re.match(r"epoch 1  step 4  val/loss \d+\.\d+  val/score 0\.\d+  best so far 0\.\d+$", validations[0])
    parameters = lines[: lines.index(next(line for line in lines if line.startswith("parameters"))) + 1]
    names = ["image_encoder", "text_encoder", "decoder", "image_projection", "text_projection", "losses", "parameters"]
    assert [line.split()[0] for line in parameters] == names
    rest = [line for line in lines if line not in {*bars, *validations, *parameters}]
    assert [line.split()[0] for line in rest] == ["Last", "image_to_text/recall@1", "The", "Next:", "velm"]


def test_parameters_are_counted_once_and_frozen_ones_are_named() -> None:
    task = make_task(freeze=["image_encoder"])
    rows = {line.split()[0]: line.split()[1:] for line in parameter_lines(task)}
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in task.model.named_children()}
    assert rows["image_encoder"] == [f"{sizes['image_encoder']:,}", "frozen"]
    assert rows["decoder"] == [f"{sizes['decoder']:,}"]
    total = sum(p.numel() for p in task.parameters())
    assert rows["parameters"] == [f"{total:,}", f"{total - sizes['image_encoder']:,}", "trained"]
    task.model.text_encoder.extra = task.model.decoder.get_parameter(
        next(iter(dict(task.model.decoder.named_parameters())))
    )
    assert parameter_lines(task)[-1].split()[1] == f"{total:,}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("option", ["--trainer.enable_progress_bar=false", "--trainer.callbacks=TQDMProgressBar"])
def test_another_progress_bar_or_none(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from velm import cli

    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    options = [f"--trainer.default_root_dir={tmp_path / 'run'}", "--trainer.max_epochs=1", option]
    assert cli.main(["fit", "--config", str(tmp_path / "tiny.yaml"), *options]) == 0
    assert "best so far" in capsys.readouterr().out
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 4
