"""What is trained is what the losses list; what is saved is what is loaded; what does not fit is said at once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, WeightAveraging
from lightning.pytorch.loggers import CSVLogger

import velm
from velm.checkpoint import read_checkpoint
from velm.errors import ConfigError
from velm.outputs import Batch
from velm.training.balancing.watch import GradientWatch
from velm.training.config import OptimizerConfig, ValidationConfig
from velm.training.data import VisionLanguageData
from velm.training.monitor.alarms import Alarms
from velm.training.task import VisionLanguageTask

JOINT: dict[str, Any] = {"contrastive": {"weight": 0.5}, "captioning": {"weight": 2.0}}
RECALL = {
    f"{direction}/{figure}"
    for direction in ("image_to_text", "text_to_image")
    for figure in ("recall@1", "recall@5", "recall@10", "median_rank")
}

pytestmark = pytest.mark.filterwarnings("ignore")


def make_task(losses: dict[str, Any] | None = None, **changes: Any) -> VisionLanguageTask:
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "image_encoder": {"name": "cnn", "dim": 16, "widths": [8], "norm": "batch", "dropout": 0.5},
        "text_encoder": {"name": "rnn", "dim": 12},
        "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2},
        "losses": JOINT if losses is None else losses,
        "embed_dim": 8,
        "vocab_size": 20,
        "validation": ValidationConfig(captions=2, max_length=6),
    }
    return VisionLanguageTask(**{**options, **changes})


def make_data(**changes: Any) -> VisionLanguageData:
    sizes = {"train_size": 4, "val_size": 3, "test_size": 3, "heldout_size": 0}
    dataset = {"name": "shapes", "objects": 1, "image_size": 32, **sizes}
    return VisionLanguageData(**{"dataset": dataset, "image_size": 16, "batch_size": 2, "max_length": 16, **changes})


def make_trainer(folder: Path, **options: Any) -> lightning.Trainer:
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        **{"accelerator": "cpu", "default_root_dir": folder, "max_steps": 2, "enable_model_summary": False, **silent,
           "use_distributed_sampler": False, "num_sanity_val_steps": 0, **options}
    )  # fmt: skip


class One(torch.utils.data.Dataset):
    """The same batch, once an epoch."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
        tokens = torch.tensor([[1, 5, 6, 2], [1, 7, 2, 0], [1, 8, 9, 2], [1, 2, 0, 0]])
        self.batch = Batch(images=images, tokens=tokens, mask=tokens != 0, image_ids=torch.arange(4))

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Batch:
        return self.batch


def fit(task: VisionLanguageTask, folder: Path, steps: int = 1) -> dict[str, float]:
    """The figures of the last of a few steps without validation."""
    trainer = make_trainer(folder, max_steps=steps)
    trainer.fit(task, torch.utils.data.DataLoader(One(), batch_size=None))
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


# --- losses


@pytest.mark.parametrize(
    ("losses", "logged", "parts"),
    [
        ({"contrastive": None}, {"contrastive", "logit_scale"}, {"image_encoder", "text_encoder"}),
        ({"sigmoid": {}}, {"sigmoid", "logit_scale", "logit_bias"}, {"image_encoder", "text_encoder"}),
        ({"captioning": {}}, {"captioning"}, {"image_encoder", "decoder"}),
        (JOINT, {"contrastive", "captioning", "logit_scale"}, {"image_encoder", "text_encoder", "decoder"}),
    ],
)
def test_what_is_listed_is_what_is_trained(
    tmp_path: Path, losses: dict[str, Any], logged: set[str], parts: set[str]
) -> None:
    task = make_task(losses)
    before = {name: p.detach().clone() for name, p in task.named_parameters()}
    figures = fit(task, tmp_path)
    assert set(figures) == {f"train/{name}" for name in {"loss", *logged}}
    assert {part for part in ("image_encoder", "text_encoder", "decoder") if getattr(task.model, part)} == parts
    assert task.needs == frozenset().union(*(loss.requires for loss in task.losses.values()))
    still = {name for name, p in task.named_parameters() if p.grad is None}
    assert not still, "every parameter has a gradient"
    moved = {name.split(".")[1] for name, p in task.named_parameters() if not torch.equal(p, before[name])}
    assert parts <= moved


def test_the_loss_is_the_weighted_sum(tmp_path: Path) -> None:
    figures = fit(make_task(), tmp_path)
    expected = 0.5 * figures["train/contrastive"] + 2.0 * figures["train/captioning"]
    assert figures["train/loss"] == pytest.approx(expected, rel=1e-6)
    assert figures["train/captioning"] == pytest.approx(torch.tensor(20.0).log().item(), rel=0.5)  # about uniform


def test_the_learning_rate_ends_where_the_schedule_says(tmp_path: Path) -> None:
    task = make_task(optimizer=OptimizerConfig(lr=0.5, warmup=0.5, min_lr=0.1, lr_scale={"decoder": 0.0}))
    decoder = {name: p.detach().clone() for name, p in task.model.decoder.named_parameters()}
    fit(task, tmp_path, steps=4)
    rates = {group["name"]: group["lr"] for group in task.optimizers().param_groups}
    assert rates["image_encoder"] == pytest.approx(0.05)
    assert {"losses/no_decay", "image_projection", "text_projection"} <= set(rates)
    assert all(torch.equal(p, decoder[name]) for name, p in task.model.decoder.named_parameters())


# --- freezing


def test_a_loss_of_weight_0_is_validated_and_not_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task({"contrastive": {"weight": 0}, "captioning": {}})
    calls: list[bool] = []
    encode = task.model.text_encoder.forward
    monkeypatch.setattr(
        task.model.text_encoder, "forward", lambda *inputs: (calls.append(task.training), encode(*inputs))[1]
    )
    before = {name: value.clone() for name, value in task.state_dict().items()}
    watching = [Alarms(tmp_path), GradientWatch()]
    trainer = make_trainer(tmp_path, callbacks=watching, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    trainer.fit(task, make_data())
    assert "val/contrastive" in trainer.callback_metrics
    assert {"train/captioning", "train/loss"} <= set(trainer.callback_metrics)
    assert "train/contrastive" not in trainer.callback_metrics
    assert trainer.callback_metrics["train/loss"] == trainer.callback_metrics["train/captioning"]
    assert calls
    assert not any(calls)
    after = task.state_dict()
    moved = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before[name])}
    assert "decoder" in moved
    assert not moved & {"text_encoder", "text_projection", "contrastive"}


def test_several_devices_compute_a_loss_of_weight_0() -> None:
    losses = make_task({"contrastive": {"weight": 0}, "captioning": {}}).losses
    assert list(losses.in_steps(1)) == ["captioning"]
    assert list(losses.in_steps(2)) == ["contrastive", "captioning"]
    assert list(make_task({"captioning": {"weight": 0}}).losses.in_steps(1)) == ["captioning"]


def test_a_frozen_part_stays_as_it_was(tmp_path: Path) -> None:
    task = make_task(freeze=["image_encoder"])
    before = {name: value.clone() for name, value in task.model.image_encoder.state_dict().items()}
    fit(task, tmp_path, steps=2)
    after = task.model.image_encoder.state_dict()  # weights, and the running statistics of batch norm
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in task.model.image_encoder.parameters())
    assert all(p.grad is not None for p in task.model.decoder.parameters())
    task.train()
    assert not any(module.training for module in task.model.image_encoder.modules())
    assert task.model.decoder.training
    assert task.model.text_encoder.training
    task.eval()
    assert not task.model.decoder.training


@pytest.mark.parametrize("part", ["encoder", "decoder", "image_projection"])
def test_freezing_what_is_not_there_is_refused(part: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_task({"contrastive": {}}, freeze=[part])
    assert str(error.value) == f"freeze names {part!r}; the model's parts are image_encoder, text_encoder."


# --- bad input


@pytest.mark.parametrize(
    ("losses", "says"),
    [
        ({}, "`losses:` lists none; e.g. {contrastive: "),
        ({"captioning": {"weight": -1}}, "The weight of the loss 'captioning' is a number >= 0; got -1."),
        ({"captioning": {"weight": "much"}}, "The weight of the loss 'captioning' is a number >= 0; got 'much'."),
        ({"captioning": {"weight": True}}, "got True."),
        ({"captioning": {"weight": float("nan")}}, "got nan."),
        (
            {"captioning": {"smoothing": 0.1}},
            "The loss 'captioning' has no option 'smoothing'. Did you mean 'label_smoo",
        ),
    ],
)
def test_losses_that_cannot_be_are_refused(losses: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_task(losses)
    assert says in str(error.value)


@pytest.mark.parametrize("memory", [["text"], ["image", "text"]])
def test_text_in_memory_and_no_target_is_refused_before_training(tmp_path: Path, memory: list[str]) -> None:
    task, data = make_task(memory=memory), make_data()
    with pytest.raises(
        ConfigError, match=r"name the column of the caption to write, e.g. `data.dataset.target_column: de`"
    ):
        make_trainer(tmp_path).fit(task, datamodule=data)
    assert task.trainer.global_step == 0


def of(task: VisionLanguageTask, **data: Any) -> VisionLanguageTask:
    """The task as a trainer would hold it, with data of which only what is said is known."""
    task.trainer = SimpleNamespace(datamodule=SimpleNamespace(**data))
    return task


def test_text_in_memory_is_fine_with_a_target_or_without_a_decoder() -> None:
    of(make_task(memory=["image", "text"]), has_target=True, max_length=8).setup("fit")
    of(make_task({"contrastive": {}}, memory=["image", "text"]), has_target=False, max_length=8).setup("fit")


def test_sentences_longer_than_the_decoder_holds_are_refused_before_training() -> None:
    decoder = {"name": "transformer", "dim": 16, "depth": 1, "heads": 2, "max_length": 8}
    of(make_task(decoder=decoder), has_target=False, max_length=8).setup("fit")
    with pytest.raises(
        ConfigError, match=r"data.max_length is 9 tokens, but the decoder holds 8: lower data.max_length"
    ):
        of(make_task(decoder=decoder), has_target=False, max_length=9).setup("fit")


def test_captions_of_a_model_that_writes_none_are_refused() -> None:
    with pytest.raises(ConfigError, match="captions the test split, and this model has no decoder"):
        of(make_task({"contrastive": {}}), has_target=False, max_length=8).setup("predict")


# --- a whole run: validation, checkpoint, average


class Run:
    """One fit on drawn scenes, with its checkpoint."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.data = make_data()
        self.task = make_task(vocab_size=self.data.vocab_size, **changes)
        keep = ModelCheckpoint(dirpath=folder, filename="last", save_on_train_epoch_end=True)
        self.trainer = make_trainer(folder, max_epochs=1, max_steps=-1, enable_checkpointing=True, callbacks=[keep])
        self.trainer.fit(self.task, datamodule=self.data)
        self.path = folder / "last.ckpt"
        self.figures = {name: float(value) for name, value in self.trainer.callback_metrics.items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("run"))


def test_validation_gives_the_figures_of_metrics_json(run: Run) -> None:
    captions = {f"caption/{name}" for name in ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider", "exact_match")}
    figures = {name.removeprefix("val/") for name in run.figures if name.startswith("val/")}
    assert RECALL | captions | {"loss", "contrastive", "captioning", "score"} <= figures
    weighted = 0.5 * run.figures["val/contrastive"] + 2.0 * run.figures["val/captioning"]
    assert run.figures["val/loss"] == pytest.approx(weighted, rel=1e-5)
    assert sorted(run.task.scores["val"].captions) == [0, 1]  # validation.captions


def test_a_checkpoint_stands_on_its_own(run: Run) -> None:
    stored = read_checkpoint(run.path)
    assert stored.config["losses"] == JOINT
    assert stored.config["vocab_size"] == run.data.vocab_size
    assert stored.transform == {"image_size": 16, "resize": "crop"}
    assert (stored.max_length, stored.target, stored.plugins, stored.raw_weights) == (16, False, [], None)
    assert stored.data["dataset"] == run.data.dataset_config


def test_saved_equals_loaded(run: Run) -> None:
    pipeline = velm.load(run.path)
    batch = next(iter(run.data.test_dataloader()))
    model = run.task.model.eval()
    with torch.no_grad():
        expected = model.embed_image(model.encode_image(batch.images))
        expected_text = model.embed_text(model.encode_text(batch.tokens, batch.mask))
    records = [run.data.records("test")[i] for i in batch.image_ids.tolist()]
    images = pipeline.embed_images([record.image for record in records])
    texts = pipeline.embed_texts([record.texts[0] for record in records])
    torch.testing.assert_close(torch.as_tensor(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.as_tensor(texts), expected_text, rtol=1e-4, atol=1e-5)
    assert all(isinstance(caption, str) for caption in pipeline.caption([records[0].image]))


def test_a_run_goes_on_from_its_checkpoint(run: Run, tmp_path: Path) -> None:
    task = make_task(vocab_size=run.data.vocab_size)
    trainer = make_trainer(tmp_path, max_steps=-1, max_epochs=2, limit_val_batches=0)
    trainer.fit(task, datamodule=make_data(), ckpt_path=run.path)
    assert trainer.global_step == 4  # two epochs of two steps, of which this run took the second


def test_test_and_predict_use_the_test_split(run: Run, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    [figures] = trainer.test(run.task, datamodule=run.data, verbose=False)
    assert {f"test/{name}" for name in RECALL} <= set(figures)
    rows = [row for batch in trainer.predict(run.task, datamodule=run.data) for row in batch]
    assert [row["image_id"] for row in rows] == [record.image_id for record in run.data.records("test")]
    assert all(isinstance(row["caption"], str) for row in rows)


def test_an_average_of_the_weights_is_an_option(tmp_path: Path) -> None:
    assert not any(isinstance(callback, WeightAveraging) for callback in make_task().configure_callbacks())
    run = Run(tmp_path, ema=0.5, optimizer=OptimizerConfig(lr=0.05, warmup=0.0))
    assert any(isinstance(callback, WeightAveraging) for callback in run.trainer.callbacks)
    stored = read_checkpoint(run.path)
    assert stored.raw_weights is not None
    name = "image_projection.weight"
    assert not torch.equal(stored.weights[name], stored.raw_weights[name])
    assert torch.equal(velm.load(run.path).model.state_dict()[name], stored.weights[name])
    averaged, raw = (
        torch.load(run.path, weights_only=True)[state]["losses.contrastive.log_scale"].exp()
        for state in ("state_dict", "current_model_state")
    )
    assert stored.logit_scale == averaged.item() != raw.item()
