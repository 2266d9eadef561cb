"""`velm average`: the files it writes; a curve's ends have the metrics of its two checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import velm
from velm.checkpoint import merge, read_checkpoint
from velm.cli import main
from velm.training.pretrained import read_source

DATA = {"dataset": {"name": "shapes", "val_size": 12, "test_size": 12, "heldout_size": 0, "image_size": 32}}


@pytest.fixture
def pair(write_checkpoint: Callable[..., Path], tmp_path: Path) -> tuple[str, str]:
    """Two checkpoints with other weights."""
    paths = [write_checkpoint(name, data=DATA) for name in ("a.ckpt", "b.ckpt")]
    content = torch.load(paths[1], weights_only=True)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in content["state_dict"].items():
        content["state_dict"][name] = tensor + torch.randn(tensor.shape, generator=generator)
    torch.save(content, paths[1])
    return str(paths[0]), str(paths[1])


def evaluated(checkpoint: str, folder: Path, *options: str) -> dict[str, float]:
    assert main(["evaluate", checkpoint, "--output", str(folder), "--max_length", "3", *options]) == 0
    return json.loads((folder / "metrics.json").read_text())


def test_weights(pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "mean.ckpt"
    assert main(["average", *pair, "--weights", "0.25", "0.75", "--output", str(output)]) == 0
    assert f"{output} is the average of 0.25 {pair[0]}, 0.75 {pair[1]}" in capsys.readouterr().out
    one, two, mean = (read_checkpoint(path).weights["image_projection.weight"] for path in (*pair, output))
    torch.testing.assert_close(mean, 0.25 * one + 0.75 * two)
    assert main(["average", *pair, "--output", str(output)]) == 0
    assert [each["weight"] for each in read_checkpoint(output).origin["average"]] == [0.5, 0.5]
    assert velm.load(output).caption is not None


def test_the_ends_of_a_curve_are_the_checkpoints(
    pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, other = tmp_path / "wise.ckpt", "--also.dataset.colours=[red, cyan]"
    assert main(["average", *pair, "--wise", "0:1:0.5", "--output", str(output), other, "--also.split=test"]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "wise.json").read_text())
    assert content["checkpoints"] == list(pair)
    assert [point["alpha"] for point in content["curve"]] == [0, 0.5, 1]
    values = [point["value"] for point in content["curve"]]
    best = max(content["curve"], key=lambda point: point["value"])
    assert content["best"] == best["alpha"] or values.count(best["value"]) > 1
    assert f"The best alpha is {content['best']:g}" in printed
    assert read_checkpoint(output).origin["average"][1]["weight"] == content["best"]
    for checkpoint, point in zip(pair, content["curve"][::2], strict=True):
        data = evaluated(checkpoint, tmp_path / "out", "--split=val")
        also = evaluated(checkpoint, tmp_path / "out", "--split=test", "--data.dataset.colours=[red, cyan]")
        for metrics, measured in ((point["metrics"]["data"], data), (point["metrics"]["also"], also)):
            assert metrics == {name: measured[name] for name in metrics}
            assert metrics.keys() == {name for name in measured if not name.startswith(("caption/", "signature/"))}
        mean = sum(each[f"{way}/recall@1"] for each in (data, also) for way in ("image_to_text", "text_to_image")) / 4
        assert point["value"] == pytest.approx(mean)
    plot = ElementTree.parse(tmp_path / "wise.svg").getroot()
    space = "{http://www.w3.org/2000/svg}"
    assert len(plot.findall(f"{space}g/{space}polyline")) == 2
    texts = {text.text for text in plot.iter(f"{space}text")}
    assert {"recall@1", "val of data", "test of also", f"alpha 0: {tmp_path.name}/a"} <= texts


def test_a_metric_of_captions_and_a_rank(pair: tuple[str, str], tmp_path: Path) -> None:
    output = tmp_path / "wise.ckpt"
    options = ["--wise", "0:1:1", "--output", str(output), "--metric"]
    assert main(["average", *pair, *options, "caption/bleu1"]) == 0
    content = json.loads((tmp_path / "wise.json").read_text())
    assert content["metric"] == "caption/bleu1"
    assert "caption/bleu1" in content["curve"][0]["metrics"]["data"]
    assert main(["average", *pair, *options, "median_rank"]) == 0
    content = json.loads((tmp_path / "wise.json").read_text())
    ranks = [point["value"] for point in content["curve"]]
    assert content["best"] == content["curve"][ranks.index(min(ranks))]["alpha"]


def test_a_soup(pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "soup.ckpt"
    assert main(["average", *pair, "--greedy", "--split", "test", "--output", str(output)]) == 0
    content = json.loads((tmp_path / "soup.json").read_text())
    tried = content["tried"]
    assert tried[0]["used"]
    assert tried[0]["own"] == tried[0]["soup"] >= tried[1]["own"]
    used = [each["checkpoint"] for each in tried if each["used"]]
    assert [each["checkpoint"] for each in read_checkpoint(output).origin["average"]] == used
    assert f"{len(used)} of 2 are in the soup" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["a.ckpt"], "An average is of two checkpoints or more; got a.ckpt only."),
        (["a.ckpt", "b.ckpt", "c.ckpt", "--wise", "0:1:0.1"], "--wise is a curve between two checkpoints"),
        (["a.ckpt", "b.ckpt", "--wise", "0:1"], "--wise '0:1': give start:end:step"),
        (["a.ckpt", "new.ckpt"], "--output new.ckpt is one of the checkpoints: name another file."),
        (["a.ckpt", "b.ckpt", "--data.dataset.path=x"], "so they need --wise 0:1:0.1 or --greedy"),
        (["a.ckpt", "b.ckpt", "--weights", "0.5", "0.6"], "--weights 0.5 0.6 have the sum 1.1"),
        (["a.ckpt", "c.ckpt"], "No checkpoint at c.ckpt"),
        (["a.ckpt", "b.ckpt", "--greedy", "--metric", "recal@1"], "there is no 'recal@1' here. Did you mean 'recall"),
        (["a.ckpt", "b.ckpt", "--greedy", "--also.dataset.seed=x"], "seed"),
        (["a.ckpt", "b.ckpt", "--greedy", "--also.dataset.seed"], "--also.dataset.seed needs a value"),
        (["a.ckpt", "b.ckpt", "--greedy", "--split=dev"], "The split 'dev' of shapes does not exist"),
    ],
)
def test_what_cannot_be_is_said(
    pair: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["average", "--output", "new.ckpt", *options]) == 2
    assert says in capsys.readouterr().err
    assert not Path("new.ckpt").exists()


def test_notes_are_printed(pair: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = torch.load(pair[1], weights_only=True)
    del content["state_dict"]["losses.contrastive.log_scale"]
    torch.save(content, pair[1])
    assert main(["average", *pair, "--output", str(tmp_path / "mean.ckpt")]) == 0
    assert "velm average: Weights of losses that not all checkpoints have are left out" in capsys.readouterr().err


def test_a_run_starts_from_an_average(pair: tuple[str, str], tmp_path: Path) -> None:
    output = str(tmp_path / "mean.ckpt")
    assert main(["average", *pair, "--output", output]) == 0
    source = read_source(output)
    assert source.weights.keys() == read_source(pair[0]).weights.keys()


def test_adapters_are_merged_before(
    pair: tuple[str, str], write_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    """The mean of the factors of two low-rank updates is not that of the updates."""
    pytest.importorskip("peft")
    path = write_checkpoint("lora.ckpt", adapt={"image_encoder": {"name": "lora", "r": 2}})
    content = torch.load(path, weights_only=True)
    weights = content["state_dict"]
    weights |= {name: torch.ones_like(tensor) for name, tensor in weights.items() if "lora_" in name}
    torch.save(content, path)
    image = [torch.rand(32, 32, 3, generator=torch.Generator().manual_seed(0)).mul(255).byte().numpy()]
    output = tmp_path / "mean.ckpt"
    arguments = ["average", pair[0], str(path), "--output", str(output)]
    for weight in (0, 1):
        assert main([*arguments, "--weights", str(1 - weight), str(weight)]) == 0
        expected = velm.load([pair[0], path][weight]).embed_images(image)
        torch.testing.assert_close(velm.load(output).embed_images(image), expected, rtol=1e-5, atol=1e-5)
    name = "image_encoder.blocks.0.attention.query.weight"
    one, two = (merge(read_checkpoint(each)).weights[name] for each in (pair[0], path))
    assert not torch.equal(one, two)
    assert main(arguments) == 0
    torch.testing.assert_close(read_checkpoint(output).weights[name], (one + two) / 2)
