"""The exceptions of VELM: one tree, so that the command line knows which message is complete without a traceback.

    VelmError
    ├── InputError                 something the user gave cannot be used; `velm` exits with 2
    │   ├── ConfigError            an option, a name or a combination of parts
    │   │   ├── UnknownNameError   no part of that kind has that name
    │   │   └── PipelineError      an argument of a pipeline's method
    │   ├── DuplicateNameError     two classes claim one name
    │   ├── PluginError            a named module or class cannot be imported
    │   ├── MissingPackageError    an optional package is not installed
    │   │   └── JavaMissingError   no Java, or no pycocoevalcap
    │   ├── DataError              a dataset cannot be read
    │   │   ├── MissingSplitError  it has no such split
    │   │   └── BadDataError       more than `max_bad` of it is unreadable
    │   ├── CheckpointError        a checkpoint cannot be used
    │   │   └── MissingPluginError it needs a part that is not installed
    │   ├── ExportError            a model cannot be written for another library
    │   ├── SearchError            an index of images cannot be used
    │   ├── ServingError           a server cannot start
    │   ├── RequestError           a request to the server cannot be answered
    │   └── ComparisonError        runs cannot be compared
    ├── MissingOutputError
    └── RunFailedError             a run with a valid config ended early; `velm` exits with 1
        ├── TerminatedError        the run was stopped by SIGTERM; `velm` exits with 143
        ├── NonFiniteError         too many steps in a row had NaN or inf
        └── WorkerDiedError        a DataLoader worker was killed too often

Imports nothing of VELM, so that any module may raise any of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


class VelmError(Exception):
    """Base class; the message says what came, what is allowed and what to do next."""

    exit_code = 2


class InputError(VelmError):
    """Something the user gave cannot be used."""


class ConfigError(InputError, ValueError):
    """A config cannot be built: an option is unknown, ill-typed or missing, or parts do not fit together."""


class UnknownNameError(ConfigError):
    """No part of that kind has that name."""


class PipelineError(ConfigError):
    """An argument of a pipeline's method cannot be used."""


class DuplicateNameError(InputError, ValueError):
    """Two classes claim one name; the message names both owners."""


class PluginError(InputError, ImportError):
    """A named module or class cannot be imported; the message names it, its distribution and the cause."""


class MissingPackageError(InputError, ImportError):
    """An optional package is not installed; the message names it and the extra of VELM that installs it."""


class JavaMissingError(MissingPackageError):
    """METEOR or SPICE was requested where Java or pycocoevalcap is missing."""


class DataError(InputError, ValueError):
    """A dataset cannot be read; the message names the file, the place in it and what to do."""


class MissingSplitError(DataError):
    """A dataset has no split of that name; the message lists those it has."""


class BadDataError(DataError):
    """More than `max_bad` of a dataset is unreadable.

    Attributes:
        bad_samples: every unreadable sample (`velm.data.bad_samples.BadSample`); the message names a few.
    """

    def __init__(self, message: str, bad_samples: Iterable[Any] = ()) -> None:
        super().__init__(message)
        self.bad_samples = tuple(bad_samples)


class CheckpointError(InputError, ValueError):
    """A checkpoint cannot be used; the message names the file, the reason and what to do."""


class MissingPluginError(CheckpointError):
    """A checkpoint was trained with a part that is not installed."""


class ExportError(InputError, ValueError):
    """A model cannot be written in a format; the message names what the format cannot express, or what failed."""


class SearchError(InputError, ValueError):
    """An index of images cannot be read, updated or searched; the message names it, the reason and what to do."""


class ServingError(InputError):
    """A server cannot start: its port is taken, or anyone could use it; the message says what to change."""


class RequestError(InputError):
    """A request to the server cannot be answered.

    Attributes:
        status: of HTTP, 4xx or 5xx.
        kind: of the error, as clients of OpenAI's protocol read it.
        param: the field of the request that it is about; None: none in particular.
    """

    def __init__(
        self, message: str, status: int = 400, *, kind: str = "invalid_request_error", param: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.param = status, kind, param


class ComparisonError(InputError, ValueError):
    """Runs cannot be compared; the message names the folder and what it lacks."""


class MissingOutputError(InputError, ValueError):
    """A loss requires an output that the model did not compute."""


class RunFailedError(VelmError, RuntimeError):
    """Training ended early although its config is valid; the message says why, what is saved and what to do.

    Attributes:
        saved: path or URL of the checkpoint with the steps that were finished; None if it was not written.
    """

    exit_code = 1

    def __init__(self, message: str, saved: str | None = None) -> None:
        super().__init__(message)
        self.saved = saved


class TerminatedError(RunFailedError):
    """The run was stopped by SIGTERM."""

    exit_code = 143  # 128 + SIGTERM, as shells report it


class NonFiniteError(RunFailedError):
    """Too many optimizer steps in a row had NaN or inf."""


class WorkerDiedError(RunFailedError):
    """A DataLoader worker was killed too often to continue."""


def cause_of(error: Exception) -> str:
    """The message of an error of VELM, which is complete; of any other error also its type."""
    return str(error) if isinstance(error, VelmError) else f"{type(error).__name__}: {error}"
