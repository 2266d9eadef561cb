"""Distillation: what the teacher is shown, its cache, what a checkpoint keeps, and every message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch
import yaml
from foreign import save_clip
from layouts import image_bytes, write_tar
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny_run import TINY, fit
from torch import Tensor

from velm.data.synthetic.shapes import Shapes
from velm.errors import ConfigError
from velm.evaluation.evaluate import evaluate
from velm.outputs import Batch
from velm.pipeline import Pipeline, load
from velm.training.config import Augmentation, OptimizerConfig, ValidationConfig
from velm.training.data import VisionLanguageData
from velm.training.memory import teacher as teaching
from velm.training.task import VisionLanguageTask

pytestmark = pytest.mark.filterwarnings("ignore")
SHAPES = {"name": "shapes", "train_size": 12, "val_size": 4, "image_size": 32}


class Recorder(lightning.Callback):
    """Losses and batches of the training, metrics of the validation."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.batches: list[Batch] = []
        self.metrics: dict[str, float] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Batch, batch_idx: int) -> None:
        self.losses.append(float(outputs["loss"]))
        self.batches.append(batch)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}


@pytest.fixture
def teach(write_checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., tuple[Any, ...]]:
    """`teach(losses options, data=..., trainer=..., **task options) -> task, data, recorder, trainer`, after a fit."""

    def run(
        *,
        teacher: str | Path | None = None,
        data: dict[str, Any] | None = None,
        trainer: dict[str, Any] | None = None,
        losses: dict[str, Any] | None = None,
        ckpt_path: Path | None = None,
        callbacks: Sequence[lightning.Callback] = (),
        embed_dim: int = 8,
        **options: Any,
    ) -> tuple[Any, ...]:
        path = write_checkpoint("teacher.ckpt") if teacher is None else teacher
        torch.manual_seed(0)
        distillation = {"teacher": str(path), "cache": str(tmp_path / "cache"), **options}
        module = VisionLanguageData(
            **{"dataset": SHAPES, "image_size": 16, "batch_size": 4, "max_length": 8, **(data or {})}
        )
        task = VisionLanguageTask(
            image_encoder={"name": "cnn", "dim": 16},
            text_encoder={"name": "rnn", "dim": 12},
            losses={"distillation": distillation, **(losses or {})},
            embed_dim=embed_dim,
            vocab_size=module.vocab_size,
            optimizer=OptimizerConfig(lr=1e-2),
            validation=ValidationConfig(captions=0),
        )
        recorder = Recorder()
        common = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        fitted = lightning.Trainer(
            **{"max_epochs": 2, **common, "default_root_dir": tmp_path / "run", **(trainer or {})},
            callbacks=[recorder, *callbacks],
            use_distributed_sampler=False,
        )
        fitted.fit(task, module, ckpt_path=ckpt_path, weights_only=True)
        return task, module, recorder, fitted

    return run


def test_the_teacher_sees_its_own_transform_and_tokenizer(teach: Any, write_checkpoint: Any) -> None:
    pipeline = load(write_checkpoint("teacher.ckpt"))
    augment = Augmentation(crop_scale=(0.5, 0.7), flip=True, color_jitter=0.2)
    data = {"augment": augment, "captions_per_image": 2}
    _, module, recorder, trainer = teach(data=data, trainer={"max_epochs": 1})
    assert recorder.metrics["val/distillation"] > 0
    trainer.state.fn = "fit"
    items, records = module.train_items(), module.records("train")
    for sample in items.__getitems__([(0, number) for number in range(len(items))]):
        embeds = items.teacher.read([sample.teacher])
        record = records[sample.image_id]
        image, text = pipeline.embed_images([record.image]), pipeline.embed_texts([record.texts[sample.text_index]])
        torch.testing.assert_close(embeds.image.float(), image, rtol=0, atol=1e-3)  # half precision
        torch.testing.assert_close(embeds.text.float(), text, rtol=0, atol=1e-3)
        assert embeds.scale == pipeline.logit_scale
    for batch in recorder.batches:
        assert batch.teacher.image.shape == batch.teacher.text.shape == (8, 8)
        pairs = batch.teacher.image.float()[::2], batch.teacher.image.float()[1::2]
        torch.testing.assert_close(*pairs)  # two captions of one image


def test_an_epoch_costs_no_pass_of_the_teacher(teach: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    _, _, first, _ = teach()
    counts = {"images": 0, "texts": 0}
    embed_image, embed_texts = Pipeline.embed_image, Pipeline.embed_texts

    def images(self: Pipeline, image: Any) -> Tensor:
        counts["images"] += len(image.pooled)
        return embed_image(self, image)

    def texts(self: Pipeline, texts: list[str], **options: Any) -> Tensor:
        counts["texts"] += len(texts)
        return embed_texts(self, texts, **options)

    assert "12 images of train are embedded once by" in capsys.readouterr().out
    monkeypatch.setattr(Pipeline, "embed_image", images)
    monkeypatch.setattr(Pipeline, "embed_texts", texts)
    _, module, again, _ = teach(trainer={"limit_val_batches": 0})
    assert counts == {"images": teaching.CHECKED, "texts": 1 + teaching.CHECKED}
    assert "the embeddings of 12 images of train are read from" in capsys.readouterr().out
    assert again.losses == first.losses
    text_count = sum(len(record.texts) for record in module.records("train"))
    assert len(module._teachers["train"].texts._rows) == text_count


def test_another_teacher_or_a_damaged_cache_is_embedded_again(
    teach: Any, write_checkpoint: Any, tmp_path: Path, capsys: Any
) -> None:
    _, _, first, _ = teach()
    folders = set((tmp_path / "cache").iterdir())
    for folder in folders:
        (folder / "pooled.npy").write_bytes(b"damaged")
    _, _, again, _ = teach()
    assert "does not match the teacher, or is damaged: it is written again" in capsys.readouterr().out
    assert again.losses == first.losses
    assert set((tmp_path / "cache").iterdir()) == folders
    other = write_checkpoint("other.ckpt")
    content = torch.load(other, weights_only=True)
    content["state_dict"]["model.image_projection.weight"] *= -1
    torch.save(content, other)
    _, _, of_other, _ = teach(teacher=other)
    assert of_other.losses != first.losses
    assert len(set((tmp_path / "cache").iterdir())) == 2 * len(folders)


@pytest.mark.parametrize("workers", [2])
def test_workers_change_nothing(teach: Any, workers: int) -> None:
    _, _, expected, _ = teach(data={"augment": Augmentation(flip=True)})
    _, _, found, _ = teach(data={"augment": Augmentation(flip=True), "num_workers": workers})
    assert found.losses == expected.losses


def test_a_run_that_was_resumed_is_the_run_that_was_not(teach: Any, tmp_path: Path) -> None:
    saver = ModelCheckpoint(tmp_path, "middle", every_n_train_steps=4, save_top_k=-1)
    whole, _, expected, _ = teach(callbacks=[saver])
    torch.manual_seed(1)
    resumed, _, rest, _ = teach(ckpt_path=tmp_path / "middle.ckpt")
    assert rest.losses == expected.losses[4:]
    for name, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_the_checkpoint_needs_no_teacher(teach: Any, tmp_path: Path) -> None:
    task, module, _, trainer = teach(losses={"contrastive": {"weight": 0.5}}, embed_dim=6, teacher_dim=8)
    assert not [name for name in task.state_dict() if "teacher" in name]
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    (tmp_path / "teacher.ckpt").unlink()
    pipeline = load(tmp_path / "student.ckpt")
    assert pipeline.logit_scale == pytest.approx(float(task.losses["contrastive"].logit_scale))
    assert pipeline.embed_texts(["a red circle"]).shape == (1, 6)
    other = VisionLanguageTask(
        image_encoder={"name": "cnn", "dim": 8}, text_encoder={"name": "rnn", "dim": 8}, losses={"contrastive": {}},
        vocab_size=module.vocab_size,
    )  # fmt: skip
    again = lightning.Trainer(fast_dev_run=True, accelerator="cpu", enable_progress_bar=False)
    again.fit(other, module)  # the same data without a teacher
    assert not module.distils
    metrics = trainer.validate(task, module, verbose=False)[0]
    assert "val/contrastive" in metrics
    assert "val/distillation" not in metrics


def test_distillation_alone_is_validated_without_a_teacher_and_has_a_scale(teach: Any, tmp_path: Path) -> None:
    task, module, _, trainer = teach()
    trainer.save_checkpoint(tmp_path / "student.ckpt")
    scale = load(tmp_path / "student.ckpt").logit_scale
    assert scale == pytest.approx(float(task.losses["distillation"].logit_scale))
    metrics = trainer.validate(task, module, verbose=False)[0]
    assert metrics["val/loss"] == 0
    assert 0 < metrics["val/image_to_text/recall@10"] <= 1


def test_shards_and_texts_that_repeat(teach: Any, tmp_path: Path) -> None:
    members = {}
    for number in range(8):
        members |= {f"{number}.jpg": image_bytes(number), f"{number}.txt": "a red circle" if number % 2 else "a star"}
    shard = write_tar(tmp_path / "shards" / "0.tar", members)
    _, module, recorder, _ = teach(data={"dataset": {"name": "webdataset", "train": shard}})
    assert len(module._teachers["train"].texts._embeds) == 2
    assert len(recorder.losses) == 4


def test_an_image_that_the_teacher_cannot_read_is_a_bad_sample(teach: Any, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.jpg").write_bytes(image_bytes(number))
    (tmp_path / "5.jpg").write_bytes(b"no image")
    rows = [f"{number}.jpg,a red circle {number},train" for number in range(6)]
    (tmp_path / "captions.csv").write_text("\n".join(["image_path,text,split", *rows]) + "\n")
    data = {"dataset": {"name": "csv", "path": str(tmp_path / "captions.csv")}, "max_bad": 0.5, "batch_size": 2}
    _, module, recorder, _ = teach(data=data, trainer={"max_epochs": 1})
    assert module._teachers["train"].images.bad_samples
    assert all(5 not in batch.image_ids for batch in recorder.batches)


def test_a_teacher_that_cannot_teach_is_refused(teach: Any, write_checkpoint: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"The teacher .*nowhere\.ckpt: No checkpoint at"):
        teach(teacher=tmp_path / "nowhere.ckpt")
    writer = write_checkpoint("writer.ckpt", losses={"captioning": {}})
    with pytest.raises(ConfigError, match=r"The teacher .*writer\.ckpt: This model was not trained to align"):
        teach(teacher=writer)
    words = r"have 8 dimensions and the student's 6, and there is no map.*set teacher_dim: 8 "
    with pytest.raises(ConfigError, match=words):
        teach(embed_dim=6)
    with pytest.raises(ConfigError, match="and teacher_dim is 5: set teacher_dim: 8"):
        teach(embed_dim=6, teacher_dim=5)
    unscaled = write_checkpoint("unscaled.ckpt", logit_scale=None)
    with pytest.raises(ConfigError, match="learned no scale of its similarities"):
        teach(teacher=unscaled)
    broken = write_checkpoint("broken.ckpt")
    content = torch.load(broken, weights_only=True)
    content["state_dict"]["model.text_projection.weight"][0] = torch.nan
    torch.save(content, broken)
    with pytest.raises(ConfigError, match=r"The teacher .*broken\.ckpt: It computes NaN or inf"):
        teach(teacher=broken)
    teach(teacher=unscaled, relation=0, trainer={"fast_dev_run": True})
    teach(embed_dim=6, feature=0, trainer={"fast_dev_run": True})


def test_a_reader_that_is_not_open_says_who_opens_it(teach: Any) -> None:
    from velm.data.feature_cache.teacher import TeacherReader

    reader = TeacherReader(Shapes(train_size=2, image_size=32).split("train"))
    with pytest.raises(RuntimeError, match="embeds the data when fit starts"):
        reader.rows(0, 0, 0)


@pytest.fixture
def config(write_checkpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config beside its teacher, which it names from its own folder; the working folder is another."""
    write_checkpoint("teacher.ckpt")
    losses = {"distillation": {"teacher": "teacher.ckpt", "teacher_dim": 8}, "captioning": {}}
    path = tmp_path / "student.yaml"
    path.write_text(yaml.safe_dump({**TINY, "model": {**TINY["model"], "losses": losses, "embed_dim": 6}}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return path


def test_a_run_as_typed(config: Path, capsys: Any) -> None:
    assert fit(config) == 0
    assert "8 images of val are embedded once by" in capsys.readouterr().out
    run = Path("runs/student")
    assert {"train/distillation", "val/distillation", "train/distillation_scale"} <= set(
        (run / "metrics.csv").read_text().partition("\n")[0].split(",")
    )
    assert load(run / "last.ckpt").caption([np.zeros((32, 32, 3), np.uint8)])
    assert (config.parent / "home" / "velm" / "features").is_dir()


def test_laws_and_plans_need_no_teacher(config: Path, tmp_path: Path) -> None:
    from velm.doctor.laws.micro_batch import check_micro_batch
    from velm.doctor.laws.small_run import SmallRun
    from velm.planning.measure import measure, probe
    from velm.training.build import build_task
    from velm.training.run import parse_fit

    options = parse_fit(["--config", str(config)])
    (tmp_path / "teacher.ckpt").unlink()
    run = SmallRun.of(options)
    assert run.batch.teacher is not None
    assert check_micro_batch(run).severity == "ok"

    def build() -> VisionLanguageTask:
        return build_task(options["model"], **run.vocabulary)

    def batch(count: int) -> Batch:
        return probe(count, tokenizer=run.data.tokenizer, length=6, image_size=32)

    costs = measure(build, batch, "32-true", rows=16)
    assert costs.shared
    assert costs.in_losses == 4 + 2 * (6 * 8 + 8) * 4  # a scale and two maps
    assert costs.loss_flops[0] > 0


def test_a_clip_of_transformers_teaches_by_its_own_tokenizer_and_transform(teach: Any, tmp_path: Path) -> None:
    source = f"hf/{save_clip(tmp_path / 'clip')}"
    _, module, recorder, trainer = teach(teacher=source, teacher_dim=24, trainer={"max_epochs": 1})
    trainer.state.fn = "fit"
    pipeline, items, records = load(source), module.train_items(), module.records("train")
    samples = items.__getitems__([(0, number) for number in range(4)])
    embeds = items.teacher.read([sample.teacher for sample in samples])
    images = pipeline.embed_images([records[sample.image_id].image for sample in samples])
    texts = pipeline.embed_texts([records[sample.image_id].texts[sample.text_index] for sample in samples])
    torch.testing.assert_close(embeds.image.float(), images, rtol=0, atol=1e-3)
    torch.testing.assert_close(embeds.text.float(), texts, rtol=0, atol=1e-3)
    assert embeds.scale == pytest.approx(pipeline.logit_scale)
    assert len(recorder.losses) == 3


@pytest.mark.slow
def test_a_student_learns_drawn_scenes_from_its_teacher_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a loss of its own, at another width: it retrieves far above chance, 1 and 10 of 100."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))

    def learn(name: str, losses: dict[str, Any], dim: int, epochs: int) -> dict[str, float]:
        model = {
            "image_encoder": {"name": "cnn", "dim": dim}, "text_encoder": {"name": "rnn", "dim": dim},
            "losses": losses, "embed_dim": 64 if name == "teacher" else 48, "optimizer": {"lr": 3e-3},
        }  # fmt: skip
        data = {
            "dataset": {"name": "shapes", "image_size": 32, "train_size": 1500, "val_size": 100},
            "image_size": 32, "batch_size": 50,
        }  # fmt: skip
        trainer = {**TINY["trainer"], "max_epochs": epochs, "check_val_every_n_epoch": epochs}
        config = tmp_path / f"{name}.yaml"
        config.write_text(yaml.safe_dump({"seed_everything": 0, "model": model, "data": data, "trainer": trainer}))
        assert fit(config) == 0
        found = evaluate(load(f"runs/{name}/best.ckpt"), Shapes(image_size=32, test_size=100).split("test"))
        return {key.partition("/")[2]: value for key, value in found.items() if key.startswith("image_to_text")}

    teacher = learn("teacher", {"contrastive": {}}, 64, 8)
    distillation = {"teacher": "runs/teacher/best.ckpt", "teacher_dim": 64}
    student = learn("student", {"distillation": distillation}, 32, 8)
    assert teacher["recall@1"] > 0.5
    assert student["recall@1"] > 0.2
    assert student["recall@10"] > 0.5
