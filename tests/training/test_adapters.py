"""Adapters in a run: the base stays as it was, a resumed run is bit for bit the same, memory options change nothing."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

import velm
from tests.training.memory.test_micro_batch import LOSSES, assert_same, step, whole_batch
from velm import cli, registry
from velm.checkpoint import build_from_checkpoint, read_checkpoint
from velm.encoders.transformer import TransformerEncoder
from velm.errors import CheckpointError, ConfigError
from velm.pretrained.adapters import adapted_layers
from velm.training.memory import micro_batch
from velm.training.memory.compile import compile_tower
from velm.training.pretrained import read_source, start_from
from velm.training.task import VisionLanguageTask

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "checkpoint_every_n_steps": 2,
    "save_last_k": 9,
    "model": {
        "image_encoder": {"name": "vit", "dim": 16, "depth": 2, "heads": 2, "patch_size": 8},
        "text_encoder": {"name": "transformer", "dim": 16, "depth": 2, "heads": 2, "dropout": 0.1},
        "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2},
        "losses": {"contrastive": {}, "captioning": {}},
        "embed_dim": 8,
        "validation": {"max_length": 4, "panel": 1, "captions": 2},
    },
    "data": {
        "dataset": {"name": "shapes", "train_size": 24, "val_size": 8, "test_size": 4},
        "image_size": 16,
        "batch_size": 4,
    },
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
}
ADAPT: dict[str, Any] = {
    "image_encoder": {"name": "lora", "r": 2, "lora_dropout": 0.2},
    "text_encoder": {"name": "dora", "r": 2, "lora_dropout": 0.1, "modules_to_save": ["norm"]},
    "decoder": "lora",
}


def fit(folder: Path, name: str, *options: str, adapt: dict[str, Any] | None = None, **model: Any) -> int:
    config = {**CONFIG, "model": {**CONFIG["model"], **({"adapt": adapt} if adapt else {}), **model}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return cli.main(["fit", "--config", str(path), f"--trainer.default_root_dir={folder / name}", *options])


def losses(run: Path) -> dict[int, str]:
    rows = csv.DictReader((run / "metrics.csv").read_text(encoding="utf-8").splitlines())
    return {int(row["step"]): row["train/loss"] for row in rows if row.get("train/loss")}


def state(file: Path) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(file, weights_only=True)["state_dict"]
    return weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, a run without adapters, and `adapted`, one with that starts from it."""
    folder = tmp_path_factory.mktemp("runs")
    assert fit(folder, "base") == 0
    assert fit(folder, "adapted", adapt=ADAPT, pretrained=str(folder / "base" / "last.ckpt"), ema=0.5) == 0
    return folder


def test_the_base_is_that_of_the_source_after_training(folder: Path) -> None:
    base, adapted = state(folder / "base/last.ckpt"), state(folder / "adapted/last.ckpt")
    plain = {name.replace(".base_layer.", "."): tensor for name, tensor in adapted.items()}
    trained = [name for name, tensor in base.items() if not torch.equal(tensor, plain[name])]
    beside = ["model.text_encoder.norm", "model.image_projection", "model.text_projection", "losses.contrastive"]
    assert {name.rpartition(".")[0] for name in trained} == set(beside)
    assert any(tensor.abs().sum() > 0 for name, tensor in adapted.items() if "lora_B" in name)


def test_dora_begins_with_the_lengths_of_the_source(folder: Path) -> None:
    """Injected into random weights, and not again after the transfer, it would begin with their lengths."""
    fit(folder, "still", "--model.optimizer.lr=1e-12", adapt=ADAPT, pretrained=str(folder / "base" / "last.ckpt"))
    base, still = (velm.load(folder / name / "last.ckpt") for name in ("base", "still"))
    texts = ["a red circle", "a blue square left of a green star"]
    torch.testing.assert_close(still.embed_texts(texts), base.embed_texts(texts), atol=1e-5, rtol=0)


def test_adapters_begin_the_same_whatever_drew_numbers_before(folder: Path) -> None:
    """Ranks draw differently before; under FSDP2 each would hold a shard of other adapters."""
    source = str(folder / "base/last.ckpt")
    tokenizer = read_source(source).tokenizer
    found = []
    for seed in range(2):
        task = make_task(vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id)
        task._trainer = SimpleNamespace(  # type: ignore[assignment]
            datamodule=SimpleNamespace(tokenizer=tokenizer), is_global_zero=False
        )
        torch.manual_seed(seed)
        start_from(source, task)
        found.append(task.model.state_dict())
    assert any("lora_A" in name for name in found[0])
    assert all(torch.equal(tensor, found[1][name]) for name, tensor in found[0].items() if "lora_" in name)


def test_a_resumed_run_has_the_same_losses_bit_for_bit(folder: Path) -> None:
    """Adapters that were injected anew after loading would begin again at the base."""
    source = {"pretrained": str(folder / "base" / "last.ckpt"), "ema": 0.5}
    assert fit(folder, "resumed", f"--ckpt_path={folder / 'adapted' / 'step_2.ckpt'}", adapt=ADAPT, **source) == 0
    whole, resumed = losses(folder / "adapted"), losses(folder / "resumed")
    assert sorted(resumed) == [2, 3, 4, 5]
    assert resumed == {number: loss for number, loss in whole.items() if number >= 2}
    before, after = state(folder / "adapted/last.ckpt"), state(folder / "resumed/last.ckpt")
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_a_loaded_checkpoint_is_merged_and_equal(folder: Path) -> None:
    checkpoint = read_checkpoint(folder / "adapted/last.ckpt")
    unmerged, pipeline = build_from_checkpoint(checkpoint), velm.load(folder / "adapted/last.ckpt")
    assert list(adapted_layers(unmerged))
    assert not list(adapted_layers(pipeline.model))
    batch = whole_batch()
    with torch.no_grad():
        expected, found = unmerged(batch), pipeline.model(batch)
    for name in ("image_embeds", "text_embeds"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.decoder.hidden, expected.decoder.hidden, atol=1e-5, rtol=0)


def test_an_adapted_source_is_merged(folder: Path) -> None:
    weights = read_source(str(folder / "adapted/last.ckpt")).weights
    assert weights.keys() == state(folder / "base/last.ckpt").keys()
    merged = velm.load(folder / "adapted/last.ckpt").model.state_dict()
    assert all(torch.equal(weights[f"model.{name}"], tensor) for name, tensor in merged.items())


def test_other_adapters_do_not_resume(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = f"--ckpt_path={folder / 'adapted' / 'last.ckpt'}"
    assert fit(folder, "other", last, adapt={**ADAPT, "decoder": {"name": "lora", "r": 4}}) == 2
    assert "lora_A.default.weight is (8, 16) in it and (4, 16) here" in capsys.readouterr().err


def make_task(**changes: Any) -> VisionLanguageTask:
    torch.manual_seed(0)
    options: dict[str, Any] = {**CONFIG["model"], "losses": LOSSES["joint"], "vocab_size": 20, "adapt": ADAPT}
    options.pop("validation")
    task = VisionLanguageTask(**{**options, **changes})
    torch.manual_seed(1)
    for _, layer in adapted_layers(task.model):
        nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    return task


def test_recomputed_blocks_give_the_same_gradients_with_the_same_dropout() -> None:
    assert_same(step(make_task(checkpoint_blocks=True), whole_batch()), step(make_task(), whole_batch()))


def test_micro_batches_give_the_gradients_of_the_whole() -> None:
    still = {name: {"name": "lora", "r": 2} for name in ADAPT}
    text = {"text_encoder": {**CONFIG["model"]["text_encoder"], "dropout": 0.0}, "adapt": still}
    assert_same(step(make_task(micro_batch_size=2, **text), whole_batch()), step(make_task(**text), whole_batch()))


def test_dropout_of_adapters_is_the_same_when_a_micro_batch_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    found = step(make_task(micro_batch_size=3), whole_batch())
    monkeypatch.setattr(micro_batch, "checkpoint", lambda run, part, **options: run(part))  # everything is kept
    assert_same(found, step(make_task(micro_batch_size=3), whole_batch()))


@pytest.mark.slow
def test_compiled_towers_give_the_same_gradients() -> None:
    def still(compiled: bool) -> dict[str, Tensor]:
        task = make_task(
            image_encoder={**CONFIG["model"]["image_encoder"], "depth": 1}, adapt={"image_encoder": "dora"}
        )
        if compiled:
            compile_tower(task.model.image_encoder, backend="eager")
        return step(task, whole_batch())

    assert_same(still(True), still(False))


def test_frozen_modules_of_an_adapted_part_are_in_eval_mode() -> None:
    encoder = {"name": "cnn", "dim": 16, "norm": "batch"}
    adapt = {"image_encoder": {"name": "lora", "target_modules": ["conv1"], "lora_dropout": 0.5}}
    task = make_task(image_encoder=encoder, adapt=adapt)
    for _ in range(2):  # as built, and after `train`
        modes = {name: module.training for name, module in task.model.image_encoder.named_modules()}
        assert not any(training for name, training in modes.items() if "norm" in name or "base_layer" in name)
        assert all(training for name, training in modes.items() if name.endswith("lora_dropout.default"))
        task.eval().train()


def test_a_frozen_part_has_no_adapter() -> None:
    with pytest.raises(ConfigError, match=r"model.freeze names decoder, and model.adapt too. .* out of model.adapt"):
        make_task(freeze=["decoder"])
    with pytest.raises(ConfigError, match=r"model.train_last names image_encoder, and model.adapt too"):
        make_task(train_last={"image_encoder": 1})


class Silent(nn.Linear):
    """A linear layer whose weight is read without a call, as by a fused kernel."""


class SilentEncoder(TransformerEncoder):
    def __init__(self, *, vocab_size: int, pad_id: int = 0) -> None:
        super().__init__(vocab_size=vocab_size, pad_id=pad_id, dim=16, depth=1, heads=2)
        self.extra = Silent(16, 16)


def test_random_weights_that_are_frozen_are_warned_of(folder: Path) -> None:
    with pytest.warns(UserWarning, match="freezes the weights of decoder and image_encoder, which are random"):
        assert fit(folder, "random", adapt={"image_encoder": "lora", "decoder": "lora"}) == 0


def test_an_adapter_that_cannot_learn_ends_the_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = {"name": f"{__name__}:SilentEncoder"}
    adapt = {"text_encoder": {"name": "lora", "target_modules": ["query", "extra"]}}
    assert fit(folder, "silent", text_encoder=text, adapt=adapt) == 2
    assert "model.adapt.text_encoder: 1 adapted layers have no gradient" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("adapt", "message"),
    [
        ({"decodr": "lora"}, "model.adapt names 'decodr'; the model's parts are .*decoder. Did you mean 'decoder'"),
        ({"decoder": "lra"}, "Unknown adapter 'lra' of the decoder. Did you mean 'lora'\\? Available: lora, dora"),
        ({"decoder": "subprocess:Popen"}, "Unknown adapter 'subprocess:Popen' of the decoder"),
        (
            {"decoder": {"name": "lora", "alpha": 1}},
            "adapter 'lora' of the decoder has no option 'alpha'. .*lora_alpha",
        ),
        ({"decoder": {"name": "dora", "use_dora": False}}, "adapter 'dora' of the decoder has no option 'use_dora'"),
        ({"decoder": {"name": "lora", "r": "four"}}, "The option 'r' of the adapter 'lora' of the decoder takes int"),
        ({"decoder": {"name": "lora", "r": 0}}, "model.adapt.decoder: r is the rank of the update"),
        ({"decoder": {"name": "lora", "target_modules": ["qkv"]}}, "model.adapt.decoder: target_modules names 'qkv'"),
    ],
)
def test_a_wrong_config_says_what_is_wrong(adapt: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(adapt=adapt)


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    """The best.ckpt of a run like `adapted` that leaves out the base."""
    source = {"pretrained": str(folder / "base/last.ckpt"), "ema": 0.5}
    assert fit(folder, "small", "--save=adapters", adapt=ADAPT, **source) == 0
    return folder / "small" / "best.ckpt"


def test_a_file_of_adapters_holds_what_was_trained_and_loads_as_the_complete_one(folder: Path, small: Path) -> None:
    content = torch.load(small, weights_only=True)
    assert not {"optimizer_states", "callbacks"} & content.keys()
    held = {name for name in content["state_dict"] if "lora_" not in name}
    beside = ["model.text_encoder.norm", "model.image_projection", "model.text_projection", "losses.contrastive"]
    assert {name.rpartition(".")[0] for name in held} == set(beside)
    found, expected = (velm.load(file).model.state_dict() for file in (small, folder / "adapted/best.ckpt"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    raw = [build_from_checkpoint(read_checkpoint(f), ema=False) for f in (small, folder / "adapted/best.ckpt")]
    assert all(torch.equal(a, b) for a, b in zip(raw[0].parameters(), raw[1].parameters(), strict=True))


def test_a_file_of_adapters_is_found_with_its_base_when_both_have_moved(folder: Path, small: Path) -> None:
    moved = folder / "moved"
    for name in ("base/last.ckpt", "small/best.ckpt"):
        (moved / name).parent.mkdir(parents=True)
        (moved / name).write_bytes((folder / name).read_bytes())
    content = torch.load(moved / "small/best.ckpt", weights_only=True)
    content["velm"]["base"]["absolute"] = str(folder / "gone.ckpt")
    torch.save(content, moved / "small/best.ckpt")
    velm.load(moved / "small/best.ckpt")
    (moved / "base/last.ckpt").unlink()
    content["velm"]["base"]["source"] = "gone.ckpt"
    torch.save(content, moved / "small/best.ckpt")
    with pytest.raises(CheckpointError, match=r"leaves out the weights of its base, gone.ckpt. No checkpoint at gone"):
        velm.load(moved / "small/best.ckpt")


def test_another_base_is_refused_by_its_hash(folder: Path, small: Path) -> None:
    content = torch.load(small, weights_only=True)
    other = folder / "other_base.ckpt"
    base = torch.load(folder / "base/last.ckpt", weights_only=True)
    base["state_dict"]["model.text_encoder.blocks.0.mlp.0.bias"][3] += 1e-6
    torch.save(base, other)
    content["velm"]["base"] |= {"path": None, "absolute": str(other)}
    torch.save(content, folder / "wrong.ckpt")
    with pytest.raises(CheckpointError, match=r"was trained on .*base/last.ckpt \(sha256 \w{12}\), and .*other_base"):
        velm.load(folder / "wrong.ckpt")


def test_a_file_of_adapters_is_measured_and_not_resumed(
    folder: Path, small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--config", str(folder / "small.yaml"), f"--trainer.default_root_dir={small.parent}"]
    assert cli.main(["test", *options, f"--ckpt_path={small}"]) == 0
    capsys.readouterr()
    assert cli.main(["fit", *options, f"--ckpt_path={small}"]) == 2
    assert "is a file of adapters without the optimizer's state, with which" in capsys.readouterr().err
    assert (
        fit(
            folder, "small", f"--ckpt_path={small.parent / 'last.ckpt'}", "--trainer.max_epochs=1", adapt=ADAPT, ema=0.5
        )
        == 0
    )


def test_pretrained_weights_of_a_part_are_a_base_too(folder: Path) -> None:
    pytest.importorskip("timm")
    encoder = {"name": "timm/test_vit", "weights": str(folder / "timm.pth")}
    torch.manual_seed(7)
    torch.save(registry.image_encoders.build({"name": "timm/test_vit"}).model.state_dict(), folder / "timm.pth")
    adapt = {"image_encoder": {"name": "lora", "lora_alpha": 100}}
    for save in ("full", "adapters"):
        options = [f"--save={save}", f"--trainer.default_root_dir={folder / f'timm_{save}'}"]
        assert fit(folder, "timm", *options, image_encoder=encoder, adapt=adapt) == 0
    whole, small = (folder / f"timm_{save}/best.ckpt" for save in ("full", "adapters"))
    assert not any("base_layer" in name for name in state(small))
    found, expected = (velm.load(file).model.state_dict() for file in (small, whole))
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    torch.save(registry.image_encoders.build({"name": "timm/test_vit"}).model.state_dict(), folder / "timm.pth")
    with pytest.raises(
        CheckpointError,
        match=r"was trained on the pretrained weights of its parts \(sha256",
    ):
        velm.load(small)
    (folder / "timm.pth").unlink()
    with pytest.raises(CheckpointError, match=r"There is no weights file .*timm.pth"):
        velm.load(small)


def test_what_cannot_be_left_out_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fit(folder, "no_source", "--save=adapters", adapt=ADAPT) == 2
    assert "set model.pretrained, or pretrained weights of a part, or save: full" in capsys.readouterr().err
    assert fit(folder, "twice", "--save=adapters", adapt=ADAPT, pretrained=str(folder / "adapted/last.ckpt")) == 2
    assert "has adapters itself. Merge it first: velm merge" in capsys.readouterr().err
