"""Runs what was written in a process of its own: `python -m velm.exports.fresh ...` and `velm.exports.change`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from velm.errors import ExportError
from velm.exports.golden import TOKENS, Golden, read_golden, write_golden
from velm.exports.readers import READERS

__all__ = ["in_fresh_process", "main", "metrics_in_fresh_process"]


def in_fresh_process(reader: str, folder: Path, golden: Golden, plugins: Sequence[str] = ()) -> Golden:
    """What the files of a folder say of golden inputs, read by a new process without the network.

    Args:
        reader: a name of `velm.exports.readers.READERS`.

    Raises:
        ExportError: the process failed; the message has its last line.
    """
    with TemporaryDirectory() as place:
        given, found = Path(place) / "given.safetensors", Path(place) / "found.safetensors"
        write_golden(golden, given)
        if reader == "onnx":  # without torch
            _run("velm.onnx.golden", reader, folder, given, found, TOKENS)
        else:
            _run("velm.exports.fresh", reader, folder, given, found, list(plugins))
        return read_golden(found)


def metrics_in_fresh_process(
    reader: str, folder: Path, exercise: dict[str, Any], plugins: Sequence[str] = ()
) -> dict[str, float]:
    """`velm.exports.change.model_metrics` of the files of a folder, by a new process without the network.

    Args:
        reader: a name of `velm.exports.readers.MODELS`.
        exercise: the fields of an `Exercise`.

    Raises:
        ExportError: the process failed; the message has its last line.
    """
    with TemporaryDirectory() as place:
        given, found = Path(place) / "given.json", Path(place) / "found.json"
        given.write_text(json.dumps(exercise), encoding="utf-8")
        _run("velm.exports.change", reader, folder, given, found, list(plugins))
        metrics: dict[str, float] = json.loads(found.read_text(encoding="utf-8"))
        return metrics


def _run(module: str, reader: str, folder: Path, given: Path, found: Path, last: Any) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", module, reader, str(folder), str(given), str(found), json.dumps(last)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if ran.returncode:
        lines = ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"]
        raise ExportError(f"What was written cannot be read in a fresh process: {lines[-1]}")


def main(argv: Sequence[str]) -> None:
    """READER FOLDER GIVEN FOUND PLUGINS: read the golden file GIVEN and write FOUND."""
    reader, folder, given, found, plugins = argv
    golden = read_golden(Path(given))
    write_golden(READERS[reader](Path(folder), golden, json.loads(plugins)), Path(found))


if __name__ == "__main__":
    main(sys.argv[1:])
