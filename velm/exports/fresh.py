"""Runs golden inputs through an exported model in a process of its own: `python -m velm.exports.fresh ...`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from velm.errors import ExportError
from velm.exports.golden import Golden, read_golden, write_golden
from velm.exports.readers import READERS

__all__ = ["in_fresh_process", "main"]


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
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "velm.exports.fresh", reader, str(folder), str(given), str(found)]
        ran = subprocess.run(
            [*command, json.dumps(list(plugins))], env=environment, capture_output=True, text=True, check=False
        )
        if ran.returncode:
            lines = ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"]
            raise ExportError(f"What was written cannot be read in a fresh process: {lines[-1]}")
        return read_golden(found)


def main(argv: Sequence[str]) -> None:
    """READER FOLDER GIVEN FOUND PLUGINS: read the golden file GIVEN and write FOUND."""
    reader, folder, given, found, plugins = argv
    golden = read_golden(Path(given))
    write_golden(READERS[reader](Path(folder), golden, json.loads(plugins)), Path(found))


if __name__ == "__main__":
    main(sys.argv[1:])
