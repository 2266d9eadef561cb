"""Templates and class names: every layout, every message, and the class weights of open_clip."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from foreign import save_open_clip

from velm.errors import DataError, MissingPackageError
from velm.evaluation.prompts import ClassNames, Templates, read_class_names, read_templates
from velm.evaluation.zero_shot import class_embeds
from velm.pipeline import load

BENCHMARK = {"cifar10": ["a photo of a {c}.", "a {c}."], "mnist": ['a photo of the number: "{c}".']}


def write(path: Path, content: object) -> str:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def test_templates_of_every_layout(tmp_path):
    expected = ("a photo of a {}.", "a {}.")
    lines = write(tmp_path / "t.txt", "\ufeffa photo of a {}.\n\n  a {c}. \n")
    plain = write(tmp_path / "t.json", list(expected))
    keyed = write(tmp_path / "en.json", BENCHMARK) + "#cifar10"
    for source in (lines, plain, keyed):
        found = read_templates(source)
        assert (found.texts, found.source) == (expected, source)
    assert len({read_templates(source).digest for source in (lines, plain, keyed)}) == 1
    assert read_templates(lines).digest != Templates(("a {}.",)).digest
    odd = write(tmp_path / "a#b.txt", "a {}\n")
    assert read_templates(odd).texts == ("a {}",)


def test_prompts_go_class_by_class():
    assert Templates.of(["a {c}", "{}!"]).prompts(["x", "y"]) == ["a x", "x!", "a y", "y!"]


def test_sets_of_open_clip():
    metadata = pytest.importorskip("open_clip.zero_shot_metadata")
    for source, functions in (
        ("open_clip:imagenet", metadata.OPENAI_IMAGENET_TEMPLATES),
        ("open_clip:simple", metadata.SIMPLE_IMAGENET_TEMPLATES),
    ):
        assert read_templates(source).prompts(["tench"]) == [function("tench") for function in functions]
    assert list(read_class_names("open_clip:imagenet").names) == list(metadata.IMAGENET_CLASSNAMES)


def test_class_weights_are_those_of_open_clip(write_checkpoint):
    """A stand-in in place of their model, so that their code sees the same text embeddings."""
    open_clip = pytest.importorskip("open_clip")
    pipeline = load(write_checkpoint())
    names, functions = ["red circle", "blue square", "star"], open_clip.SIMPLE_IMAGENET_TEMPLATES

    class Model:
        def encode_text(self, tokens: torch.Tensor, normalize: bool) -> torch.Tensor:
            text = pipeline.model.encode_text(tokens, tokens != pipeline.tokenizer.pad_id)
            return pipeline.model.embed_text(text)

    def tokenizer(texts: list[str]) -> torch.Tensor:
        return pipeline.tokenize(texts)[0]

    theirs = open_clip.build_zero_shot_classifier(Model(), tokenizer, names, functions, num_classes_per_batch=2)
    ours = class_embeds(pipeline, names, read_templates("open_clip:simple"))
    torch.testing.assert_close(ours, theirs.T, rtol=0, atol=1e-6)


def test_class_weights_of_their_model_in_our_pipeline(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    folder, model = save_open_clip(tmp_path / "model")
    names = read_class_names("open_clip:imagenet").names[:20]
    functions = open_clip.OPENAI_IMAGENET_TEMPLATES[:7]
    tokenizer = open_clip.tokenizer.SimpleTokenizer(context_length=model.context_length)
    theirs = open_clip.build_zero_shot_classifier(model, tokenizer, names, functions)
    templates = Templates(read_templates("open_clip:imagenet").texts[:7])
    torch.testing.assert_close(class_embeds(load(f"open_clip/{folder}"), names, templates), theirs.T, rtol=0, atol=1e-6)


def test_class_names_of_every_layout(tmp_path):
    folders, classes = ["n2", "n1"], ["n2", "n1"]  # as a csv of labels may order them
    expected = ["two", "one"]
    for source in (
        write(tmp_path / "n.txt", "one\ntwo\n"),
        write(tmp_path / "n.json", ["one", "two"]),
        write(tmp_path / "map.json", {"n1": "one", "n2": "two", "n3": "three"}),
        write(tmp_path / "en.json", {"set": ["one", "two"]}) + "#set",
    ):
        assert read_class_names(source).words(classes, folders) == expected
    assert ClassNames(["a", "b"]).words(["x", "c"]) == ["a", "b"]  # no folders: the order of the data
    assert ClassNames({"tench": "fish"}).words(["tench"], ["n1"]) == ["fish"]  # by the name of the data


@pytest.mark.parametrize(
    ("name", "content", "key", "words"),
    [
        ("t.txt", "a {}\na photo\n", "", r"t\.txt: templates are prompts with one {} for the class.*got 'a photo'"),
        ("t.txt", "{} and {}\n", "", r"got '{} and {}'"),
        ("t.txt", "\n", "", r"t\.txt: templates are texts, one a line or a JSON list; got \[\]"),
        ("t.json", "[", "", r"'.*t\.json' is not JSON: "),
        ("t.json", [1], "", r"templates are texts, one a line or a JSON list; got 1\."),
        ("t.json", "3", "", r"got 3\."),
        ("t.json", BENCHMARK, "", r"a list for each of 2 datasets; choose one: --templates '.*t\.json#cifar10'"),
        ("t.json", {}, "", r"the file is empty"),
        ("t.json", BENCHMARK, "#cifar11", r"no key 'cifar11'\. Did you mean 'cifar10'\? It has: cifar10, mnist\."),
        ("t.json", ["a {}"], "#cifar10", r"It has: no keys, it is a list"),
        ("t.txt", "a {}\n", "#cifar10", r"is no \.json file, so it has no key 'cifar10'"),
    ],
)
def test_bad_files_of_templates(tmp_path, name, content, key, words):
    with pytest.raises(DataError, match=words):
        read_templates(write(tmp_path / name, content) + key)


def test_a_file_that_cannot_be_read(tmp_path):
    for read, option in ((read_templates, "--templates"), (read_class_names, "--class_names")):
        with pytest.raises(DataError, match=f"{option} nowhere.txt: cannot read the file 'nowhere.txt': No such file"):
            read("nowhere.txt")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="it is not text in UTF-8"):
        read_templates(str(tmp_path / "binary.txt"))


def test_bad_files_of_class_names(tmp_path):
    with pytest.raises(DataError, match="a list for each of 1 datasets; choose one: --class_names"):
        read_class_names(write(tmp_path / "n.json", {"set": ["a"]}))
    with pytest.raises(DataError, match=r"class names are texts, one a line or a JSON list; got 3\."):
        read_class_names(write(tmp_path / "n.json", {"a": 3}))


def test_names_that_do_not_fit_the_classes():
    with pytest.raises(DataError, match=r"typed has 1 class names, and the dataset has 2 classes \(a, b, \.\.\.\)"):
        ClassNames(["x"]).words(["a", "b"])
    with pytest.raises(DataError, match=r"typed has no name for the class 'tensh'\. Did you mean 'tench'\?"):
        ClassNames({"tench": "x"}).words(["tensh"])


def test_unknown_sets_and_a_missing_package(monkeypatch):
    with pytest.raises(DataError, match=r"no set 'imagnet'; use open_clip:imagenet or open_clip:simple, or a file"):
        read_templates("open_clip:imagnet")
    with pytest.raises(DataError, match=r"--class_names open_clip:simple.*use open_clip:imagenet, or a file"):
        read_class_names("open_clip:simple")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(MissingPackageError, match=r"--templates open_clip:simple.*pip install 'velm\[open_clip\]'"):
        read_templates("open_clip:simple")
