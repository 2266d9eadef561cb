"""When one of many processes fails, the others say which and why, and end."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback
import uuid
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import TCPStore

from velm.errors import RunFailedError

__all__ = ["Ranks", "meet_anew"]

FOLDER = "ranks"
LOOK = 0.5
"""Seconds between two looks at the other ranks' files."""
GRACE = 20.0
"""Seconds that a process has to end by itself when another has failed; then it is ended."""
SEARCH = 3.0
"""Seconds for which a process that lost its peers looks for the one that failed."""
OF_PEERS = ("gloo", "nccl", "connection closed", "connection reset", "timed out", "timeout", "tcpstore", "broken pipe")


class Ranks(Callback):
    """A file a rank in `ranks/`: {"host", "pid", "error", "last"}, so that every rank can tell how the others are.

    A rank that fails writes down its error. The others notice it in the collective that breaks, or, where the backend
    keeps them waiting, by a thread that looks at the files twice a second; both name the rank and its error. A rank
    that was killed writes nothing: on the same machine its process is missed. On machines that do not share the run's
    folder, and for a rank that hangs, there is the process group's timeout.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / FOLDER
        self.rank, self.size, self.attempt = 0, 1, ""
        self._stop = threading.Event()

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        self.rank, self.size = trainer.global_rank, trainer.world_size
        self.attempt = trainer.strategy.broadcast(uuid.uuid4().hex)
        self._write()
        trainer.strategy.barrier("ranks")  # every file is of this attempt when the first look is taken
        self._stop.clear()
        threading.Thread(target=self._watch, args=(self._stop,), daemon=True).start()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Write the error down; where it is only the echo of another rank's, give it that one's name."""
        self._stop.set()
        if self.size == 1 or isinstance(exception, SIGTERMException | KeyboardInterrupt):
            self._write(last=True)
            return
        error = "".join(traceback.format_exception_only(type(exception), exception)).strip()
        if not _of_peers(exception):
            self._write(error, last=True)
            return
        culprit = self._search()
        self._write(last=True)
        whom = culprit or self._silent()
        exception.told = RunFailedError(f"{whom} Rank {self.rank} stops: {error.splitlines()[0]}. {_GO_ON}")  # type: ignore[attr-defined]

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._write(last=True)

    def _write(self, error: str = "", last: bool = False) -> None:
        """`last`: the process is about to end, and is not missed."""
        if self.size == 1:
            return
        row = {"attempt": self.attempt, "host": socket.gethostname(), "pid": os.getpid(), "error": error, "last": last}
        file = self.folder / f"rank_{self.rank}.json"
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            half_written = file.with_suffix(".part")
            half_written.write_text(json.dumps(row), encoding="utf-8")
            half_written.replace(file)

    def _others(self) -> dict[int, dict[str, Any]]:
        found = {}
        for rank in range(self.size):
            with contextlib.suppress(OSError, ValueError):
                row = json.loads((self.folder / f"rank_{rank}.json").read_text(encoding="utf-8"))
                if rank != self.rank and row["attempt"] == self.attempt:
                    found[rank] = row
        return found

    def _culprit(self) -> str | None:
        """A sentence on the rank that failed; None where none is known to have."""
        for rank, row in self._others().items():
            who = f"Rank {rank} ({row['host']}, process {row['pid']})"
            if row["error"]:
                return f"{who} failed: {row['error'].splitlines()[0].rstrip('.')}."
            if not row["last"] and row["host"] == socket.gethostname() and not _alive(row["pid"]):
                return f"{who} is gone without a word: it was killed, by the system for want of memory or by hand."
        return None

    def _search(self) -> str | None:
        until = time.monotonic() + SEARCH
        while (culprit := self._culprit()) is None and time.monotonic() < until:
            time.sleep(0.1)
        return culprit

    def _silent(self) -> str:
        waiting = [f"rank {rank} ({row['host']}, process {row['pid']})" for rank, row in self._others().items()
                   if not row["last"]]  # fmt: skip
        return f"No rank has written an error; without an answer: {', '.join(waiting) or 'none'}."

    def _watch(self, stop: threading.Event) -> None:
        """End the process where another rank has failed and the main thread is kept waiting."""
        while not stop.wait(LOOK):
            culprit = self._culprit()
            if culprit is None:
                continue
            print(f"\n{culprit} Rank {self.rank} ends within {GRACE:.0f} s. {_GO_ON}", file=sys.stderr, flush=True)
            if not stop.wait(GRACE):
                os._exit(1)
            return


_GO_ON = "Go on from the last checkpoint: the same command with --resume (torchrun --max_restarts does it by itself)."


def meet_anew() -> None:
    """Let the processes that torchrun has started again meet at a port of their own.

    torch (2.14) keeps the first attempt's store for the later ones, where a quick rank finds the address of a dead one
    and fails with "Connection refused". Across machines that join later, too: TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=300))
    key = f"velm/port/{os.environ['TORCHELASTIC_RESTART_COUNT']}"
    if os.environ["RANK"] == "0":
        with socket.socket() as free:
            free.bind(("", 0))
            store.set(key, str(free.getsockname()[1]))
    os.environ["MASTER_PORT"] = store.get(key).decode()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"


def _of_peers(exception: BaseException) -> bool:
    text = f"{type(exception).__name__} {exception}".lower()
    return isinstance(exception, RuntimeError) and any(word in text for word in OF_PEERS)


def _alive(pid: int) -> bool:
    """Whether a process of this machine runs; one that has ended and waits to be asked for its code does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
        return state not in "ZX"
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
