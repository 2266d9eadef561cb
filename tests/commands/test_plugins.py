"""`velm plugins`: lists without torch, shows every option, checks with an exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from velm.commands.plugins import check_plugin, list_plugins, main, show_plugin
from velm.errors import ConfigError, PluginError, UnknownNameError
from velm.registry import KINDS, Registry

ENCODER = '''
import torch
from velm.encoders.base import TextEncoder
from velm.outputs import EncoderOutput


class Bag(TextEncoder):
    """A bag of words.

    The second paragraph is not shown.

    Args:
        dim: width D of a word.
        scale: by what a word is multiplied.
        vocab_size: words V.
    """

    def __init__(self, *, dim: int = 8, scale: float | None = None, vocab_size: int) -> None:
        super().__init__()
        self.dim = dim
        self.words = torch.nn.Embedding(vocab_size, dim)

    def forward(self, tokens, mask):
        features = self.words(tokens) * mask[:, :, None]
        return EncoderOutput(features, features.sum(1) / mask.sum(1, keepdim=True), mask=mask)


class Leaky(Bag):
    """A bag that counts padding."""

    def forward(self, tokens, mask):
        features = self.words(tokens)
        return EncoderOutput(features, features.mean(1), mask=mask)
'''


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of somebody's own that Python can import."""
    name = f"bags_of_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(ENCODER)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_every_registered_name_is_listed_with_its_owner() -> None:
    rows = list_plugins()
    assert {(row["kind"], row["name"]) for row in rows} >= {
        (kind, name) for kind, registry in KINDS.items() for name in registry.names()
    }
    vit = next(row for row in rows if row["name"] == "vit")
    assert vit["target"] == "velm.encoders.vit:ViTEncoder"
    assert vit["distribution"] == "velm"
    assert vit["version"]


def test_the_table_is_aligned_and_the_json_is_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    column = lines[0].index("TARGET")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)
    assert main(["--json"]) == 0
    assert json.loads(capsys.readouterr().out) == list_plugins()


def test_listing_imports_neither_torch_nor_a_plugin(tmp_path: Path) -> None:
    code = (
        "import sys; from velm.commands.plugins import main; main(['--json'])\n"
        "heavy = {'torch', 'lightning', 'transformers', 'jsonargparse', 'numpy', 'velm.encoders'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)


def test_a_broken_plugin_is_listed_and_reported_by_show_and_check(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wreck.py").write_text("raise RuntimeError('no such GPU')")
    info = tmp_path / "acme_wreck-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-wreck\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text("[velm.image_encoders]\nwreck = wreck:Encoder\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    wreck = next(row for row in list_plugins() if row["name"] == "wreck")
    assert wreck == {
        "kind": "image_encoders",
        "name": "wreck",
        "target": "wreck:Encoder",
        "distribution": "acme-wreck",
        "version": "3.1",
    }
    for argv in (["show", "image_encoder", "wreck"], ["check", "wreck"]):
        with pytest.raises(PluginError, match=r"acme-wreck 3\.1.*no such GPU"):
            main(argv)
    assert main(["show", "image_encoder", "vit"]) == 0


def test_show_lists_types_defaults_docs_and_sources(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    shown = show_plugin("text encoder", f"{module}:Leaky")
    assert shown["summary"] == "A bag that counts padding."
    assert shown["options"] == [
        _option("dim", "int", default=8, doc="width D of a word."),
        _option("scale", "float | None", doc="by what a word is multiplied."),
        _option("vocab_size", "int", required=True, given="the tokenizer", doc="words V."),
    ]
    assert main(["show", "text-encoders", f"{module}:Bag"]) == 0
    page = capsys.readouterr().out
    assert "dim: int  (default 8)\n      width D of a word." in page
    assert "vocab_size: int  (from the tokenizer)" in page
    assert "second paragraph" not in page


def _option(name: str, kind: str, **told: Any) -> dict[str, Any]:
    return {"name": name, "type": kind, "required": False, "default": None, "given": None, **told}


@pytest.mark.parametrize(
    ("registry", "name"),
    [(registry, name) for registry in KINDS.values() for name in registry.names()],
    ids=lambda value: value.kind if isinstance(value, Registry) else value,
)
def test_every_option_of_our_own_is_typed_and_documented(registry: Registry, name: str) -> None:
    pytest.importorskip("timm") if name.startswith("timm") else None
    shown = show_plugin(registry.kind, name)
    assert shown["summary"]
    undocumented = [option["name"] for option in shown["options"] if not option["doc"] or option["type"] == "anything"]
    assert not undocumented


def test_a_member_of_a_family_shows_where_its_model_name_comes_from() -> None:
    for name in ("torchvision/resnet18", "torchvision/*"):
        options = {option["name"]: option for option in show_plugin("image_encoders", name)["options"]}
        assert options["model_name"]["given"] == "the part of the name after the slash"


def test_check_passes_and_fails_by_exit_code(module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"{{name: '{module}:Bag', dim: 4}}"]) == 0
    assert "0 errors, 0 warnings" in capsys.readouterr().out
    assert main(["check", f"{module}:Leaky"]) == 1
    out = capsys.readouterr().out
    assert [line for line in out.splitlines() if line.startswith("error")] == [out.splitlines()[1]]
    assert out.splitlines()[1].startswith("error    padding leak ")
    assert main(["check", f"{module}:Leaky", "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert [f["check"] for f in printed["findings"] if f["severity"] == "error"] == ["padding leak"]
    assert (printed["summary"]["error"], printed["summary"]["exit_code"]) == (1, 1)


def test_check_takes_json_and_the_options_of_the_spec(module: str) -> None:
    report = check_plugin({"name": f"{module}:Bag", "vocab_size": 5})
    assert report.ok, str(report)
    assert main(["check", json.dumps({"name": f"{module}:Bag", "dim": 3})]) == 0


def test_check_finds_the_kind_of_a_name_of_its_own() -> None:
    assert check_plugin("sigmoid").ok
    assert check_plugin("byte").ok


def test_a_text_encoder_that_shares_a_decoder_is_given_one() -> None:
    assert check_plugin({"name": "decoder", "pooling": "mean"}).ok
    given = {option["name"]: option["given"] for option in show_plugin("text_encoder", "decoder")["options"]}
    assert given == {"decoder": "the model", "pad_id": "the tokenizer", "pooling": None, "fill_id": None}


def test_balancing_policies_are_listed_and_shown_and_have_no_check() -> None:
    assert {row["name"] for row in list_plugins() if row["kind"] == "balancing_policies"} >= {"fixed", "uncertainty"}
    assert show_plugin("balancing policy", "uncertainty")["kind"] == "balancing_policies"
    with pytest.raises(ConfigError, match="There is no contract check for a balancing policy"):
        check_plugin("uncertainty")


def test_check_of_a_misspelt_option_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "{name: sigmoid, temperatur: 1.0}"]) == 1
    assert "Did you mean 'temperature'?" in " ".join(capsys.readouterr().out.split())


def test_a_name_of_several_kinds_asks_which(module: str) -> None:
    with pytest.raises(ConfigError, match="'rnn' is the name of text encoder and decoder"):
        main(["check", "rnn"])
    assert check_plugin("rnn", kind="decoder").ok


@pytest.mark.parametrize(
    ("argv", "error", "message"),
    [
        (["check", "sigmoidd"], UnknownNameError, "Did you mean 'sigmoid'?"),
        (["check", "json:JSONDecoder"], ConfigError, "derives from none of velm.ImageEncoder, .*--kind image_encoders"),
        (["check", "{name: "], ConfigError, "neither YAML nor JSON"),
        (["show", "encoder", "vit"], ConfigError, "Unknown kind 'encoder'. Kinds: image_encoders, "),
        (["show", "loss", "sigmoidd"], UnknownNameError, "Did you mean 'sigmoid'?"),
    ],
)
def test_bad_input_is_answered(argv: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        main(argv)


def test_decorated_classes_come_in_by_plugins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "decorated.py"
    file.write_text(ENCODER + "\nfrom velm.registry import text_encoders\ntext_encoders.register('my bag')(Bag)\n")
    code = (
        "import sys; from velm.commands.plugins import main\n"
        f"assert main(['--json', '--plugins', {str(file)!r}]) == 0\n"
        f"assert main(['check', 'my bag', '--plugins', {str(file)!r}]) == 0"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert '"name": "my bag"' in done.stdout
    assert "padding never changes a result" in done.stdout
