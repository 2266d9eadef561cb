"""The output folder of a bulk run: a manifest, and part-00017.parquet for each part; a file is whole or not there.

_manifest.json          what the parts are of: model, options, input, part size
part-00000.parquet      rows of the first part
_part-00001.parquet.*   a part that is being written; readers of Parquet folders skip names with '_'
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from velm.errors import DataError, RunFailedError
from velm.util import durable, write_atomically
from velm.version import __version__

__all__ = ["MANIFEST", "Output", "PartState"]

MANIFEST = "_manifest.json"
KEY = b"velm"
LABELS = {
    "writes": "another command",
    "model": "another model",
    "options": "other options",
    "input": "another input",
    "part_size": "another part size",
    "parts": "another number of parts",
}


@dataclass(frozen=True)
class PartState:
    """What the file of a part is.

    Attributes:
        finished: whether it is whole and of this run.
        errors: number of its bad images.
        rows: number of its images.
        broken: why a file that is there is not finished; None if it is, or if there is no file.
    """

    finished: bool
    errors: int = 0
    rows: int = 0
    broken: str | None = None


class Output:
    """The folder of a run; makes it with its manifest, or checks that the manifest there is that of the same run.

    Args:
        folder: made if it is missing.
        manifest: plain Python: 'writes', 'model', 'options', 'input', 'part_size', 'parts'.

    Raises:
        DataError: the folder holds something else; the message names both.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any]) -> None:
        self.folder, self.parts = folder, int(manifest["parts"])
        self.manifest = json.loads(json.dumps(manifest))
        self.digest = hashlib.sha256(json.dumps(self.manifest, sort_keys=True).encode()).hexdigest()[:16]
        try:
            folder.mkdir(parents=True, exist_ok=True)
            others = [name for name in os.listdir(folder) if not name.startswith(("_", "."))]
            path = folder / MANIFEST
            if not path.exists():
                if others:
                    raise DataError(
                        f"{str(folder)!r} is not empty and no bulk run wrote it ({others[0]} is there). "
                        f"Choose another folder."
                    )
                with write_atomically(path) as partial:
                    partial.write_text(
                        json.dumps({"velm": __version__, **self.manifest}, indent=1, ensure_ascii=False) + "\n",
                        encoding="utf-8",
                    )
        except OSError as error:
            raise DataError(f"{str(folder)!r} cannot be the output: {error}. Choose another folder.") from error
        self._check_manifest(path)

    def _check_manifest(self, path: Path) -> None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found.pop("velm")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{str(path)!r} was not written by a bulk run: {error!r}. Choose another folder."
            ) from error
        for name, label in LABELS.items():
            if found.get(name) != self.manifest[name]:
                raise DataError(
                    f"{str(self.folder)!r} holds {found.get('writes')} of {label}: "
                    f"{_differences(found.get(name), self.manifest[name])}. Run the command that began it, choose "
                    f"another folder, or delete this one."
                )

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:05d}.parquet"

    def state(self, number: int, verify: bool = False) -> PartState:
        """What the file of a part is, by its footer.

        Args:
            verify: read all of it and compare the checksums of its pages.
        """
        path = self.path(number)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                about = json.loads((file.schema_arrow.metadata or {})[KEY])
                if about["run"] != self.digest:
                    return PartState(False, broken="another run wrote it")
                if verify:
                    file.read()
                return PartState(True, int(about["errors"]), file.metadata.num_rows)
        except FileNotFoundError:
            return PartState(False)
        except (OSError, pa.ArrowException, KeyError, ValueError, TypeError) as error:
            return PartState(False, broken=str(error).splitlines()[0])

    def write(self, number: int, table: pa.Table, errors: int) -> None:
        """Write a part: to a temporary name, to the disk, and then to its own name.

        Raises:
            RunFailedError: the disk is full, or the folder has vanished.
        """
        about = json.dumps({"run": self.digest, "part": number, "errors": errors})
        table = table.replace_schema_metadata({KEY: about})
        path = self.path(number)
        partial = self.folder / f"_{path.name}.{socket.gethostname()}.{os.getpid()}"
        try:
            with durable(path, partial) as file:
                pq.write_table(table, file, compression="zstd", use_dictionary=False, write_page_checksum=True)
        except OSError as error:
            raise RunFailedError(
                f"{str(path)!r} cannot be written: {error.strerror or error}. The parts that are finished stay; free "
                f"space or bring the folder back, and run the same command again."
            ) from error

    def remove_leftovers(self, numbers: Sequence[int]) -> None:
        """Delete what killed processes had begun to write of these parts."""
        mine = {f"_{self.path(number).name}" for number in numbers}
        for name in os.listdir(self.folder):
            if name.rpartition(".parquet")[0] + ".parquet" in mine:
                with suppress(OSError):
                    (self.folder / name).unlink()


def _differences(there: Any, now: Any) -> str:
    """The two values; of mappings, what differs in them."""
    if isinstance(there, dict) and isinstance(now, dict):
        names = [name for name in {**there, **now} if there.get(name) != now.get(name)]
        there, now = ({name: each.get(name) for name in names} for each in (there, now))
    return f"there {json.dumps(there, ensure_ascii=False)}, now {json.dumps(now, ensure_ascii=False)}"
