"""Every architecture of the installed open_clip is described, or refused with a reason."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("open_clip", reason="the extra 'open_clip' is not installed")

import open_clip

from velm.pretrained import hub
from velm.registry import image_encoders, split_config, text_encoders
from velm.sources import open_clip_texts
from velm.sources.open_clip_towers import read_towers

TYPES = {"facebook/nllb": "m2m_100", "google/mt5": "mt5", "roberta": "roberta", "xlm-roberta": "xlm-roberta"}
PAGE = Path(__file__).parents[2] / "docs" / "pretrained.md"


@pytest.fixture
def no_hub(monkeypatch):
    """Configs by the names of the hub, without reading it."""
    import transformers

    def read(name, config):
        kind = next(kind for start, kind in TYPES.items() if name.startswith(start))
        return transformers.AutoConfig.for_model(kind)

    monkeypatch.setattr(open_clip_texts, "hub", SimpleNamespace(read_config=read, portable_config=hub.portable_config))
    monkeypatch.setattr(
        open_clip_texts, "HFTokenizer", lambda model_name: SimpleNamespace(starts_with=0, bos_id=0, padded_with=1)
    )


def described(name):
    """The towers, or the message."""
    try:
        return read_towers(open_clip.get_model_config(name), None)
    except ValueError as error:
        return str(error)


def test_every_architecture_is_described_or_refused_with_a_reason(no_hub):
    found = {name: described(name) for name in open_clip.list_models()}
    refused = {name: message for name, message in found.items() if isinstance(message, str)}
    assert len(refused) <= 18
    assert all(message.startswith("its ") or message.startswith("it is ") for message in refused.values())
    for towers in found.values():
        if not isinstance(towers, str):
            for registry, config in ((image_encoders, towers.image), (text_encoders, towers.text)):
                registry.get(split_config(config)[0])
    page = PAGE.read_text(encoding="utf-8")
    assert not [name for name in refused if f"`{name}`" not in page]
    for number, of in re.findall(r"(\d+) of the (\d+) architectures", page):
        assert (int(number), int(of)) == (len(found) - len(refused), len(found))


def test_most_have_towers_of_velm_or_timm(no_hub):
    towers = [t for t in map(described, open_clip.list_models()) if not isinstance(t, str)]
    kinds = Counter(split_config(t.image)[0].partition("/")[0] for t in towers)
    assert kinds["timm"] >= 78
    assert kinds["vit"] >= 40
    assert kinds["attentional"] == 2
