"""The benchmark of decoding, on sizes that take no time."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

SMALL = {"VOCABULARY": 40, "TOKENS": 5, "BOS": 38, "EOS": 39, "DIM": 16, "HEADS": 2, "IMAGE_DEPTH": 1, "SIZE": 32}


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "generate.py"
    spec = importlib.util.spec_from_file_location("generate_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name, value in {**SMALL, "PATCH": 8}.items():
        monkeypatch.setattr(module, name, value)
    return module


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)


@pytest.mark.parametrize(("beams", "dtype"), [(1, torch.float32), (3, torch.float32), (1, torch.bfloat16)])
def test_all_write_as_many_tokens(benchmark, images, beams, dtype) -> None:
    runs = benchmark.pair("transformers", beams, dtype)
    assert [run(images)[..., -5:].numel() for run in runs.values()] == [10, 10]
    pytest.importorskip("open_clip")
    theirs, ours = benchmark.pair("open_clip", beams, dtype).values()
    assert theirs(images).shape == (2 * beams, 6)  # with bos, all beams
    assert ours(images).shape == (2, 1, 5)


def test_the_loop_is_greedy_over_the_whole_sentence(benchmark, images) -> None:
    pytest.importorskip("open_clip")
    model = benchmark.coca(1, 1)
    words = benchmark.open_clip_loop(model, 1)(images)
    with torch.no_grad():
        logits = model(images.float() / 255 - 0.5, words[:, :-1], output_labels=False)["logits"]
    assert torch.equal(logits.argmax(-1), words[:, 1:])


def test_pairs_take_turns_and_the_first_turn_is_one_picture(benchmark, images) -> None:
    seen = []
    runs = {name: lambda images, name=name: seen.append((name, len(images))) for name in ("theirs", "ours")}
    rows = benchmark.speeds(runs, images, repeats=2)
    assert seen == [("theirs", 1), ("ours", 1), *[("theirs", 2), ("ours", 2)] * 2]
    assert rows["theirs"]["ratio"] == 1.0
    assert "ours" in benchmark.printed({"greedy": rows})


def test_json_and_profile(benchmark, capsys) -> None:
    threads = torch.get_num_threads()
    options = ["--pictures", "2", "--repeats", "1", "--beams", "1", "--peers", "transformers"]
    benchmark.main([*options, "--json"])
    rows = json.loads(capsys.readouterr().out)["transformers, greedy"]
    benchmark.main([*options, "--profile"])
    torch.set_num_threads(threads)
    assert set(rows) == {"transformers", "VELM, 6 blocks"}
    assert "aten::addmm" in capsys.readouterr().out


def test_without_open_clip_it_says_what_to_install(benchmark, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "open_clip.coca_model", None)
    with pytest.raises(SystemExit, match="is missing: pip install --no-deps open_clip_torch ftfy wcwidth"):
        benchmark.coca(1, 1)
