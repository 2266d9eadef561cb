"""A frozen encoder's features are computed once: the same losses, and never those of another encoder or image."""

from __future__ import annotations

import csv
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn

from velm.data.feature_cache import key
from velm.encoders.base import EncoderOutput, ImageEncoder
from velm.errors import ConfigError
from velm.outputs import Batch
from velm.training.config import Augmentation, ValidationConfig
from velm.training.data import VisionLanguageData
from velm.training.memory import feature_cache as cache
from velm.training.memory.feature_cache import cache_folder, require_frozen
from velm.training.task import VisionLanguageTask

pytestmark = pytest.mark.filterwarnings("ignore")
ENCODERS: dict[str, dict[str, Any]] = {
    "cnn": {"image_encoder": {"name": "cnn", "dim": 16, "norm": "batch", "dropout": 0.5}, "freeze": ["image_encoder"]},
    "torchvision": {"image_encoder": {"name": "torchvision/resnet18", "features": "layer1", "trainable": "none"}},
}
JOINT = {"contrastive": {}, "captioning": {}}


class Squares(ImageEncoder):
    """Two positions: the mean of the image and its square, of which a mask hides the second."""

    def __init__(self, *, scale: float = 1.0, random: bool = False) -> None:
        super().__init__()
        self.dim = 4
        self.scale = scale
        self.drop = nn.Dropout(0.5 if random else 0.0)
        self.register_buffer("offset", torch.zeros(4))

    def forward(self, images: Tensor) -> EncoderOutput:
        mean = torch.cat([images.mean((2, 3)), images.amax((1, 2, 3))[:, None]], 1) * self.scale + self.offset
        features = self.drop(torch.stack([mean, mean**2], 1))
        return EncoderOutput(features, mean, torch.tensor([True, False]).expand(len(images), 2))


class Recorder(lightning.Callback):
    """The losses of every step and of every validation, and the batches' fields."""

    def __init__(self) -> None:
        self.train: list[float] = []
        self.val: list[float] = []
        self.batches: list[Batch] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.train.append(float(outputs["loss"]))
        self.batches.append(batch)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.val.append(float(trainer.callback_metrics["val/loss"]))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Eight images of two sentences each, six of them to train on."""
    rng = np.random.default_rng(0)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "captions.csv"
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["image_path", "text", "split", "image_id"])
        for number in range(8):
            name = f"{number}.png"
            Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path.parent / name)
            for text in ("an image of", "number"):
                out.writerow([name, f"{text} {number}", "train" if number < 6 else "val", name])
    return path


def make_data(table: Path, **changes: Any) -> VisionLanguageData:
    dataset = {"name": "csv", "path": str(table)}
    return VisionLanguageData(**{"dataset": dataset, "image_size": 16, "batch_size": 2, "max_length": 8, **changes})


def make_task(**changes: Any) -> VisionLanguageTask:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        **ENCODERS["cnn"],
        "text_encoder": {"name": "rnn", "dim": 12, "dropout": 0.2},
        "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2},
        "losses": JOINT,
        "embed_dim": 8,
        "embed_dropout": 0.1,
        "vocab_size": 14,
        "validation": ValidationConfig(captions=2, max_length=6),
    }
    return VisionLanguageTask(**{**options, **changes})


def run(
    table: Path,
    *,
    data: dict[str, Any] | None = None,
    trainer: dict[str, Any] | None = None,
    callbacks: tuple[lightning.Callback, ...] = (),
    change: Callable[[VisionLanguageTask], None] | None = None,
    ckpt_path: Path | None = None,
    **task: Any,
) -> Recorder:
    """Three epochs of three steps of `make_task(**task)`, after `change` of it."""
    recorder, built = Recorder(), make_task(**task)
    if change is not None:
        change(built)
    silent = {"logger": False, "enable_checkpointing": bool(callbacks), "enable_progress_bar": False}
    options: dict[str, Any] = {"max_epochs": 3, "num_sanity_val_steps": 0, "enable_model_summary": False, **silent}
    lightning.Trainer(
        accelerator="cpu", callbacks=[recorder, *callbacks], use_distributed_sampler=False,
        default_root_dir=table.parent, **{**options, **(trainer or {})},
    ).fit(built, datamodule=make_data(table, **(data or {})), ckpt_path=ckpt_path)  # fmt: skip
    return recorder


def folders(root: Path) -> set[str]:
    return {folder.name for folder in root.iterdir()} if root.is_dir() else set()


# --- the same losses


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_losses_are_those_of_pixels(table: Path, tmp_path: Path, encoder: str, precision: str) -> None:
    shared: dict[str, Any] = {**ENCODERS[encoder], "ema": 0.9, "trainer": {"precision": precision}}
    pixels = run(table, data={"captions_per_image": 2}, **shared)
    features = run(table, data={"captions_per_image": 2, "cache_features": str(tmp_path / "kept")}, **shared)
    assert len(features.train) == 9
    close = 2e-3 if precision == "32-true" else 1e-2
    assert features.train == pytest.approx(pixels.train, rel=close)
    assert features.val == pytest.approx(pixels.val, rel=close)
    assert all(batch.images is None and batch.encoded is not None for batch in features.batches)
    assert all(len(batch.encoded.pooled) == 2 and len(batch) == 4 for batch in features.batches if batch.encoded)


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_read_the_same(table: Path, tmp_path: Path, workers: int) -> None:
    option = {"cache_features": str(tmp_path / "kept")}
    assert run(table, data=option | {"num_workers": workers}).train == run(table, data=option).train


def test_alignment_alone_keeps_and_reads_no_positions(table: Path, tmp_path: Path) -> None:
    option = {"cache_features": str(tmp_path / "kept")}
    aligned = {"decoder": None, "losses": {"contrastive": {}}}
    features = run(table, data=option, **aligned)
    assert features.train == pytest.approx(run(table, **aligned).train, rel=2e-3)
    assert features.batches[0].encoded is not None
    assert features.batches[0].encoded.features.shape == (2, 0, 16)
    assert not list((tmp_path / "kept").glob("*/features.npy"))


def test_alignment_reads_what_was_kept_for_a_decoder(table: Path, tmp_path: Path) -> None:
    option = {"cache_features": str(tmp_path / "kept")}
    run(table, data=option)
    before = folders(tmp_path / "kept")
    run(table, data=option, decoder=None, losses={"contrastive": {}})
    assert folders(tmp_path / "kept") == before
    assert len(before) == 2  # train, val


def test_a_mask_is_kept(table: Path, tmp_path: Path) -> None:
    task = {"image_encoder": {"name": f"{__name__}:Squares"}, "freeze": ["image_encoder"]}
    features = run(table, data={"cache_features": str(tmp_path / "kept")}, **task)
    assert features.train == pytest.approx(run(table, **task).train, rel=2e-3)
    assert features.batches[0].encoded is not None
    assert features.batches[0].encoded.mask is not None
    assert features.batches[0].encoded.mask.tolist() == [[True, False]] * 2


def test_nothing_is_encoded_again(table: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    option = {"cache_features": str(tmp_path / "kept")}
    first = run(table, data=option)
    assert "6 images of train are encoded once" in capsys.readouterr().out
    monkeypatch.setattr(cache, "write_features", None)
    assert run(table, data=option).train == first.train
    assert "6 images of train are read from" in capsys.readouterr().out


# --- what a key is made of


def weights_changed(task: VisionLanguageTask) -> None:
    with torch.no_grad():
        next(task.model.image_encoder.parameters()).mul_(1.001)


def buffer_changed(task: VisionLanguageTask) -> None:
    buffer = next(b for n, b in task.model.image_encoder.named_buffers() if n.endswith("running_mean"))
    buffer.add_(0.01)


def normalisation_changed(task: VisionLanguageTask) -> None:
    task.model.image_encoder.image_mean = (0.5, 0.5, 0.5)


@pytest.mark.parametrize("change", [weights_changed, buffer_changed, normalisation_changed])
def test_a_key_changes_with_the_encoder(change: Callable[[VisionLanguageTask], None]) -> None:
    task = make_task()

    def describe() -> dict[str, Any]:
        config = task.model_config["image_encoder"]
        return key.describe(task.model.image_encoder, config, "32-true", transform={}, images="")

    before = describe()
    assert describe() == before
    change(task)
    assert describe() != before


def test_a_key_changes_with_the_encoders_code(monkeypatch: Any, table: Path) -> None:
    before = key._code(Squares)
    monkeypatch.setattr(key.inspect, "getfile", lambda cls: str(table))  # another file
    assert key._code(Squares) != before
    monkeypatch.undo()
    monkeypatch.setattr(key, "__version__", "another")
    assert key._code(Squares) != before


def repainted(table: Path) -> dict[str, Any]:
    Image.new("RGB", (24, 20), "red").save(table.parent / "3.png")
    return {}


def touched(table: Path) -> dict[str, Any]:
    os.utime(table.parent / "3.png", ns=(1, 1))
    return {}


def in_another_order(table: Path) -> dict[str, Any]:
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *rows[2:12], *rows[:2], *rows[12:], ""]))
    return {}


CHANGES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "spec": lambda table: {"image_encoder": {"name": "cnn", "dim": 16, "norm": "batch", "dropout": 0.4}},
    "resize": lambda table: {"data": {"resize": "squash"}},
    "size": lambda table: {"data": {"image_size": 24}},
    "precision": lambda table: {"trainer": {"precision": "bf16-mixed"}},
    "repainted": repainted,
    "touched": touched,
    "order": in_another_order,
}


@pytest.mark.parametrize("what", list(CHANGES))
def test_another_key_is_another_cache(table: Path, tmp_path: Path, what: str) -> None:
    kept = {"cache_features": str(tmp_path / "kept")}
    short = {"max_epochs": 1, "limit_val_batches": 0}
    run(table, data=kept, trainer=short)
    [before] = folders(tmp_path / "kept")
    options = CHANGES[what](table)
    changed = {**options, "trainer": {**short, **options.get("trainer", {})}}
    losses = run(table, **{**changed, "data": {**kept, **options.get("data", {})}}).train
    assert len(folders(tmp_path / "kept") - {before}) == 1
    assert losses == pytest.approx(run(table, **changed).train, rel=1e-2)


def test_a_cache_that_no_longer_fits_is_written_anew(table: Path, tmp_path: Path, capsys: Any) -> None:
    """What no key can see, a library that computes differently, is seen in the features themselves."""
    option = {"cache_features": str(tmp_path / "kept")}
    whole = run(table, data=option).train
    for path in (tmp_path / "kept").glob("*/pooled.npy"):
        np.save(path, np.load(path) * np.float16(1.5))
    capsys.readouterr()
    assert run(table, data=option).train == whole
    assert "does not match the encoder" in capsys.readouterr().out


def test_a_damaged_cache_is_written_anew(table: Path, tmp_path: Path) -> None:
    option = {"cache_features": str(tmp_path / "kept")}
    whole = run(table, data=option).train
    for path in (tmp_path / "kept").glob("*/features.npy"):
        path.write_bytes(path.read_bytes()[:200])
    assert run(table, data=option).train == whole


# --- interrupted, and resumed


class Killed(Squares):
    """Ends its process by SIGKILL at the second batch that it sees."""

    calls = 0

    def forward(self, images: Tensor) -> EncoderOutput:
        Killed.calls += 1
        if Killed.calls == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(images)


@pytest.mark.slow
def test_killed_while_encoding(table: Path, tmp_path: Path) -> None:
    """Half a cache is never read, and is removed by whoever comes next."""
    option = {"cache_features": str(tmp_path / "kept")}
    task = {"image_encoder": {"name": f"{__name__}:Killed"}, "freeze": ["image_encoder"]}
    # spawned: a fork of this process would wait for OpenMP's threads, which it does not have
    child = multiprocessing.get_context("spawn").Process(target=run, args=(table,), kwargs={"data": option, **task})
    child.start()
    child.join(300)
    assert child.exitcode == -signal.SIGKILL
    [left] = folders(tmp_path / "kept")
    assert left.endswith(".part")
    Killed.calls = 2
    run(table, data=option, **task)
    assert len(folders(tmp_path / "kept")) == 2
    assert not any(name.endswith(".part") for name in folders(tmp_path / "kept"))


def test_a_resumed_run_goes_on_with_the_checkpoints_weights(table: Path, tmp_path: Path) -> None:
    """What counts are the weights that were saved, not those that the encoder was built with."""
    option = {"cache_features": str(tmp_path / "kept"), "captions_per_image": 2}
    saving = ModelCheckpoint(tmp_path, "{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = run(table, data=option, callbacks=(saving,))
    before = folders(tmp_path / "kept")
    resumed = run(table, data=option, change=weights_changed, ckpt_path=tmp_path / "epoch=1.ckpt")
    assert resumed.train == whole.train[6:]
    assert folders(tmp_path / "kept") == before


# --- what is wrong


def test_a_image_that_cannot_be_read_is_left_out_of_the_cache_too(table: Path, tmp_path: Path, capsys: Any) -> None:
    """Another sample stands in for it, as without a cache; its fault is that of reading it."""
    (table.parent / "2.png").write_bytes(b"no image")
    data = {"cache_features": str(tmp_path / "kept"), "batch_size": 6}
    for _ in range(2):  # encoded, then read
        met = Faults()
        run(table, data=data, callbacks=(met,))
        assert "1 of train cannot be read: Cannot read image" in capsys.readouterr().out
        assert len(met.causes) == 3  # a batch of all images, in three epochs
        assert all("2.png': UnidentifiedImageError" in cause for cause in met.causes)


class Faults(lightning.Callback):
    """Keeps what could not be read."""

    def __init__(self) -> None:
        self.causes: list[str] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.causes += [bad_sample.cause for bad_sample in trainer.train_dataloader.take_bad_samples()]


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        ({"crop_scale": (0.5, 1.0)}, r"crop_scale \(0.5, 1.0\)"),
        ({"flip": True, "color_jitter": 0.1}, "flip True, color_jitter 0.1"),
    ],
)
def test_augmentation_is_refused(table: Path, augment: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=f"data.augment has {said}. Set crop_scale: null"):
        make_data(table, cache_features=True, augment=Augmentation(**augment))


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ({"freeze": None}, r"wholly frozen, and \d+ of its parameters are trained \(.*set model.freeze: \[image_enc"),
        (
            {"image_encoder": {"name": "torchvision/resnet18", "trainable": "none", "dim": 8}, "freeze": None},
            r"2 of its parameters are trained \(projection.weight, projection.bias\)",
        ),
        (
            {"image_encoder": {"name": f"{__name__}:Squares", "random": True}, "freeze": None},
            r"never change, and drop \(Dropout\) is in training mode: set model.freeze: \[image_encoder\]",
        ),
    ],
)
def test_an_encoder_that_changes_is_refused(table: Path, tmp_path: Path, task: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        run(table, data={"cache_features": str(tmp_path / "kept")}, **task)
    assert not folders(tmp_path / "kept")


def test_no_image_encoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="the model has no image encoder: set it to false"):
        require_frozen(None)


def test_dropout_of_zero_is_no_chance() -> None:
    require_frozen(Squares())


def test_the_folder(monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder(True) == tmp_path / "velm" / "features"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_folder(True) == Path("/home/me/.cache/velm/features")
    assert cache_folder("~/kept") == Path("/home/me/kept")
    assert cache_folder("kept") == Path("kept")


def test_other_stages_read_pixels(table: Path) -> None:
    data = make_data(table, cache_features=True)
    assert next(iter(data.train_dataloader())).images is not None
    assert "cache_features" not in data.config()
