"""The private names of torch, torchvision, Lightning, jsonargparse and datasets that VELM uses, each in a function.

pyproject.toml bounds the versions from above, and tests/test_compat.py calls each function against the installed ones:
before the bounds are raised, that test says what has moved. Nothing heavy is imported until a function is called.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from multiprocessing import connection
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils._python_dispatch import TorchDispatchMode

__all__ = [
    "FakeTensorMode",
    "TorchDispatchMode",
    "allow_second_backward",
    "dataset_fingerprint",
    "decode_jpeg",
    "disable_worker_signal_handler",
    "flop_formula",
    "gpu_flops_table",
    "has_lanczos",
    "has_own_checkpoint_io",
    "is_batch_norm",
    "is_dropout",
    "is_fake",
    "is_logger_open",
    "is_recomputing",
    "is_running_norm",
    "log_model_of",
    "logger_run",
    "mlflow_uri",
    "option_type",
    "pack_linear_weight",
    "packed_linear",
    "packs_linear_weights",
    "request_stop",
    "set_data_parallel_size",
    "set_logger_run",
    "set_process_group_timeout",
    "storage_key",
    "tensorboard_folder",
    "wandb_options",
    "without_fake_mode",
    "worker_exit_codes",
]

_CLASSES = {
    "FakeTensorMode": "torch._subclasses.fake_tensor",
    "TorchDispatchMode": "torch.utils._python_dispatch",
}
"""Classes that torch documents by their private module; imported at first use."""


def __getattr__(name: str) -> Any:
    if name not in _CLASSES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_CLASSES[name]), name)


# --- torch


def has_lanczos() -> bool:
    """Whether `interpolate` of torch knows lanczos."""
    import torch

    return hasattr(torch._C._nn, "_upsample_lanczos2d_aa")


def is_batch_norm(module: object) -> bool:
    """Whether a module is a batch norm of any number of dimensions, synchronised ones included."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(module, _BatchNorm)


def is_running_norm(module: object) -> bool:
    """Whether a module is a norm that may keep running statistics: batch norm or instance norm."""
    from torch.nn.modules.batchnorm import _NormBase

    return isinstance(module, _NormBase)


def is_dropout(module: object) -> bool:
    """Whether a module is one of torch's dropout layers, whose probability is its attribute `p`."""
    from torch.nn.modules.dropout import _DropoutNd

    return isinstance(module, _DropoutNd)


def is_fake(tensor: object) -> bool:
    """Whether a tensor has no data, since it was made under `FakeTensorMode`."""
    module = sys.modules.get("torch._subclasses.fake_tensor")  # not imported: there are none
    return module is not None and isinstance(tensor, module.FakeTensor)


def without_fake_mode() -> AbstractContextManager[Any]:
    """Tensors made inside a `FakeTensorMode` have data; fake ones stay fake."""
    from torch._subclasses.fake_tensor import unset_fake_temporarily

    return unset_fake_temporarily()


def is_recomputing() -> bool:
    """Whether a forward pass is running inside a backward pass, as activation checkpointing does."""
    import torch

    return torch._C._current_graph_task_id() != -1 and torch.is_grad_enabled()


def allow_second_backward() -> None:
    """Allow a second backward pass through graphs that are compiled from now on; costs memory.

    By default a compiled backward pass overwrites activations that it has used ("donated buffers").
    """
    import torch._functorch.config

    torch._functorch.config.donated_buffer = False


def storage_key(storage: Any) -> int:
    """The address of a storage's C++ object: equal for two Python views of it, for fake tensors too."""
    key: int = storage._cdata
    return key


def flop_formula(function: Any) -> Any | None:
    """torch's formula for the floating-point operations of an ATen function; None if it has none."""
    from torch.utils.flop_counter import flop_registry

    return flop_registry.get(getattr(function, "_overloadpacket", function))


def multiplies_bfloat16() -> bool:
    """Whether oneDNN has kernels for bfloat16 on this CPU; True where torch is built without it, so it is not known."""
    import torch

    return not torch.backends.mkldnn.is_available() or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def packs_linear_weights() -> bool:
    """Whether torch's own operators pack the weights of linear layers here, and this is faster: CPUs with AVX-512."""
    import torch

    return torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def pack_linear_weight(weight: Tensor) -> Tensor:
    """A weight, bfloat16 or float32 (M, N), in the layout of oneDNN's kernels; for `packed_linear` alone.

    What torch.compile's `freezing` calls. The public `torch.utils.mkldnn.to_mkldnn` does not pack: its layers reorder
    the weight in each call.
    """
    import torch

    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)
    return packed


def packed_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear` with a packed weight, in its dtype: (..., N) to (..., M); without gradient."""
    import torch

    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


# --- Lightning


def request_stop(trainer: Any) -> None:
    """Make the Trainer stop after the step under way, as it does after SIGTERM."""
    trainer._signal_connector.received_sigterm = True


def set_process_group_timeout(strategy: Any, seconds: float) -> None:
    """Set how long a rank waits for the others in a collective; no effect on strategies without a process group."""
    if hasattr(strategy, "_timeout"):
        strategy._timeout = timedelta(seconds=seconds)


def has_own_checkpoint_io(strategy: Any) -> bool:
    """Whether a strategy object was constructed with a `CheckpointIO`."""
    return getattr(strategy, "_checkpoint_io", None) is not None


def is_logger_open(logger: Any) -> bool:
    """Whether a CSV or TensorBoard logger has created its files."""
    return logger._experiment is not None


_RUN_OF = {"TensorBoardLogger": "_version", "WandbLogger": "_id", "MLFlowLogger": "_run_id"}
"""The attribute of a logger of Lightning that names its run at the tracker."""


def _run_attribute(logger: Any) -> str | None:
    return next((_RUN_OF[cls.__name__] for cls in type(logger).__mro__ if cls.__name__ in _RUN_OF), None)


def logger_run(logger: Any) -> Any:
    """The run that a logger's options name; None if they name none."""
    return getattr(logger, _run_attribute(logger) or "", None)


def set_logger_run(logger: Any, run: str) -> None:
    """Make a logger go on with a run; before it opens one."""
    setattr(logger, _run_attribute(logger) or "", run)
    if hasattr(logger, "_wandb_init"):
        logger._wandb_init["id"] = run


def wandb_options(logger: Any) -> dict[str, Any]:
    """The arguments with which a W&B logger will call `wandb.init`; may be changed before it does."""
    options: dict[str, Any] = logger._wandb_init
    return options


def mlflow_uri(logger: Any) -> str:
    """The tracking server or database of an MLflow logger."""
    return str(logger._tracking_uri)


def tensorboard_folder(logger: Any) -> str:
    """Where a TensorBoard logger keeps its versions; asks for nothing that creates one."""
    return f"{logger._root_dir}/{logger._name}"


def log_model_of(logger: Any) -> Any:
    """The `log_model` of a logger: True, False or 'all'; False if it has no such option."""
    return getattr(logger, "_log_model", False)


def set_data_parallel_size(strategy: Any, size: int) -> None:
    """Set the number of ranks of a `ModelParallelStrategy` that shard the weights, before it makes its mesh."""
    strategy._data_parallel_size = size


def gpu_flops_table() -> dict[str, dict[Any, float]]:
    """Lightning's table of FLOP/s by the vendors' data sheets: chip -> torch.dtype -> FLOP/s of dense products."""
    from lightning.fabric.utilities.throughput import _CUDA_FLOPS

    table: dict[str, dict[Any, float]] = _CUDA_FLOPS
    return table


# --- jsonargparse


def option_type(parser: Any, key: str) -> Any:
    """The type hint of an option of a jsonargparse parser, resolved; None if it has no such option."""
    action = next((action for action in parser._actions if action.dest == key), None)
    return getattr(action, "_typehint", getattr(action, "type", None))


# --- datasets


def dataset_fingerprint(dataset: Any) -> str:
    """The hash by which `datasets` names a table and the transforms that made it."""
    fingerprint: str = dataset._fingerprint
    return fingerprint


def disable_worker_signal_handler() -> None:
    """Keep torch from installing its SIGCHLD handler when a `DataLoader` starts workers.

    The handler raises wherever the main process happens to be, in the middle of an optimizer step too. Without it the
    loader that waits for a dead worker raises within 5 seconds.
    """
    from torch.utils.data._utils import signal_handling

    signal_handling._SIGCHLD_handler_set = True


def worker_exit_codes(iterator: Any, seconds: float = 0.0) -> list[int]:
    """Exit codes of the workers of a `DataLoader`'s iterator that have ended; -n: killed by signal n.

    Args:
        iterator: of the loader.
        seconds: how long to wait for the first of them.
    """
    workers = getattr(iterator, "_workers", [])
    if workers and seconds:
        ended = connection.wait([worker.sentinel for worker in workers], timeout=seconds)
        for worker in workers:
            if worker.sentinel in ended:
                worker.join(seconds)  # its sockets close before the system knows its exit code
    return [worker.exitcode for worker in workers if worker.exitcode is not None]


def decode_jpeg(encoded: bytes) -> Tensor:
    """Decode a JPEG file to RGB, uint8 (3, H, W), channels last in memory.

    Calls torchvision's operator; `torchvision.io.decode_jpeg` warns of a future removal at every call.

    Raises:
        ImportError, AttributeError, RuntimeError: torchvision or its codec is missing, or the file cannot be decoded.
    """
    import torch
    import torchvision.io  # noqa: F401 - registers the operator

    rgb = 3  # torchvision.io.ImageReadMode.RGB
    pixels: Tensor = torch.ops.image.decode_jpeg(torch.frombuffer(bytearray(encoded), dtype=torch.uint8), rgb, False)
    return pixels
