"""Reads a run that W&B has recorded offline: the records of its .wandb file, by W&B's own protocol buffers.

wandb 0.31 has no reader in Python. The file is a LevelDB log: after a head of 7 bytes, blocks of 32 KiB with records
of checksum (4 bytes), length (2) and type (1: whole, 2: first part, 3: middle, 4: last).
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BLOCK, HEAD = 32768, 7


def records(file: Path) -> Iterator[Any]:
    """The `Record` messages of a .wandb file."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, position, parts = file.read_bytes(), HEAD, b""
    assert content[:4] == b":W&B"
    while position + HEAD <= len(content):
        if BLOCK - position % BLOCK < HEAD:  # the rest of a block that holds no head
            position += BLOCK - position % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[position : position + HEAD])
        if position + HEAD + length > len(content):  # is being written
            return
        parts += content[position + HEAD : position + HEAD + length]
        position += HEAD + length
        if kind in (1, 4):
            record = Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


class WandbRun:
    """A folder offline-run-<time>-<id>: its id, config, rows of history, alerts, and artifacts with their aliases.

    W&B's service writes the last records after `finish` has returned: they are waited for.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.exit_code = folder, None
        until = time.monotonic() + 30
        while self.exit_code is None and time.monotonic() < until:
            self._read()
            time.sleep(0.05)

    def _read(self) -> None:
        self.config, self.rows, self.alerts = {}, [], []  # type: ignore[var-annotated]
        self.artifacts: list[tuple[str, tuple[str, ...]]] = []
        self.id, self.exit_code = "", None
        (file,) = self.folder.glob("*.wandb")
        for record in records(file):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                self.id = record.run.run_id or self.id
            elif kind == "config":
                self.config |= {item.key: json.loads(item.value_json) for item in record.config.update}
            elif kind == "history":
                row: dict[str, Any] = {}
                for item in record.history.item:
                    *outer, name = list(item.nested_key) or [item.key]
                    place = row
                    for key in outer:
                        place = place.setdefault(key, {})
                    place[name] = json.loads(item.value_json)
                self.rows.append(row)
            elif kind == "alert":
                self.alerts.append((record.alert.title, record.alert.text))
            elif kind == "exit":
                self.exit_code = record.exit.exit_code
            elif kind == "artifact" or (
                kind == "request" and record.request.WhichOneof("request_type") == "log_artifact"
            ):
                artifact = record.artifact if kind == "artifact" else record.request.log_artifact.artifact
                self.artifacts.append((artifact.type, tuple(artifact.aliases)))

    def curve(self, name: str) -> dict[int, float]:
        """Step to value of a metric."""
        return {row["trainer/global_step"]: row[name] for row in self.rows if name in row}
