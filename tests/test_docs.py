"""The README and the manual: their code compiles, their commands would run, their tables name what there is."""

from __future__ import annotations

import ast
import inspect
import json
import re
import shlex
import sys
from collections.abc import Mapping
from dataclasses import is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
import yaml

from velm import metrics, registry
from velm.cli import COMMANDS
from velm.doctor.examine import CHECKS
from velm.model import build_model
from velm.pretrained.weights import skip_pretrained
from velm.sources import is_foreign
from velm.testing import LAWS, assert_contract

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
PARTS = ("image_encoder", "text_encoder", "decoder", "dataset", "tokenizer")
OWN = re.compile(r"```python\n(# my_encoders.py\n.*?)```", re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def all_blocks(language: str) -> list[Any]:
    return [pytest.param(b, id=f"{p.stem}-{i}") for p in PAGES for i, b in enumerate(blocks(p, language), start=1)]


def commands() -> list[Any]:
    """Every `velm ...` of a bash block, as its words."""
    lines = [(page, line) for page in PAGES for block in blocks(page, "bash") for line in block.splitlines()]
    typed = [(p, shlex.split(part, comments=True)) for p, line in lines for part in line.split("&&")]
    return [pytest.param(words[1:], id=f"{p.stem}: {' '.join(words)}") for p, words in typed if words[:1] == ["velm"]]


def section(page: str, title: str) -> str:
    """The text under a heading, up to the next one of its level."""
    text = (DOCS / page).read_text(encoding="utf-8")
    level, found = re.findall(rf"^(#+) {re.escape(title)}\n", text, re.MULTILINE)[0], text.partition(f"# {title}\n")[2]
    return re.split(rf"^#{{1,{len(level)}}} ", found, maxsplit=1, flags=re.MULTILINE)[0]


def first_column(text: str) -> set[str]:
    """The names in backquotes in the first column of every table."""
    cells = re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


@pytest.fixture
def own_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoder that plugins.md writes, as a module."""
    (tmp_path / "my_encoders.py").write_text(OWN.findall((DOCS / "plugins.md").read_text(encoding="utf-8"))[0])
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_encoders", raising=False)


@pytest.mark.parametrize("block", all_blocks("python"))
def test_python_compiles(block: str) -> None:
    ast.parse(block)


@pytest.mark.parametrize("block", all_blocks("yaml"))
@pytest.mark.usefixtures("own_encoder")
def test_yaml_names_parts_and_options_that_there_are(block: str) -> None:
    content = yaml.safe_load(block)
    if "parameters" in content:  # a study of `velm sweep`
        assert {name.split(".")[0] for name in content["parameters"]} <= {"model", "data", "trainer"}
        return
    assert set(content) <= {"seed_everything", "model", "data", "trainer", "plugins"}
    for part, value in [(k, v) for room in ("model", "data") for k, v in content.get(room, {}).items()]:
        if part in PARTS and value["name"] != "patches":  # registered by the decorator that the page speaks of
            known = registry.parameters(registry.KINDS[f"{part}s"].get(value["name"]))
            assert set(value) - {"name"} <= set(known)
    for name, options in content.get("model", {}).get("losses", {}).items():
        assert set(options) - {"weight"} <= set(registry.parameters(registry.losses.get(name)))


@pytest.mark.parametrize("words", commands())
def test_command_is_known_and_its_files_are_there(words: list[str]) -> None:
    assert words[0] in COMMANDS or words[0] in ("COMMAND", "--help", "--version")
    for path in (word.partition("=")[2] or word for word in words):
        if path.startswith(("configs/", "examples/")):
            assert (ROOT / path).exists()
        if path.startswith("runs/") and words[0] != "sweep":
            assert (ROOT / "configs" / f"{Path(path).parts[1]}.yaml").is_file()


@pytest.mark.parametrize(
    "words",
    [
        p
        for p in commands()
        if p.values[0][0]
        in (
            "average",
            "caption",
            "compare",
            "doctor",
            "embed",
            "evaluate",
            "explain",
            "pack",
            "plan",
            "plugins",
            "selfcheck",
            "sweep",
        )
    ],
)
def test_options_of_a_command_are_accepted(words: list[str]) -> None:
    from velm.commands import (
        average,
        caption,
        compare,
        doctor,
        embed,
        evaluate,
        explain,
        pack,
        plan,
        plugins,
        selfcheck,
        sweep,
    )

    rest = words[1:]
    if words[0] == "average":
        average._parse(rest)
    elif words[0] == "caption":
        caption._parser().parse_intermixed_args(rest)
    elif words[0] == "embed":
        embed._parser().parse_intermixed_args(rest)
    elif words[0] == "evaluate":
        evaluate._parse(rest)
    elif words[0] == "compare":
        compare._parser().parse_args(rest)
    elif words[0] == "explain":
        explain._parser().parse_args(rest)
    elif words[0] == "doctor":
        doctor._parser().parse_known_args(rest)
    elif words[0] == "plan":
        plan._parser().parse_known_args(rest)
    elif words[0] == "selfcheck":
        selfcheck._parser().parse_known_args(rest)
    elif words[0] == "sweep":
        sweep._parser().parse_known_args(rest)
    elif words[0] == "pack":
        assert set(pack.dataset_config(pack._parser().parse_args(rest).dataset)) >= {"name"}
    else:
        plugins._parser().parse_args(rest)


SHOWN = re.compile(r"```bash\n(velm plugins[^\n]*)\n```\n\n```text\n(.*?)```", re.DOTALL)


@pytest.mark.parametrize(("command", "output"), SHOWN.findall((DOCS / "plugins.md").read_text(encoding="utf-8")))
@pytest.mark.usefixtures("own_encoder")
def test_output_is_as_printed(command: str, output: str, capsys: pytest.CaptureFixture[str]) -> None:
    from velm.commands import plugins

    assert plugins.main(shlex.split(command)[2:]) == 0
    printed = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]  # columns fit what is installed
    wanted = [" ".join(line.split()) for line in output.splitlines() if line != "..."]
    assert [line for line in printed if line in wanted] == wanted


RUNS = ("fit", "doctor", "selfcheck", "validate", "test", "predict")


@pytest.mark.parametrize("words", [p for p in commands() if p.values[0][0] in RUNS])
@pytest.mark.usefixtures("own_encoder")
def test_a_run_as_typed_builds_its_model(words: list[str]) -> None:
    options = _typed(words[1:])
    path = ROOT / options.pop("config")
    if path.parts[-3:-2] == ("runs",):
        path = ROOT / "configs" / f"{path.parts[-2]}.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key, value in options.items():
        _check_key(key)
        _set(config, key.split("."), yaml.safe_load(value) if value else True)
    keys = ("image_encoder", "text_encoder", "decoder", "losses", "embed_dim", "memory")
    model = {key: config["model"][key] for key in keys if key in config["model"]}
    fetched = any(re.search('"(hf|llm)/', json.dumps(part)) and "config" not in part for part in model.values())
    if not fetched and not is_foreign(config["model"].get("pretrained") or ""):  # its parts are the source's
        _build(json.dumps(model))


@cache
def _build(model: str) -> None:
    """Build a model without memory; many commands have the same one."""
    with torch.device("meta"), skip_pretrained():
        build_model({**json.loads(model), "vocab_size": 300, "pad_id": 0})


def _typed(words: list[str]) -> dict[str, str]:
    """`--key=value`, `--key value` and `--key` as they would be typed; '' where there is no value."""
    options: dict[str, str] = {}
    key = ""
    for word in words:
        if word.startswith("--"):
            key, _, options[key] = word[2:].partition("=")
        else:
            options[key] = word
    return options


def failure_options() -> set[str]:
    """The options of `velm fit` for failures, beside Lightning's."""
    from velm.training.run import add_failure_options

    names: set[str] = set()

    class Parser:
        def add_argument(self, name: str, **options: Any) -> None:
            names.add(name.removeprefix("--"))

    add_failure_options(Parser())  # type: ignore[arg-type]
    return names


def test_every_option_for_failures_is_in_the_table() -> None:
    assert first_column(section("failures.md", "Options")) == {f"--{name}" for name in failure_options()}


def _check_key(key: str) -> None:
    """The key is one of the task's, the data's, the Trainer's or the command line's, two steps deep."""
    import lightning

    from velm.training.data import VisionLanguageData
    from velm.training.task import VisionLanguageTask

    rooms = {"model": VisionLanguageTask, "data": VisionLanguageData, "trainer": lightning.Trainer}
    room, _, rest = key.partition(".")
    if room not in rooms:
        assert key in (
            "seed_everything",
            "checkpoint_every_n_steps",
            "ckpt_path",
            *failure_options(),
            "plugins",
            "print_config",
            "json",
            "pictures",
            "only",
        )
        return
    name, _, inner = rest.partition(".")
    assert name in inspect.signature(rooms[room]).parameters
    if inner and room != "trainer":
        hint = get_type_hints(rooms[room].__init__)[name]
        assert not is_dataclass(hint) or inner.split(".")[0] in inspect.signature(hint).parameters


def _set(config: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        config = config.setdefault(key, {})
    config[keys[-1]] = value


@pytest.mark.usefixtures("own_encoder")
def test_the_encoder_of_the_manual_keeps_the_contract() -> None:
    from my_encoders import Patches  # type: ignore[import-not-found]

    assert_contract(lambda: Patches(dim=32))


@pytest.mark.parametrize(
    ("page", "title", "kind"),
    [
        ("models.md", "Image encoders", "image_encoders"),
        ("models.md", "Text encoders", "text_encoders"),
        ("models.md", "Decoders", "decoders"),
        ("models.md", "Losses", "losses"),
        ("data.md", "Datasets", "datasets"),
        ("data.md", "Tokenizers", "tokenizers"),
    ],
)
def test_every_built_in_part_is_described_by_options_it_has(page: str, title: str, kind: str) -> None:
    parts = registry.KINDS[kind]
    described = set()
    for heading, text in re.findall(r"^### (`.*?)\n(.*?)(?=^### |\Z)", section(page, title), re.DOTALL | re.MULTILINE):
        for name in re.findall(r"`([^`]+)`", heading):
            described.add(name)
            options = registry.parameters(parts.get(name.replace("/*", "/any")))
            assert first_column(text) <= set(options), name
    assert described == {entry.name for entry in parts.entries() if entry.distribution == "velm"}


def test_every_key_of_a_run_is_described() -> None:
    from velm.training.config import Augmentation, OptimizerConfig, ValidationConfig, WatchConfig
    from velm.training.data import VisionLanguageData
    from velm.training.task import VisionLanguageTask

    handed = {"plugins", "vocab_size", "pad_id"}
    tables: Mapping[tuple[str, str], type] = {
        ("training.md", "`model`"): VisionLanguageTask,
        ("training.md", "`data`"): VisionLanguageData,
        ("training.md", "`model.optimizer`"): OptimizerConfig,
        ("training.md", "`model.validation`"): ValidationConfig,
        ("training.md", "`model.watch`"): WatchConfig,
        ("data.md", "`data.augment`"): Augmentation,
    }
    for (page, title), cls in tables.items():
        assert first_column(section(page, title)) == set(inspect.signature(cls).parameters) - handed, title


def test_every_option_of_writing_is_described() -> None:
    from velm.generation import GenerationConfig

    assert first_column(section("using.md", "Generation options")) == set(
        inspect.signature(GenerationConfig).parameters
    )


def test_every_option_of_packing_is_described() -> None:
    from velm.commands import pack

    options = {name for action in pack._parser()._actions for name in action.option_strings}
    assert first_column(section("data.md", "Packing")) == options - {"-h", "--help"}


def test_every_option_of_a_sweep_is_described() -> None:
    from velm.commands import sweep
    from velm.sweep.study import KEYS, PRUNERS, SAMPLERS

    text = (DOCS / "sweep.md").read_text(encoding="utf-8")
    options = {name for action in sweep._parser()._actions for name in action.option_strings}
    assert options - {"-h", "--help"} | {"--config"} == {name for name in first_column(text) if name.startswith("--")}
    assert set(KEYS) <= first_column(text)
    for name, known in [*SAMPLERS.items(), *PRUNERS.items()]:
        assert all(re.search(rf"\b{word}\b", text) for word in (name, *known)), name


def test_every_violation_is_described() -> None:
    text = section("plugins.md", "Violations")
    assert first_column(text) == set(LAWS)
    for name, law in LAWS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.split(" | ")[1].replace("`", "") == law


def test_every_check_of_the_doctor_is_described() -> None:
    text = section("doctor.md", "Checks")
    assert first_column(text) == set(CHECKS)
    for name, what in CHECKS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert row.split(" | ")[1] == what


def test_every_check_of_the_selfcheck_is_described() -> None:
    from velm.doctor.laws import CHECKS as LAWS_OF_TRAINING

    text = section("selfcheck.md", "Checks")
    assert first_column(text) == set(LAWS_OF_TRAINING)
    for name, what in LAWS_OF_TRAINING.items():
        assert f"| `{name}` | {what} |" in text


def test_every_figure_is_described() -> None:
    eye = torch.eye(2)
    names = {*metrics.retrieval_metrics(eye, eye, [0, 1]), *metrics.caption_metrics(["a dog"], [["a dog"]])}
    assert first_column(section("using.md", "`metrics.json`")) == names | {"left_out"}


def test_every_option_for_more_figures_is_described() -> None:
    from argparse import ArgumentParser

    from velm.commands.options import add_extras
    from velm.data.text.hard_negatives import KINDS

    parser = ArgumentParser()
    add_extras(parser)
    options = {name for action in parser._actions for name in action.option_strings} - {"-h", "--help"}
    assert options <= set(re.findall(r"(--\w+)", section("using.md", "Optional metrics")))
    assert first_column(section("using.md", "Compositional")) == set(KINDS)


def test_every_page_is_in_the_navigation() -> None:
    pages = set(re.findall(r"(\w+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), re.MULTILINE))
    assert pages == {page.name for page in DOCS.glob("*.md")}


@pytest.mark.slow
def test_the_site_builds_strictly(tmp_path: Path) -> None:
    pytest.importorskip("mkdocstrings", reason="pip install 'velm[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), strict=True, site_dir=str(tmp_path)))
