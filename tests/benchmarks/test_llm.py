"""The benchmark of language models behind an image proves equality, on sizes that take no time."""

from __future__ import annotations

import pytest

from benchmarks.harness.workload import Settings
from benchmarks.peers import llava
from benchmarks.workloads import llm

EXACT = Settings(precision="32", threads=1)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3}
    monkeypatch.setattr(llm, "SMOLLM", {**llm.SMOLLM, **sizes, "num_key_value_heads": 1})
    monkeypatch.setattr(llm, "TOKENS", 5)
    monkeypatch.setattr(llm, "STEP_VOCABULARY", 50_000)
    tower = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    monkeypatch.setattr(llava, "VISION", {**llava.VISION, **tower})


@pytest.mark.parametrize("beams", [1, 3])
def test_both_write_the_same_tokens(beams: int) -> None:
    lines = llm.prove_search(EXACT, beams)
    assert lines[-1].note.startswith("10 tokens")


@pytest.mark.parametrize(("trainable", "captions"), [("all", 1), ("projector", 1), ("projector", 5)])
def test_both_train_the_same_weights(trainable: str, captions: int) -> None:
    lines = llm.prove_step(EXACT, trainable, captions)
    assert ("of 4 gradients" in lines[-1].what) == (trainable == "projector")


@pytest.mark.parametrize("system", ["velm", "transformers"])
def test_a_step_and_a_search_run(system: str) -> None:
    assert llm.step(system, "projector", 1, False, Settings(threads=1)).step() == 8
    assert llm.step(system, "projector", 5, True, Settings(threads=1)).step() == 10
    assert llm.search(system, 1, Settings(threads=1)).step() == 40
