"""Decides which exceptions of Lightning are a mistake in the options, and says in a sentence what to type.

VELM's own checks raise a `ConfigError` themselves. Lightning's raise many types, from `MisconfigurationException` to
`RuntimeError`, so the place that raised decides: its code for options, callbacks, loggers and devices. An exception of
torch, of a plugin or of VELM itself is a bug, and keeps its traceback.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException

from velm.errors import ConfigError, MissingPackageError
from velm.util import did_you_mean

__all__ = ["explain_mistake", "no_metric"]

PLACES = (
    "fabric/accelerators", "fabric/plugins", "fabric/strategies", "fabric/utilities", "pytorch/accelerators",
    "pytorch/callbacks", "pytorch/loggers", "pytorch/loops/fit_loop.py", "pytorch/plugins", "pytorch/profilers",
    "pytorch/strategies", "pytorch/trainer", "pytorch/tuner",
)  # fmt: skip
"""Where Lightning checks what was asked of it."""
TYPES = (ValueError, TypeError, RuntimeError, ImportError, NotImplementedError, ZeroDivisionError)


def explain_mistake(error: BaseException) -> ConfigError | MissingPackageError | None:
    """The error to raise in place of one that Lightning raised for an option; None: `error` is no such mistake.

    Args:
        error: what ended the run. jsonargparse wraps what the constructor of a callback or logger raises.
    """
    while error.__cause__ is not None and _raised_in(error.__traceback__, "jsonargparse") is not None:
        error = error.__cause__
    if isinstance(error, Exception) and _constructs_logger(error.__traceback__):
        return ConfigError(_logger(" ".join(str(error).split())))
    place = _raised_in(error.__traceback__, "lightning")
    types = (*TYPES, AttributeError) if place == "pytorch/tuner/lr_finder.py" else TYPES
    asked = isinstance(error, types) and place is not None and place.startswith(PLACES)
    if not asked and not isinstance(error, MisconfigurationException):
        return None
    text = " ".join(str(error).split())
    if isinstance(error, ImportError):
        return MissingPackageError(_missing_package(text.partition(" HINT:")[0], Path(place or "").stem))
    for pattern, explain in EXPLANATIONS.items():
        found = re.search(pattern, text)
        if found is not None:
            return ConfigError(explain(found))
    if isinstance(error, ZeroDivisionError):
        text = "an option under `trainer` is 0 that counts something, such as accumulate_grad_batches; it is at least 1"
    return ConfigError(
        f"The options under `trainer` cannot be used: {text.rstrip('.')}. Change them in the config or as "
        f"--trainer.NAME=...; VELM_TRACEBACK=1 shows where Lightning says so."
    )


def no_metric(callback: str, monitor: str, metrics: list[str]) -> str:
    """The message for a callback that watches a metric which the run does not have."""
    names = sorted(name for name in metrics if not name.startswith("lr-"))
    guess = did_you_mean(monitor, names) or did_you_mean(monitor.replace("_", "/", 1), names)
    return (
        f"{callback} monitors {monitor!r}, and the run has no such metric.{guess} Set its monitor to one of: "
        f"{', '.join(names)}."
    )


def _early_stopping(found: re.Match[str]) -> str:
    return no_metric("EarlyStopping", found[1], re.findall(r"`([^`]+)`", found[2]))


def _model_checkpoint(found: re.Match[str]) -> str:
    return no_metric("ModelCheckpoint", found[1], re.findall(r"'([^']+)'", found[2]))


def _no_device(found: re.Match[str]) -> str:
    import torch

    built = "with CUDA" if torch.version.cuda else "with ROCm" if torch.version.hip else "for CPUs only"
    return (
        f"trainer.accelerator or trainer.devices asks for what this machine has not ({found[0].rstrip('.')}). torch "
        f"{torch.__version__} is built {built} and sees {torch.cuda.device_count()} GPUs here. Type "
        f"--trainer.accelerator=auto for the best there is, or --trainer.accelerator=cpu; with a GPU in the machine, "
        f"look at its driver (nvidia-smi) and at CUDA_VISIBLE_DEVICES."
    )


def _same_callbacks(found: re.Match[str]) -> str:
    return (
        f"trainer.callbacks has two {found[1]} with the same settings, and a checkpoint could not tell their states "
        f"apart: give one another monitor, mode or interval, or leave it out."
    )


def _slurm_tasks(found: re.Match[str]) -> str:
    tasks = os.environ.get("SLURM_NTASKS_PER_NODE") or os.environ.get("SLURM_NTASKS", "N")
    return (
        f"SLURM has started this step with {tasks} tasks (SLURM_NTASKS, SLURM_NTASKS_PER_NODE), and trainer.devices "
        f"times trainer.num_nodes is another number. For {tasks} processes: #SBATCH --ntasks-per-node={tasks} and "
        f"--trainer.devices={tasks}. For one process: srun --ntasks=1, or unset SLURM_NTASKS SLURM_NTASKS_PER_NODE."
    )


def _learning_rate(found: re.Match[str]) -> str:
    return (
        "LearningRateFinder sets model.optimizer.lr, which VELM calls 'lr': leave its attr_name out, or set it to lr."
    )


def _batch_size(found: re.Match[str]) -> str:
    return "BatchSizeFinder sets data.batch_size: leave its batch_arg_name out, or set it to batch_size."


EXPLANATIONS: dict[str, Callable[[re.Match[str]], str]] = {
    r"Early stopping conditioned on metric `([^`]+)` which is not available.*?following: (.*)": _early_stopping,
    r"ModelCheckpoint\(monitor='([^']+)'\)` could not find .*?: \[(.*?)\]": _model_checkpoint,
    r"No supported gpu backend found|[^.]*can not run on your system since the accelerator is not available|"
    r"GPUs requested but none are available|You requested gpu: .*": _no_device,
    r"Found more than one stateful callback of type `(\w+)`": _same_callbacks,
    r"configured in SLURM|in your SLURM bash script": _slurm_tasks,
    r"learning rate finder, either `model`|attribute name for the learning rate was set": _learning_rate,
    r"Field \S+ not found in `model`, `datamodule`": _batch_size,
}  # fmt: skip
"""A pattern in Lightning's message, whitespace folded, and the sentence to print instead."""


def _missing_package(text: str, place: str) -> str:
    wanted = re.search(r"(?:pip install -U |Requirement |No module named )['\"]?([\w\[\]-]+)", text)
    package = wanted[1] if wanted else None
    if place in ("wandb", "mlflow"):
        package = "'velm[tracking]'"
    advice = f"Do: pip install {package}, or leave it" if package else "Install it, or leave it"
    return (
        f"Something under `trainer` (Lightning's {place}) needs a package that is not installed: {text.rstrip('.')}. "
        f"{advice} out of the config: VELM writes metrics.csv and TensorBoard events without it."
    )


def _logger(text: str) -> str:
    """The message for what a package of a logger raised while the logger was built."""
    advice = ""
    if "filesystem tracking backend" in text:
        text = "MLflow no longer writes the folder mlruns, which is the default of Lightning's MLFlowLogger"
        advice = " Give it a database file: init_args.tracking_uri: sqlite:///mlflow.db."
    return (
        f"trainer.logger cannot be built: {text.rstrip('.')}.{advice} Change its init_args, or leave it out of the "
        f"config: VELM writes metrics.csv and TensorBoard events without it."
    )


def _constructs_logger(trace: TracebackType | None) -> bool:
    """Whether an exception came from another package that a logger's constructor called."""
    frames = []
    while trace is not None:
        frames.append((Path(trace.tb_frame.f_code.co_filename), trace.tb_frame.f_code.co_name))
        trace = trace.tb_next
    folder = Path(lightning.__file__).parent / "pytorch" / "loggers"
    outside = bool(frames) and not frames[-1][0].is_relative_to(folder.parent.parent)
    return outside and any(file.is_relative_to(folder) and name == "__init__" for file, name in frames)


def _raised_in(trace: TracebackType | None, package: str) -> str | None:
    """The path, inside `package`, of the file that raised an exception; None if another package's file did."""
    if trace is None:
        return None
    while trace.tb_next is not None:
        trace = trace.tb_next
    folder = Path(lightning.__file__).parent.parent / package
    file = Path(trace.tb_frame.f_code.co_filename)
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else None
