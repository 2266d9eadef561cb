"""When one rank of a run fails or disappears, the other ranks name it and its error, and end in bounded time.

torchrun ends all ranks by itself; it shows an error because `record_errors` writes it to torchrun's error file. Other
launchers (Lightning's, SLURM's) start the ranks and do not tell them about each other: there `RankWatch` does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, ParamSpec, TypeVar, cast

import lightning
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch.distributed import DistError, TCPStore

from velm.util import describe_error, write_atomically

__all__ = ["RankWatch", "new_rendezvous_port", "record_errors"]

P = ParamSpec("P")
R = TypeVar("R")

POLL = 0.5
"""Seconds between two looks at the status files of the other ranks."""
GRACE = 20.0
"""Seconds that a rank has to end by itself after another one failed; then it is ended."""
SEARCH = 3.0
"""Seconds for which a rank that lost its connection looks for the rank that failed."""
CONNECTION_ERRORS = (
    "gloo",
    "nccl",
    "connection closed",
    "connection reset",
    "timed out",
    "timeout",
    "tcpstore",
    "broken pipe",
)
CONTINUE = "Continue from the last checkpoint: the same command with --resume (torchrun --max_restarts does so itself)."


class RankWatch(Callback):
    """Keeps a status file per rank, `ranks/rank_<n>.json`: {"attempt", "host", "pid", "error", "crash"}.

    A rank that fails writes its error; a rank that ends deletes its file. The others notice a failure in the collective
    that breaks (gloo) or, while the backend keeps them waiting (NCCL), in a thread that polls the files. A killed rank
    writes nothing: ranks on its machine see that its process has ended. A crash below Python (an abort of gloo, a
    segmentation fault) is not a kill: faulthandler leaves its name in the file "crash". Ranks that hang, and machines
    that do not share the run folder, are left to the timeout of the process group.

    Args:
        folder: of the run.

    Attributes:
        cause: which rank ended this one, and why; None if no other rank did.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "ranks"
        self.rank, self.size, self.attempt = 0, 1, ""
        self.cause: str | None = None
        self._stop = threading.Event()
        self._crash: IO[str] | None = None

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if trainer.world_size == 1:
            return
        self.rank, self.size = trainer.global_rank, trainer.world_size
        self.attempt = trainer.strategy.broadcast(uuid.uuid4().hex)
        self._record_crash()
        self._write("")
        trainer.strategy.barrier("ranks")  # every file is of this attempt before the first poll
        self._stop.clear()
        threading.Thread(target=self._poll, args=(self._stop,), daemon=True).start()

    def on_exception(self, trainer: lightning.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Write the error of this rank or, if it lost its connection to another, set `cause`."""
        self._stop.set()
        if self.size == 1:
            return
        if isinstance(exception, SIGTERMException | KeyboardInterrupt):
            self._delete()
        elif not _is_lost_connection(exception):
            self._write(describe_error(exception))
        else:
            failure = self._await_failure() or self._describe_unfinished()
            self._delete()
            self.cause = f"{failure} Rank {self.rank} stops: {describe_error(exception)}. {CONTINUE}"

    def teardown(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if self.size > 1 and not self._stop.is_set():
            self._stop.set()
            self._delete()
        if self._crash is not None:
            faulthandler.disable()
            self._crash.close()
            self._crash = None

    def _record_crash(self) -> None:
        """Let a fatal signal leave its name in a file, unless it is written elsewhere already."""
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not faulthandler.is_enabled():
                self._crash = self._file(self.rank).with_suffix(".crash").open("w", encoding="utf-8")
                faulthandler.enable(self._crash, all_threads=False)

    def _file(self, rank: int) -> Path:
        return self.folder / f"rank_{rank}.json"

    def _write(self, error: str) -> None:
        row: dict[str, Any] = {"attempt": self.attempt, "host": socket.gethostname(), "pid": os.getpid()}
        row |= {"error": error, "crash": "" if self._crash is None else self._crash.name}
        with contextlib.suppress(OSError):  # a full disk does not end a run
            self.folder.mkdir(parents=True, exist_ok=True)
            with write_atomically(self._file(self.rank)) as partial:
                partial.write_text(json.dumps(row), encoding="utf-8")

    def _delete(self) -> None:
        with contextlib.suppress(OSError):
            self._file(self.rank).unlink()
            self._file(self.rank).with_suffix(".crash").unlink(missing_ok=True)

    def _unfinished(self) -> dict[str, dict[str, Any]]:
        """The status of the other ranks that have not ended by themselves, by 'Rank 1 (host, process 123)'."""
        ranks = {}
        for rank in set(range(self.size)) - {self.rank}:
            with contextlib.suppress(OSError, ValueError):
                row = json.loads(self._file(rank).read_text(encoding="utf-8"))
                if row["attempt"] == self.attempt:
                    ranks[f"Rank {rank} ({row['host']}, process {row['pid']})"] = row
        return ranks

    def _failure(self) -> str | None:
        """A sentence on another rank that failed or disappeared; None if none did."""
        for name, row in self._unfinished().items():
            if row["error"]:
                return f"{name} failed: {row['error'].rstrip('.')}."
            if row["host"] == socket.gethostname() and _has_ended(row["pid"]):
                return f"{name} {_describe_end(row.get('crash', ''))}"
        return None

    def _await_failure(self) -> str | None:
        end = time.monotonic() + SEARCH
        while (failure := self._failure()) is None and time.monotonic() < end:
            time.sleep(0.1)
        return failure

    def _describe_unfinished(self) -> str:
        return f"No rank reports an error; no answer from: {', '.join(self._unfinished()) or 'unknown'}."

    def _poll(self, stop: threading.Event) -> None:
        """End the process when another rank has failed and the main thread stays blocked in a collective."""
        while not stop.wait(POLL):
            failure = self._failure()
            if failure is not None:
                print(
                    f"\n{failure} Rank {self.rank} ends within {GRACE:.0f} s. {CONTINUE}", file=sys.stderr, flush=True
                )
                if not stop.wait(GRACE):
                    os._exit(1)
                return


def record_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Under torchrun, write what `function` raises to torchrun's error file; its summary then shows the traceback."""
    if "TORCHELASTIC_ERROR_FILE" not in os.environ:
        return function
    from torch.distributed.elastic.multiprocessing.errors import record

    return cast("Callable[P, R]", record(function))


def new_rendezvous_port() -> None:
    """Let the ranks that torchrun has restarted meet at a port of their own.

    torch (2.14) keeps the store of the first attempt for later ones. A fast rank reads the address of a dead rank from
    it and fails with "Connection refused". Across machines, set TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 too.
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


def _is_lost_connection(exception: BaseException) -> bool:
    """Whether a collective failed because of another rank; gloo raises plain RuntimeErrors, so their text decides."""
    text = str(exception).lower()
    collective = isinstance(exception, RuntimeError) and any(word in text for word in CONNECTION_ERRORS)
    return collective or isinstance(exception, DistError)


def _describe_end(crash: str) -> str:
    """How a process ended that wrote no error; `crash` is the file for the name of a fatal signal, '' if none."""
    if not crash:
        return "disappeared without an error: it crashed, and its output says why, or it was killed (lack of memory?)."
    with contextlib.suppress(OSError):
        name = Path(crash).read_text(encoding="utf-8").partition("\n")[0].removeprefix("Fatal Python error: ")
        if name:
            return f"crashed outside of Python ({name}); the cause is in its output, above."
    return "disappeared without an error: it was killed, most often for lack of memory."


def _has_ended(pid: int) -> bool:
    """Whether a process of this machine has ended; False where the system cannot say (Windows)."""
    if not hasattr(os, "waitid"):
        return False
    with contextlib.suppress(ChildProcessError):  # a child of this process, as Lightning launches them: may be a zombie
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        pass
    return False
