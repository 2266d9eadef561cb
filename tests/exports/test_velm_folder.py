"""`velm export --format velm`: the folder is the checkpoint, strict, and nothing half-written stays."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from round_trips import require_same_weights
from safetensors.torch import load_file, save_file

import velm
from velm import cli
from velm.checkpoint import read_checkpoint, read_folder
from velm.errors import CheckpointError, ExportError
from velm.exports import formats
from velm.exports.card import model_card
from velm.exports.golden import compare, golden_inputs, read_golden


@pytest.fixture(scope="session")
def _kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"folder": tmp_path_factory.mktemp("exported")}


@pytest.fixture
def folder(
    write_checkpoint: Callable[..., Path], _kept: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Path:
    """A copy of one exported folder, beside the checkpoint tiny.ckpt."""
    path, kept = write_checkpoint(), _kept["folder"] / "model"
    if not kept.exists():
        metrics = {"recall@1": 0.25, "signature/tokenize:ptb": 1}
        (tmp_path / "metrics.json").write_text(json.dumps(metrics))
        (tmp_path / "intervals.json").write_text(json.dumps({"recall@1": [0.125, 0.375]}))
        assert cli.main(["export", str(path), "--output", str(kept), "--data"]) == 0
        printed = capsys.readouterr().out
        assert "is exported as velm" in printed
        assert "image_embeds   largest difference 0.0e+00, cosine 1.0000" in printed
        assert "CIDEr-D " in printed
    return shutil.copytree(kept, tmp_path / "copy")


def test_the_folder_is_the_checkpoint(folder: Path, tmp_path: Path) -> None:
    expected, found = read_checkpoint(tmp_path / "tiny.ckpt"), read_folder(folder)
    require_same_weights(expected, found)
    names = ("config", "tokenizer", "transform", "max_length", "data", "target", "aligned", "logit_scale", "plugins")
    assert {name: getattr(found, name) for name in names} == {name: getattr(expected, name) for name in names}
    golden = read_golden(folder / "golden.safetensors")
    pipeline = velm.load(folder)
    assert compare(golden.tensors, {"image_embeds": pipeline.embed_images(golden.images),
                                    "text_embeds": pipeline.embed_texts(golden.texts),
                                    "logits": pipeline.score(golden.images, golden.texts, kind="logit"),
                                    "log_probs": golden.tensors["log_probs"]}, 1e-6)[0].passed  # fmt: skip
    assert pipeline.caption(golden.images, max_length=12) == golden.captions


def test_the_card_has_the_metrics_and_leaves_the_licence(folder: Path) -> None:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| recall@1 | 0.25 | 0.125 to 0.375 |" in card
    assert "library_name: velm" in card
    assert "Licence: not stated yet" in card
    assert "`shapes`" in card
    assert "velm export" in card


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "velm_tokenizer.json", "sha256.json"])
def test_half_a_folder_is_refused(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks {name}: it was not copied or downloaded whole"):
        velm.load(folder)
    with pytest.raises(CheckpointError, match="lacks"):
        velm.from_pretrained(folder)


def test_a_missing_and_an_additional_tensor_are_named(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = next(iter(sorted(tensors)))
    tensors["model.more"] = tensors.pop(name)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"was changed .*It lacks {name}. Additional: model.more"):
        velm.load(folder)


def test_a_changed_or_damaged_file_is_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model.safetensors was changed after it was written: its sha256 is"):
        velm.load(folder)
    weights.write_bytes(content[:50])
    with pytest.raises(CheckpointError, match="It cannot be read"):
        velm.load(folder)
    weights.write_bytes(content)
    velm.load(folder)
    (folder / "transform.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"transform.json was changed"):
        velm.load(folder)
    (folder / "sha256.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"sha256.json is no JSON"):
        velm.load(folder)


def test_a_newer_format_is_refused(folder: Path) -> None:
    from velm.checkpoint import seal_folder

    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": 99}))
    seal_folder(folder)
    with pytest.raises(CheckpointError, match=r"in checkpoint format 99.*Upgrade"):
        velm.load(folder)


def test_a_folder_of_another_library_says_how_to_read_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(CheckpointError, match=r"of the model type 'clip'. A model of transformers is hf/"):
        velm.load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"its config.json is not VELM's"):
        velm.load(tmp_path)


def test_an_output_that_is_there_is_refused(
    write_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_checkpoint()
    for output, what in ((tmp_path, "a folder that is not empty"), (path, "a file")):
        assert cli.main(["export", str(path), "--output", str(output)]) == 2
        assert f"is {what.removeprefix('is ')}, and an export replaces nothing" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(
    write_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    for error in (OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device")):

        def full(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(formats, "write_golden", full)
        with pytest.raises(ExportError, match=r"cannot be written: No space left on device. Nothing was left there"):
            velm.export(write_checkpoint(), tmp_path / "place" / "out")
    assert list((tmp_path / "place").iterdir()) == []


def test_another_answer_leaves_nothing(
    write_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    place = tmp_path / "place"
    path = write_checkpoint()
    wrong: dict[str, Any] = {}

    def fresh(_reader: str, _folder: Path, golden: Any, _plugins: Any) -> Any:
        tensors = {name: tensor + wrong.get("by", 0.0) for name, tensor in golden.tensors.items()}
        return replace(golden, tensors=tensors, captions=[c + wrong.get("word", "") for c in golden.captions])

    monkeypatch.setattr(formats, "in_fresh_process", fresh)
    wrong["by"] = 1e-3
    with pytest.raises(ExportError, match=r"does not say the same .*image_embeds .*1.0e-03.*allowed is 1.0e-05"):
        velm.export(path, place / "out")
    wrong.update(by=float("nan"))
    with pytest.raises(ExportError, match=r"does not say the same"):
        velm.export(path, place / "out")
    wrong.update(by=0.0, word="!")
    with pytest.raises(ExportError, match=r"writes another caption"):
        velm.export(path, place / "out")
    assert list(place.iterdir()) == []


def test_a_fresh_process_that_fails_says_why(tmp_path: Path) -> None:
    from velm.exports.fresh import in_fresh_process

    with pytest.raises(ExportError, match=r"cannot be read in a fresh process: .*No checkpoint at"):
        in_fresh_process("velm", tmp_path / "nothing", golden_inputs(8))


def test_metrics_that_are_none_are_refused(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    content = read_checkpoint(write_checkpoint())
    (tmp_path / "m.json").write_text("[]")
    with pytest.raises(ExportError, match=r"is no metrics.json of `velm evaluate`"):
        model_card(content, "velm", [], tmp_path / "m.json", "")
    with pytest.raises(ExportError, match=r"cannot be read as the metrics.json"):
        model_card(content, "velm", [], tmp_path / "none.json", "")


def test_tied_tensors_are_stored_once(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    from dataclasses import replace

    from velm.checkpoint import seal_folder, write_folder

    content = read_checkpoint(write_checkpoint())
    name, tensor = next(iter(content.weights.items()))
    content = replace(content, weights={**content.weights, "again": tensor, "view": tensor.flatten()[1:]})
    place = tmp_path / "tied"
    place.mkdir()
    write_folder(content, place)
    (place / "golden.safetensors").write_bytes(b"")
    seal_folder(place)
    require_same_weights(content, read_folder(place))
    assert f"model.{name}" in load_file(place / "model.safetensors")
    assert "model.again" not in load_file(place / "model.safetensors")
