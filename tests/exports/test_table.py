"""The table of docs/export.md: what it says can be expressed returns, and nothing else is."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import foreign
import pytest
import torch
from round_trips import require_same_weights

import velm
from benchmarks import export_table
from velm.errors import ExportError
from velm.sources import open_source

ROOT = Path(__file__).parents[2]
PREFIXES = {"transformers": "hf/", "open_clip": "open_clip/"}


def documented() -> dict[str, dict[str, str]]:
    """Model to format to cell, of both tables."""
    table: dict[str, dict[str, str]] = {}
    head: list[str] = []
    section = (
        (ROOT / "docs/export.md").read_text(encoding="utf-8").partition("## Which models")[2].partition("\n## ")[0]
    )
    for line in section.splitlines():
        cells = re.split(r" *\| *", line.strip("| "))
        if line.startswith(("| config |", "| model |")):
            head = cells[1:]
        elif line.startswith("| `"):
            table[cells[0].strip("`")] = dict(zip(head, cells[1:], strict=True))
    return table


def test_every_shipped_config_is_in_the_table() -> None:
    table = documented()
    assert {path.stem for path in (ROOT / "configs").glob("*.yaml")} <= table.keys()
    assert set(export_table.imports()) <= table.keys()
    assert all(cells.keys() >= PREFIXES.keys() for cells in table.values())


@pytest.mark.usefixtures("in_this_process")
def test_a_cell_has_the_difference_or_the_first_reason(write_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    path = write_checkpoint(decoder=None, losses={"contrastive": {}})
    assert export_table.cell(path, "velm", tmp_path / "velm") == "velm 0e+00"
    found = export_table.cell(path, "transformers", tmp_path / "transformers")
    assert re.fullmatch(r"– image_encoder.positions is 'sine', and CLIPModel has 'learned'; \d more", found)
    found = export_table.cell(write_checkpoint(), "transformers", tmp_path / "transformers")
    assert found == "– No class of transformers has the parts image_encoder, text_encoder, decoder"


def require_same_answers(one: velm.Pipeline, other: velm.Pipeline) -> None:
    """Embeddings to 1e-5 and captions, of images that need no resizing."""
    images: Any = foreign.images(3, size=(one.transform.image_size,) * 2)
    texts = ["a dog", "two dogs", "snow"]
    if one.aligned:
        torch.testing.assert_close(other.embed_images(images), one.embed_images(images), atol=1e-5, rtol=0)
        torch.testing.assert_close(other.embed_texts(texts), one.embed_texts(texts), atol=1e-5, rtol=0)
    if one.writes:
        asked = (images, texts if "text" in one.model.reads else None)
        assert other.caption(*asked, max_length=8) == one.caption(*asked, max_length=8)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", [*(path.stem for path in sorted((ROOT / "configs").glob("*.yaml"))),
                                  *export_table.imports()])  # fmt: skip
def test_out_and_in_and_out_again(tmp_path: Path, name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = export_table.sources()[name](tmp_path / "model")
        for format, prefix in PREFIXES.items():
            if documented()[name][format].startswith("–"):
                with pytest.raises(ExportError):
                    velm.export(source, tmp_path / format, format=format)
                continue
            out = velm.export(source, tmp_path / format, format=format).folder
            again = velm.export(f"{prefix}{out}", tmp_path / f"{format}_again", format=format).folder
            require_same_weights(open_source(f"{prefix}{out}"), open_source(f"{prefix}{again}"))
            require_same_answers(velm.load(source), velm.load(f"{prefix}{again}"))
