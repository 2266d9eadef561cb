"""What no format can write, and disks that are full: a message, and nothing is left."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from round_trips import write_own

import velm
from velm import cli, registry
from velm.errors import ExportError, VelmError
from velm.exports import FORMATS, hf_captioner, open_clip

PLUGIN = '''
import torch
from velm import image_encoders
from velm.encoders.base import ImageEncoder
from velm.outputs import EncoderOutput

@image_encoders.register("brightness")
class Brightness(ImageEncoder):
    """The mean of each quadrant."""

    def __init__(self, *, dim: int = 3) -> None:
        super().__init__()
        self.dim, self.weight = 3, torch.nn.Parameter(torch.ones(3))

    def forward(self, images):
        cells = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(2).transpose(1, 2) * self.weight
        return EncoderOutput(cells, cells.mean(1), grid=(2, 2))
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Iterator[Path]:
    """A file with an image encoder of one's own, which is forgotten afterwards."""
    path = tmp_path / "brightness.py"
    path.write_text(PLUGIN)
    registry.load_plugins([str(path)])
    yield path
    registry.image_encoders._decorated.pop("brightness", None)


def config_with(image: str, decoder: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"image_encoder": {"name": image, "dim": 3}, "text_encoder": None if decoder else {"name": "rnn", "dim": 8},
            "decoder": decoder, "embed_dim": 8, "losses": {"captioning" if decoder else "contrastive": {}}}  # fmt: skip


@pytest.mark.usefixtures("in_this_process")
def test_a_plugin_is_written_by_velm_and_refused_by_name_elsewhere(plugin: Path, tmp_path: Path) -> None:
    tokenizer: Any = velm.tokenizers.build({"name": "byte"})
    path = write_own(tmp_path, config_with("brightness"), tokenizer, "byte", 16, logit_scale=2.0)
    for format, cls in (("transformers", "CLIPModel"), ("open_clip", "open_clip's CLIP")):
        with pytest.raises(ExportError, match=rf"{cls} cannot express .* image_encoder is 'brightness', and that of"):
            velm.export(path, tmp_path / "out", format=format)
    decoder = {"name": "hf/gpt2", "config": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 40}}
    captioner = write_own(tmp_path, config_with("brightness", decoder), tokenizer, "byte", 16)
    with pytest.raises(ExportError, match=r"VisionEncoderDecoderModel cannot .* image_encoder is 'brightness'"):
        velm.export(captioner, tmp_path / "out", format="transformers")
    assert not (tmp_path / "out").exists()
    assert velm.export(captioner, tmp_path / "out", plugins=[str(plugin)]).kind == "velm"


def test_parts_that_no_format_has_are_named(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"No class of transformers has the parts image_encoder, text_encoder, dec"):
        velm.export(write_checkpoint(), tmp_path / "out", format="transformers")
    captioner = write_checkpoint(text_encoder=None, losses={"captioning": {}})
    with pytest.raises(ExportError, match=r"CoCa cannot express this model: there is no text_encoder"):
        velm.export(captioner, tmp_path / "out", format="open_clip")
    translator = write_checkpoint(memory=["image", "text"], target=True, losses={"captioning": {}})
    with pytest.raises(ExportError, match=r"CoCa cannot express this model: no loss of it aligns images with texts"):
        velm.export(translator, tmp_path / "out", format="open_clip")


def test_an_unknown_format_from_the_command_line(
    write_checkpoint: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.main(["export", str(write_checkpoint()), "--format", "open-clip", "--output", str(tmp_path / "out")])
    assert status == 2
    assert f"Did you mean 'open_clip'? Formats: {', '.join(FORMATS)}" in capsys.readouterr().err


@pytest.mark.parametrize("format", FORMATS)
def test_an_output_that_is_not_empty_is_refused_by_every_format(
    write_checkpoint: Callable[..., Path], tmp_path: Path, format: str
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    with pytest.raises(ExportError, match=r"place is a folder that is not empty, and an export replaces nothing"):
        velm.export(write_checkpoint(), place, format=format)
    assert [path.name for path in place.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(("format", "module", "writer"), [
    ("transformers", hf_captioner, "save_library_model"), ("open_clip", open_clip, "_preprocess"),
])  # fmt: skip
def test_a_full_disk_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, module: Any, writer: str
) -> None:
    """The disk is full behind the first files."""

    def full(*arguments: Any) -> None:
        folder = next(iter((tmp_path / "place").iterdir()))
        (folder / "half.json").write_text("{")
        raise OSError(errno.ENOSPC, "No space left on device")

    image = {"name": "vit", "dim": 32, "depth": 1, "heads": 4, "patch_size": 8, "positions": "learned",
             "position_grid": 4, "pooling": "class", "patch_bias": False}  # fmt: skip
    gpt2 = {"name": "hf/gpt2", "config": {"n_embd": 32, "n_layer": 1, "n_head": 4, "n_positions": 40}}
    if format == "transformers":
        parts: dict[str, Any] = {"text_encoder": None, "decoder": gpt2, "losses": {"captioning": {}}}
        image |= {"input_norm": True, "output_norm": False, "class_in_features": True}
        tokenizer, name, more = velm.tokenizers.build({"name": "byte"}), "byte", {}
    else:
        pytest.importorskip("open_clip")
        text = {"name": "transformer", "dim": 16, "depth": 1, "heads": 2, "max_length": 16, "causal": True,
                "pooling": "last"}  # fmt: skip
        parts = {"text_encoder": text, "decoder": None, "embed_dim": 8, "losses": {"contrastive": {}}}
        tokenizer, name, more = velm.tokenizers.build({"name": "clip"}), "clip", {"logit_scale": 2.0}
    path = write_own(tmp_path, {"image_encoder": image, **parts}, tokenizer, name, 16, **more)
    monkeypatch.setattr(module, writer, full)
    with pytest.raises(VelmError, match=r"cannot be written: No space left on device. Nothing was left there"):
        velm.export(path, tmp_path / "place" / "out", format=format)
    assert list((tmp_path / "place").iterdir()) == []
