"""`velm caption`: lines in order, folders, JSON, and a bad image that does not take the others down."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from velm.cli import main as velm
from velm.commands.caption import find_images
from velm.pipeline import load


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "images" / "more").mkdir(parents=True)
    for name in ("b.png", "a.jpg", "more/c.JPG"):
        pixels = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / name, format="PNG" if "png" in name else "JPEG")
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def tiny_checkpoint(write_checkpoint):
    return str(write_checkpoint())


def test_a_line_a_image_path_tab_caption(write_checkpoint, folder, capsys):
    checkpoint = write_checkpoint()
    images = [str(folder / "b.png"), str(folder / "a.jpg")]
    assert velm(["caption", str(checkpoint), *images, "--num_beams", "3", "--max_length", "4"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    expected = load(checkpoint).caption(images, num_beams=3, max_length=4)
    assert lines == [[path, caption] for path, caption in zip(images, expected, strict=True)]


def test_options_may_stand_anywhere_and_batches_change_nothing(write_checkpoint, folder, capsys):
    checkpoint, images = str(write_checkpoint()), [str(folder / "b.png"), str(folder / "a.jpg")]
    assert velm(["caption", checkpoint, "--max_length", "4", *images]) == 0
    first = capsys.readouterr().out
    assert velm(["caption", "--batch_size", "1", checkpoint, images[0], "--max_length", "4", images[1]]) == 0
    assert capsys.readouterr().out == first


def test_a_folder_is_all_the_images_in_it(folder):
    found = [str(folder / name) for name in ("a.jpg", "b.png", "more/c.JPG")]
    assert find_images([str(folder)]) == found
    assert find_images([str(folder / "b.png"), str(folder / "more")]) == [found[1], found[2]]


def test_json_with_scores(write_checkpoint, folder, capsys):
    arguments = ["--json", "--num_beams", "3", "--num_return", "2", "--max_length", "4"]
    assert velm(["caption", str(write_checkpoint()), str(folder), *arguments]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["image"] for row in rows] == find_images([str(folder)])
    for row in rows:
        assert len(row["captions"]) == 2
        assert row["captions"][0]["score"] >= row["captions"][1]["score"]


def test_samples_of_a_seed_can_be_had_again(write_checkpoint, folder, capsys):
    arguments = ["caption", str(write_checkpoint()), str(folder), "--temperature", "2.0", "--num_return", "3"]
    outputs = []
    for seed in ("1", "1", "2"):
        assert velm([*arguments, "--seed", seed]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] != outputs[2]
    assert len(outputs[0].splitlines()) == 9


def test_an_unreadable_image_is_named_and_the_others_are_captioned(write_checkpoint, folder, capsys):
    (folder / "aa.jpg").write_bytes(b"no image")
    assert velm(["caption", str(write_checkpoint()), str(folder)]) == 1
    captured = capsys.readouterr()
    assert [line.split("\t")[0].rsplit("/")[-1] for line in captured.out.splitlines()] == ["a.jpg", "b.png", "c.JPG"]
    assert "aa.jpg" in captured.err
    assert len(captured.err.strip().splitlines()) == 1


def test_rules_and_reranking(write_checkpoint, folder, capsys):
    arguments = ["caption", str(write_checkpoint()), str(folder), "--num_beams", "4", "--max_length", "8"]
    rules = ["--must_include", "red", "--must_include", "blue square", "--forbidden", "large", "--prefix", "a star"]
    assert velm([*arguments, *rules]) == 0
    for line in capsys.readouterr().out.splitlines():
        caption = line.split("\t")[1]
        assert caption.startswith("a star")
        assert "blue square" in caption
        assert "large" not in caption
    groups = ["--num_beam_groups", "2", "--diversity_penalty", "0.5", "--num_return", "2"]
    assert velm([*arguments, *groups, "--rerank_by_alignment", "2", "--json"]) == 0
    for line in capsys.readouterr().out.splitlines():
        found = json.loads(line)["captions"]
        assert [set(each) for each in found] == [{"caption", "score", "log_prob", "cosine"}] * 2
        assert found[0]["score"] >= found[1]["score"]
    assert velm([*arguments, "--answers", "a red star", "--answers", "blue"]) == 0
    assert {line.split("\t")[1] for line in capsys.readouterr().out.splitlines()} <= {"a red star", "blue"}


def test_text_in_the_memory(write_checkpoint, folder, capsys):
    both = str(write_checkpoint(memory=["image", "text"], losses={"captioning": {}}))
    image = str(folder / "a.jpg")
    assert velm(["caption", both, image, "--text", "a red circle"]) == 0
    assert capsys.readouterr().out.startswith(f"{image}\t")
    assert velm(["caption", both, image, image, "--text", "a red circle"]) == 2
    assert "--text is given 1 times for 2 images" in capsys.readouterr().err
    assert velm(["caption", both, image]) == 2
    assert "attends over image and text" in capsys.readouterr().err


CONTRADICTIONS = [
    (["--prefix", ""], "prefix is ''; it takes text that is not empty"),
    (["--must_include", " "], "must_include[0] is ' '; it takes text that is not empty"),
    (["--must_include", "zebra"], "must_include: 'zebra' has a word that is not in the model's vocabulary"),
    (["--prefix", "a zebra"], "prefix: 'a zebra' has a word that is not in the model's vocabulary"),
    (["--answers", "zebra"], "answers: 'zebra' has a word that is not in the model's vocabulary"),
    (
        ["--must_include", "red circle", "--forbidden", "red"],
        "must_include 'red circle' holds 'red', which is",
    ),
    (["--prefix", "a red", "--forbidden", "red"], "prefix 'a red' holds 'red', which is forbidden"),
    (["--answers", "a red star", "--forbidden", "red"], "answers 'a red star' holds 'red', which is forbidden"),
    (["--answers", "a star", "--must_include", "red"], "holds what must be included: 'red'"),
    (["--answers", "a star", "--prefix", "red"], "None of the 1 answers begins with the prefix 'red'"),
    (["--min_length", "9", "--max_length", "8"], "min_length 9 is more than max_length 8"),
    (["--must_include", "a red star", "--max_length", "3"], "needs 4 tokens with the prefix and eos; at most 3"),
    (["--num_beams", "500"], "num_beams 500 is more than the vocabulary has tokens, 1"),
    (["--length_penalty", "nan"], "length_penalty is nan; it takes a finite number"),
]


@pytest.mark.parametrize("command", ["caption", "evaluate", "explain"])
@pytest.mark.parametrize(("options", "words"), CONTRADICTIONS, ids=str)
def test_what_no_sentence_can_be_is_told_by_every_command_that_writes(
    tiny_checkpoint, folder, tmp_path, capsys, command, options, words
):
    out = ["--output", str(tmp_path / "out")]
    image = str(folder / "a.jpg")
    arguments = {"caption": [image], "evaluate": out, "explain": [image, *out]}[command]
    assert velm([command, tiny_checkpoint, *arguments, *options]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"velm {command}: ")
    assert words in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


def test_texts_alone_need_no_image(write_checkpoint, folder, tmp_path, capsys):
    reader = write_checkpoint(image_encoder=None, memory=["text"], losses={"captioning": {}})
    texts = ["a red circle", "a small blue square", "a green ring"]
    expected = load(reader).caption(texts=texts, max_length=4)
    arguments = ["caption", str(reader), "--max_length", "4", "--batch_size", "2"]
    assert velm([*arguments, *(word for text in texts for word in ("--text", text))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{text}\t{caption}" for text, caption in zip(texts, expected, strict=True)]
    (tmp_path / "texts.txt").write_text("a red circle\n\n  a small blue square \na green ring\n")
    assert velm([*arguments, "--text", f"@{tmp_path / 'texts.txt'}"]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert velm([*arguments, "--text", texts[0], "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert set(row) == {"text", "captions"}
    assert (row["text"], row["captions"][0]["caption"]) == (texts[0], expected[0])
    assert velm([*arguments, str(folder / "a.jpg")]) == 2
    assert "attends over text: give texts=[...]; got images=[...]" in capsys.readouterr().err
    assert velm(arguments) == 2
    assert "Nothing to caption: give images or folders, --text" in capsys.readouterr().err


def test_json_names_the_text_beside_the_image(write_checkpoint, folder, capsys):
    both = str(write_checkpoint(memory=["image", "text"], losses={"captioning": {}}))
    images = find_images([str(folder)])
    arguments = [word for text in ("a red circle", "a ring", "a star") for word in ("--text", text)]
    (folder / "b.png").write_bytes(b"no image")
    assert velm(["caption", both, *images, *arguments, "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["image"], row["text"]) for row in rows] == [(images[0], "a red circle"), (images[2], "a star")]


def test_closed_answers_from_a_file(write_checkpoint, folder, tmp_path, capsys):
    (tmp_path / "answers.txt").write_text("a red star\n\nblue\n")
    arguments = ["caption", str(write_checkpoint()), str(folder), "--answers"]
    assert velm([*arguments, f"@{tmp_path / 'answers.txt'}", "--answers", "a green ring"]) == 0
    found = {line.split("\t")[1] for line in capsys.readouterr().out.splitlines()}
    assert found <= {"a red star", "blue", "a green ring"}
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "latin.txt").write_bytes(b"gr\xfcn")
    for name, cause in (
        ("nowhere.txt", "cannot read the file '{}': No such file"),
        ("latin.txt", "cannot read the file '{}': it is not text in UTF-8"),
        ("empty.txt", "the file '{}' has no line with text"),
    ):
        assert velm([*arguments, f"@{tmp_path / name}"]) == 2
        assert f"--answers @{tmp_path / name}: {cause.format(tmp_path / name)}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.ckpt", "{image}"], "No checkpoint at nowhere.ckpt"),
        (["{checkpoint}", "nowhere.jpg"], "There is no image or folder 'nowhere.jpg'"),
        (["{checkpoint}", "{empty}"], "empty' has no images at all."),
        (["{checkpoint}", "{image}", "--num_return", "3"], "num_return 3 is more than num_beams 1"),
        (["{checkpoint}", "{image}", "--must_include", "zebra"], "'zebra' has a word that is not in the model's"),
        (["{checkpoint}", "{image}", "--must_include", "red", "--forbidden", "red"], "which is forbidden"),
        (["{checkpoint}", "{image}", "--device", "nonsense"], "Cannot compute on the device 'nonsense'"),
        (
            ["{checkpoint}", "{image}", "--plugins", "nowhere_at_all"],
            "The plugin 'nowhere_at_all' cannot be imported",
        ),
    ],
)
def test_bad_input_is_told_without_a_traceback(write_checkpoint, folder, tmp_path, capsys, arguments, words):
    (tmp_path / "empty").mkdir()
    known = {"checkpoint": write_checkpoint(), "image": folder / "a.jpg", "empty": tmp_path / "empty"}
    assert velm(["caption", *(argument.format(**known) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert words in captured.err
    assert captured.err.startswith("velm caption: ")
    assert captured.out == ""


def test_no_decoder(write_checkpoint, folder, capsys):
    aligner = write_checkpoint(decoder=None, losses={"contrastive": {}})
    assert velm(["caption", str(aligner), str(folder)]) == 2
    assert "has no decoder, so it cannot write captions" in capsys.readouterr().err


def test_misspelt_options_are_refused(write_checkpoint, folder, capsys):
    with pytest.raises(SystemExit) as stop:
        velm(["caption", str(write_checkpoint()), str(folder), "--num_beam", "3"])
    assert stop.value.code == 2
    assert "--num_beam" in capsys.readouterr().err
