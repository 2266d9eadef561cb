"""The report without a browser: one file, nothing from elsewhere, everything escaped, small, and all of it there."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import subprocess
import sys
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from shutil import copytree, ignore_patterns

import numpy as np
import pytest
import torch
from evaluations import make_evaluation, noise_records
from PIL import Image

from velm.data.base import Record
from velm.report.report import evaluated_model, render, write_report
from velm.report.thumbnails import SIDE, Thumbnails

NO_INTERVAL = {"caption/distinct", "caption/distinct1", "caption/distinct2"}  # resampling duplicates captions

ROOT = Path(__file__).parents[2]
EVIL = "<script>alert(1)</script> & \"quotes\" 'n' {{ data }} </script><!-- ü \u2028 \ud800"


class Page(HTMLParser):
    """Tags with their attributes, and the text inside each kind of element."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in ("meta", "input", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, text):
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(text)

    @property
    def data(self):
        return json.loads(self.texts["script"][0])

    @property
    def ids(self):
        return {attributes["id"] for tag, attributes in self.tags if tag == "section"}


def page_of(records, *found, curves=()):
    models = [evaluated_model(f"runs/{name}/best.ckpt", each) for name, each in zip("ab", found, strict=False)]
    return Page(render(models, Thumbnails(records), split="test", curves=curves))


def decoded(uri):
    head, content = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def test_everything_there_is_is_shown():
    records = noise_records(6)
    page = page_of(records, make_evaluation(records), curves=["<figure></figure>"])
    assert page.ids == {"metrics", "retrieval", "captions", "confusions", "words", "training"}
    links = {attributes["href"] for tag, attributes in page.tags if tag == "a"}
    assert links == {f"#{name}" for name in page.ids}
    assert len(page.data["captions"]) == 6
    assert [image["name"] for image in page.data["images"]] == [f"id{i}" for i in range(6)]  # each once
    assert {decoded(image["uri"]).size for image in page.data["images"]} == {(SIDE, SIDE)}
    maps = page.data["captions"][0]["captions"][0]["maps"]
    assert maps["words"] == ["a", "red", "circle"]
    levels = np.frombuffer(base64.b64decode(maps["bytes"]), np.uint8).reshape(3, maps["height"], maps["width"])
    assert levels.max((1, 2)).tolist() == [255] * 3
    retrieval = page.data["retrieval"]
    assert len(retrieval["image_to_text"]) == 6
    assert len(retrieval["text_to_image"]) == 12
    for query in retrieval["text_to_image"]:
        assert (query["ranks"][0] == 1) <= query["candidates"][0][1]


def test_nothing_comes_from_elsewhere():
    records = noise_records(3)
    text = render([evaluated_model("a.ckpt", make_evaluation(records))], Thumbnails(records), split="test")
    assert not re.findall(r"(?:https?:)?//[a-z]", re.sub(r'(base64,|"bytes":")[^"]*', "", text))
    for tag, attributes in Page(text).tags:
        assert tag not in ("link", "iframe", "object", "embed", "base", "form", "img")
        assert not {"src", "srcset", "onclick"} & set(attributes)
    policy = next(a["content"] for t, a in Page(text).tags if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "http" not in policy


def test_markup_in_data_is_shown_as_text():
    records = [dataclasses.replace(record, image_id=EVIL) for record in noise_records(3, texts=[EVIL, "a dog"])]
    found = make_evaluation(records, caption=EVIL)
    metrics = {**found.metrics, f"compositional/{EVIL}": 0.5, "caption/<i>new</i>": 0.25}
    plain = Page(render([evaluated_model("a.ckpt", found)], Thumbnails(records), split="test"))
    evil = Page(
        render([evaluated_model(EVIL, dataclasses.replace(found, metrics=metrics))], Thumbnails(records), split=EVIL)
    )
    assert [tag for tag, _ in plain.tags].count("script") == [tag for tag, _ in evil.tags].count("script") == 2
    assert {tag for tag, _ in evil.tags} - {tag for tag, _ in plain.tags} <= {"b"}
    assert evil.data["captions"][0]["references"] == [EVIL, "a dog"]
    assert evil.data["images"][0]["name"] == EVIL
    assert f"compositional/{EVIL}" in "".join(evil.texts["code"])
    assert "alert(1)" in "".join(evil.texts["title"])


def test_any_name_can_be_written(tmp_path):
    records = [dataclasses.replace(record, image_id=EVIL) for record in noise_records(3, texts=[EVIL])]
    write_report(
        tmp_path, [evaluated_model(f"{EVIL}/a.ckpt", make_evaluation(records, caption=EVIL))], records, split="test"
    )
    assert Page((tmp_path / "report.html").read_text(encoding="utf-8")).ids


def test_an_image_takes_at_most_20_kb(tmp_path):
    """Noise, which JPEG is worst at, with long captions and fine maps."""
    records = noise_records(150, side=SIDE)
    found = make_evaluation(records, caption=" ".join(["word"] * 15), side=24)
    write_report(tmp_path, [evaluated_model("a.ckpt", found)], records, split="test")
    assert (tmp_path / "report.html").stat().st_size < 150 * 20e3
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert len(page.data["images"]) == len(page.data["captions"]) == 150


def test_of_more_images_a_part_is_shown(monkeypatch):
    monkeypatch.setattr("velm.report.panels.CAPTIONS", 4)
    monkeypatch.setattr("velm.report.panels.QUERIES", 2)
    records = noise_records(9)
    page = page_of(records, make_evaluation(records))
    names = [page.data["images"][item["image"]]["name"] for item in page.data["captions"]]
    assert names == ["id0", "id2", "id4", "id6"]
    ranks = [query["ranks"][0] for query in page.data["retrieval"]["text_to_image"]]
    assert sum(rank == 1 for rank in ranks) <= 2
    assert sum(rank > 1 for rank in ranks) <= 2


def test_an_unreadable_image_has_a_placeholder(tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    records = noise_records(4)
    for i, image in enumerate([str(tmp_path / "broken.jpg"), str(tmp_path / "gone.jpg"), None]):
        records[i] = Record(f"id{i}", image, ("a dog",))
    thumbnails = page_of(records, make_evaluation(records)).data["images"]
    assert [image["uri"] is None for image in thumbnails] == [True, True, True, False]
    assert [image["name"] for image in thumbnails] == ["id0", "id1", "id2", "id3"]


def test_squashed_images_are_shown_in_its_own_proportions():
    images = [np.full((h, w, 3), 99, np.uint8) for h, w in ((30, 40), (90, 60), (50, 50), (10, 900))]
    records = [Record(str(i), image, ("a dog",)) for i, image in enumerate(images)]
    squashed = Thumbnails(records, "squash")
    numbers = [squashed.number(row) for row in (2, 0, 1, 3)]
    thumbnails = [squashed.images()[number] for number in numbers]
    for image, ratio in zip(thumbnails, (1, 4 / 3, 2 / 3, 3), strict=True):  # no longer than a page is wide
        width, height = decoded(image["uri"]).size
        assert width / height == pytest.approx(ratio, abs=0.02)
        assert image["ratio"] == round(width / height, 3)
        assert width * height == pytest.approx(SIDE**2, rel=0.02)
    assert {image["ratio"] for image in page_of(records, make_evaluation(records)).data["images"]} == {1}


def test_unreadable_images_are_listed_and_escaped():
    records = noise_records(3)
    models = [evaluated_model("a.ckpt", make_evaluation(records))]
    page = Page(render(models, Thumbnails(records), split="test", unreadable=[f"Cannot read {EVIL}"] * 60))
    assert "60 images could not be read and were left out" in page.texts["summary"]
    assert page.texts["li"].count("and 10 more") == 1
    assert "<script>alert(1)</script>" in "".join(page.texts["li"])
    assert [tag for tag, _ in page.tags].count("script") == 2
    assert "summary" not in Page(render(models, Thumbnails(records), split="test")).texts


def test_sections_without_content_are_left_out():
    records = noise_records(4)
    assert page_of(records, make_evaluation(records, writes=False)).ids == {"metrics", "retrieval", "confusions"}
    assert page_of(records, make_evaluation(records, aligned=False)).ids == {"metrics", "captions", "words"}
    silent = make_evaluation(records)
    captions = dataclasses.replace(silent.predictions.captions, maps=())
    silent = dataclasses.replace(silent, predictions=dataclasses.replace(silent.predictions, captions=captions))
    assert page_of(records, silent).data["captions"][0]["captions"][0]["maps"] is None
    empty = make_evaluation(records, caption="")
    assert page_of(records, empty).data["captions"][0]["captions"][0]["maps"] is None


def test_nan_is_no_obstacle():
    records = noise_records(4)
    found = make_evaluation(records)
    retrieval = dataclasses.replace(found.predictions.retrieval, image_embeds=torch.full((4, 8), torch.nan))
    predictions = dataclasses.replace(found.predictions, retrieval=retrieval)
    metrics = {**found.metrics, "caption/cider": float("nan")}
    assert page_of(records, dataclasses.replace(found, predictions=predictions, metrics=metrics)).data


def test_compositional_metrics_have_a_table_of_their_own():
    records = noise_records(4)
    found = make_evaluation(records)
    page = page_of(records, dataclasses.replace(found, metrics=found.metrics | {"compositional/colour": 0.75}))
    assert "compositional" in page.ids
    assert page.texts["code"].count("compositional/colour") == 1


def test_two_checkpoints_side_by_side(tmp_path):
    records = noise_records(40)
    models = [
        evaluated_model("runs/a/best.ckpt", make_evaluation(records)),
        evaluated_model("runs/b/best.ckpt", make_evaluation(records, caption="a blue circle")),
    ]
    write_report(tmp_path, models, records, split="val")
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert page.data["models"] == ["runs/a/best.ckpt", "runs/b/best.ckpt"]
    assert [caption["text"] for caption in page.data["captions"][0]["captions"]] == ["a red circle", "a blue circle"]
    assert len(page.data["retrieval"]["image_to_text"][0]["ranks"]) == 2
    assert "a/best against b/best on val" in page.texts["h1"]
    assert "+1.000" in page.texts["span"]  # exact match: none, then all
    comparison = json.loads((tmp_path / "comparison.json").read_text())
    assert comparison["checkpoint"] == "runs/b/best.ckpt"
    assert comparison["differences"]["caption/exact_match"] == [1.0, 1.0]
    assert comparison["differences"]["image_to_text/recall@1"] == [0.0, 0.0]


def test_two_different_models_share_the_sections_of_both():
    records = noise_records(4)
    page = page_of(records, make_evaluation(records), make_evaluation(records, writes=False))
    assert page.ids == {"metrics", "retrieval", "confusions", "words"}
    assert "–" in page.texts["td"]


def test_intervals_contain_the_metrics(tmp_path):
    records = noise_records(60)
    found = make_evaluation(records)
    write_report(tmp_path, [evaluated_model("a.ckpt", found)], records, split="test")
    intervals = json.loads((tmp_path / "intervals.json").read_text())
    assert intervals.keys() == found.metrics.keys() - NO_INTERVAL
    for name, (low, high) in intervals.items():
        assert low - 1e-9 <= found.metrics[name] <= high + 1e-9, name
    assert not (tmp_path / "comparison.json").exists()


def test_the_same_results_make_the_same_file(tmp_path):
    records = noise_records(5)
    pages = [
        render([evaluated_model("a.ckpt", make_evaluation(records))], Thumbnails(records), split="test")
        for _ in range(2)
    ]
    assert pages[0] == pages[1]


@pytest.mark.slow
def test_an_installed_wheel_has_the_page(tmp_path):
    source = tmp_path / "source"
    copytree(ROOT / "velm", source / "velm", ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (source / name).write_bytes((ROOT / name).read_bytes())
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(tmp_path), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    assert {f"velm/report/page/{path.name}" for path in (ROOT / "velm/report/page").iterdir()} <= inside
