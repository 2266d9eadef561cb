"""The private names that `velm._compat` uses are in the installed versions and mean what it says."""

from __future__ import annotations

import io
import subprocess
import sys
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy
from PIL import Image
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data._utils import signal_handling

from velm import _compat


def test_importing_it_imports_nothing() -> None:
    code = "import sys, velm._compat; assert not {'torch', 'lightning', 'datasets'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = _compat.nothing


def test_norms_and_dropouts_are_recognised_by_their_base_class() -> None:
    batch_norms = [nn.BatchNorm1d(2), nn.BatchNorm2d(2), nn.BatchNorm3d(2), nn.SyncBatchNorm(2)]
    others = [nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.Linear(2, 2)]
    assert all(_compat.is_batch_norm(norm) and _compat.is_running_norm(norm) for norm in batch_norms)
    assert _compat.is_running_norm(nn.InstanceNorm2d(2))
    assert not _compat.is_batch_norm(nn.InstanceNorm2d(2))
    dropouts = [nn.Dropout(0.3), nn.Dropout1d(0.3), nn.Dropout2d(0.3), nn.AlphaDropout(0.3)]
    assert all(_compat.is_dropout(dropout) and dropout.p == 0.3 for dropout in dropouts)
    for module in others:
        assert not any(check(module) for check in (_compat.is_batch_norm, _compat.is_running_norm, _compat.is_dropout))


@pytest.mark.skipif(not _compat.packs_linear_weights(), reason="this CPU packs no weights")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_multiply_as_linear_does(dtype: torch.dtype) -> None:
    weight, bias, x = torch.randn(7, 5, dtype=dtype), torch.randn(7, dtype=dtype), torch.randn(2, 3, 5, dtype=dtype)
    packed = _compat.pack_linear_weight(weight)
    for each in (bias, None):
        torch.testing.assert_close(_compat.packed_linear(x, packed, each), nn.functional.linear(x, weight, each))


def test_a_cpu_whose_flags_have_bfloat16_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = Path("/proc/cpuinfo")
    if not cpu.is_file() or "flags" not in cpu.read_text():
        pytest.skip("the flags of this CPU cannot be read")
    flags = set(cpu.read_text().split())
    if torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512") and not flags & {"avx512bw", "avx_ne_convert"}:
        assert not _compat.multiplies_bfloat16()
    if flags & {"avx512_bf16", "amx_bf16"}:
        assert _compat.multiplies_bfloat16()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert _compat.multiplies_bfloat16()


def test_a_recomputed_forward_pass_is_told_from_the_first() -> None:
    seen = []

    def forward(x: torch.Tensor) -> torch.Tensor:
        seen.append(_compat.is_recomputing())
        return x.square()

    checkpoint(forward, torch.ones(2, requires_grad=True), use_reentrant=False).sum().backward()
    assert seen == [False, True]


@pytest.mark.slow
def test_a_compiled_graph_has_a_second_backward_pass() -> None:
    import torch._functorch.config as config

    with config.patch(donated_buffer=True):
        _compat.allow_second_backward()
        assert config.donated_buffer is False
        x = torch.ones(3, requires_grad=True)
        loss = torch.compile(lambda x: x.exp().sin().sum(), backend="aot_eager")(x)
        first, second = (torch.autograd.grad(loss, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_two_views_of_a_storage_have_one_key() -> None:
    with _compat.FakeTensorMode():
        whole, other = torch.ones(4), torch.ones(4)
        keys = [_compat.storage_key(x.untyped_storage()) for x in (whole, whole[1:], other)]
    assert keys[0] == keys[1] != keys[2]


def test_a_tensor_of_fake_mode_is_fake() -> None:
    with _compat.FakeTensorMode():
        assert _compat.is_fake(torch.nn.Parameter(torch.ones(4)))
    assert not _compat.is_fake(torch.ones(4))


def test_without_fake_mode_tensors_have_data() -> None:
    with _compat.FakeTensorMode():
        fake = torch.ones(2)
        with _compat.without_fake_mode():
            real = torch.ones(2)
    assert real.tolist() == [1, 1]
    assert _compat.is_fake(fake)
    assert not _compat.is_fake(real)


def test_a_product_has_a_formula_and_a_sum_has_none() -> None:
    calls = {}

    class Record(_compat.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            calls[func.name()] = _compat.flop_formula(func)
            return func(*args, **(kwargs or {}))

    with Record():
        (torch.ones(4, 8) @ torch.ones(8, 2)).sum()
    assert calls["aten::mm"](torch.ones(4, 8), torch.ones(8, 2), out_val=torch.ones(4, 2)) == 2 * 4 * 8 * 2
    assert calls["aten::sum"] is None


class Batches(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.ones(1)


class Model(lightning.LightningModule):
    """Asks the Trainer to stop in its second step."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        if index == 1:
            _compat.request_stop(self.trainer)
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_requested_stop_ends_the_run_after_the_step(tmp_path: Path) -> None:
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=1, default_root_dir=tmp_path, **quiet)
    with pytest.raises((SIGTERMException, SystemExit)):
        trainer.fit(Model(), torch.utils.data.DataLoader(Batches()))
    assert trainer.global_step == 2


def test_the_timeout_of_a_process_group_is_set_where_there_is_one() -> None:
    for strategy in (DDPStrategy(), ModelParallelStrategy()):
        _compat.set_process_group_timeout(strategy, 7)
        assert strategy._timeout == timedelta(seconds=7)
    single = SingleDeviceStrategy()
    _compat.set_process_group_timeout(single, 7)
    assert not hasattr(single, "_timeout")


def test_lanczos_is_an_interpolation_where_torch_has_its_kernel() -> None:
    resize = partial(torch.nn.functional.interpolate, size=(4, 4), mode="lanczos", antialias=True)
    if _compat.has_lanczos():
        assert resize(torch.zeros(1, 3, 8, 8)).shape == (1, 3, 4, 4)
    else:
        with pytest.raises(Exception, match="lanczos"):
            resize(torch.zeros(1, 3, 8, 8))


def test_a_strategy_says_whether_it_brings_a_checkpoint_io() -> None:
    assert not _compat.has_own_checkpoint_io(DDPStrategy())
    assert _compat.has_own_checkpoint_io(DDPStrategy(checkpoint_io=TorchCheckpointIO()))
    assert not _compat.has_own_checkpoint_io("ddp")


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_a_logger_is_open_once_it_has_logged(kind: type, tmp_path: Path) -> None:
    logger = kind(tmp_path)
    assert not _compat.is_logger_open(logger)
    logger.log_metrics({"loss": 1.0}, step=0)
    assert _compat.is_logger_open(logger)


def test_a_model_parallel_strategy_has_a_data_parallel_size() -> None:
    strategy = ModelParallelStrategy(tensor_parallel_size=1)
    assert strategy._data_parallel_size == "auto"
    _compat.set_data_parallel_size(strategy, 4)
    assert strategy._data_parallel_size == 4


def test_the_table_of_gpus_has_an_a100_and_an_h100() -> None:
    table = _compat.gpu_flops_table()
    assert table["a100"][torch.bfloat16] == 312e12
    assert table["h100 sxm"][torch.float32] > 5e13


def test_a_dataset_has_a_fingerprint() -> None:
    assert _compat.dataset_fingerprint(SimpleNamespace(_fingerprint="a1")) == "a1"
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"text": ["a", "b"]})
    assert _compat.dataset_fingerprint(rows) == _compat.dataset_fingerprint(rows)
    assert _compat.dataset_fingerprint(rows) != _compat.dataset_fingerprint(rows.select([0]))


def test_torch_knows_the_flag_of_its_signal_handler() -> None:
    assert hasattr(signal_handling, "_SIGCHLD_handler_set")
    _compat.disable_worker_signal_handler()
    assert signal_handling._SIGCHLD_handler_set


def test_a_loaders_iterator_knows_the_exit_codes_of_its_workers() -> None:
    iterator = iter(torch.utils.data.DataLoader([0, 1], num_workers=1))
    assert _compat.worker_exit_codes(iterator) == []
    assert list(iterator)
    iterator._shutdown_workers()  # type: ignore[attr-defined]
    assert _compat.worker_exit_codes(iterator) == [0]


def test_torchvision_decodes_jpeg_to_the_pixels_of_pil() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG")
    pixels = _compat.decode_jpeg(buffer.getvalue())
    expected = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_loggers_of_trackers_name_their_runs(tmp_path: Path) -> None:
    board = TensorBoardLogger(tmp_path, name="boards")
    assert _compat.tensorboard_folder(board) == str(tmp_path / "boards")
    assert _compat.logger_run(board) is None
    _compat.set_logger_run(board, "version_3")
    assert board.version == _compat.logger_run(board) == "version_3"
    assert _compat.log_model_of(board) is False
    assert _compat.logger_run(CSVLogger(tmp_path)) is None


def test_a_wandb_logger_has_options_and_a_run() -> None:
    pytest.importorskip("wandb", reason="the extra 'tracking' is not installed")
    logger = WandbLogger(project="x", log_model="all")
    assert _compat.wandb_options(logger)["project"] == "x"
    assert _compat.log_model_of(logger) == "all"
    _compat.set_logger_run(logger, "r1")
    assert _compat.wandb_options(logger)["id"] == _compat.logger_run(logger) == "r1"


def test_an_mlflow_logger_has_a_server_and_a_run() -> None:
    pytest.importorskip("mlflow", reason="the extra 'tracking' is not installed")
    logger = MLFlowLogger(tracking_uri="http://127.0.0.1:9")
    assert _compat.mlflow_uri(logger) == "http://127.0.0.1:9"
    _compat.set_logger_run(logger, "r1")
    assert _compat.logger_run(logger) == "r1"
