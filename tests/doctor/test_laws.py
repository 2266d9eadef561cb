"""`velm selfcheck` passes for a correct VELM; a mutation fails its check, and no other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny_run
import torch
import yaml
from torch.utils.checkpoint import checkpoint

from velm import cli
from velm.doctor.laws import CHECKS, run_checks
from velm.doctor.laws.compare import failed, farthest, passed
from velm.doctor.laws.small_run import SmallRun
from velm.findings import Finding
from velm.model import VisionLanguageModel
from velm.training.memory import micro_batch as micro
from velm.training.run import parse_fit
from velm.training.task import VisionLanguageTask

pytestmark = pytest.mark.filterwarnings("ignore")

TINY: dict[str, Any] = {
    "seed_everything": 3,
    "model": {
        **tiny_run.TINY["model"],
        "losses": {"contrastive": {}, "captioning": {"label_smoothing": 0.1}},
        "ema": 0.9,
    },
    "data": {
        "dataset": {"name": "shapes", "train_size": 30, "val_size": 4, "test_size": 4},
        "image_size": 32,
        "captions_per_image": 2,
    },
}
REGULARISED = "--model.decoder={name: rnn, dim: 16, gate: true, doubly_stochastic: 1.0}"

FORGETFUL = """
from dataclasses import replace
import velm
from velm.decoders.transformer import TransformerDecoder

@velm.decoders.register("forgetful")
class Forgetful(TransformerDecoder):
    def step(self, token, state):
        logits, new = super().step(token, state)
        return logits, replace(new, length=state.length)
"""

MUTATIONS = {
    "gather without gradient": (
        "processes",
        """
from velm.losses.alignment import ContrastiveLoss
import velm.training.distributed.gather as distributed
ContrastiveLoss.shares = False
distributed._GatherRows.apply = staticmethod(lambda own, ranks: ranks.gather(own.detach()))
""",
    ),
    "gather with the own share's gradient": (
        "processes",
        """
from velm.losses.alignment import ContrastiveLoss
import torch
import velm.training.distributed.gather as distributed
ContrastiveLoss.shares = False
def gather(own, ranks):
    gathered = list(ranks.gather(own.detach()).split(ranks.rows))
    gathered[ranks.rank] = own
    return torch.cat(gathered)
distributed._GatherRows.apply = staticmethod(gather)
""",
    ),
    "texts' gradients are not sent to their ranks": (
        "processes",
        """
from velm.losses.tiled.ranks import RankGroup
RankGroup.reduce_scatter = lambda self, values: values.unflatten(0, (self.size, -1))[self.rank]
""",
    ),
    "double averaging": (
        "processes",
        """
from velm.training.task import VisionLanguageTask
before = VisionLanguageTask.training_step
VisionLanguageTask.training_step = lambda self, *a: before(self, *a) / self.trainer.world_size
""",
    ),
    "a shifted label": (
        "decoding",
        """
from velm.model import VisionLanguageModel
before = VisionLanguageModel._shift
def shift(self, batch):
    inputs, labels = before(self, batch)
    return inputs, batch.tokens[:, :-1].where(batch.mask[:, 1:], -100)
VisionLanguageModel._shift = shift
""",
    ),
    "random state not restored in micro-batches": (
        "micro_batch",
        """
from functools import partial
from velm.training.memory import micro_batch as micro
micro.checkpoint = partial(micro.checkpoint, preserve_rng_state=False)
""",
    ),
    "random state not restored by a resume": (
        "resume",
        """
from velm.training import task
task.seed_step = lambda *place: None
""",
    ),
    "a cache off by one": (
        "decoding",
        """
from velm.decoders.transformer import TransformerDecoder
before = TransformerDecoder._embed
TransformerDecoder._embed = lambda self, tokens, start=0: before(self, tokens, start + (start > 0))
""",
    ),
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY), encoding="utf-8")
    return tmp_path / "tiny.yaml"


def small_run(config: Path, *options: str) -> SmallRun:
    return SmallRun.of(parse_fit(["--config", str(config), *options]))


def checked(config: Path, name: str, *options: str) -> Finding:
    (finding,) = run_checks(parse_fit(["--config", str(config), *options]), [name])
    return finding


@pytest.mark.slow
def test_a_sound_config_passes_and_leaves_nothing_behind(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selfcheck", "--config", str(config), "--model.micro_batch_size=2"]) == 0
    printed = capsys.readouterr().out
    assert "0 errors, 0 warnings, 5 ok." in printed
    assert all(f"ok       {name}" in printed for name in CHECKS)
    assert [path.name for path in config.parent.iterdir()] == ["tiny.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_fails_its_check_and_no_other(config: Path, mutation: str) -> None:
    check, code = MUTATIONS[mutation]
    (config.parent / "mutate.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "velm.cli", "selfcheck", "--config", "tiny.yaml", "--plugins=[mutate.py]"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=config.parent)
    assert done.returncode == 1, done.stderr
    printed = json.loads(done.stdout)
    errors = [finding for finding in printed["findings"] if finding["severity"] == "error"]
    assert [finding["check"] for finding in errors] == [check]
    assert errors[0]["message"]
    assert printed["summary"]["exit_code"] == 1


def test_the_first_token_that_stepping_spoils_is_named(config: Path) -> None:
    (config.parent / "forgetful.py").write_text(FORGETFUL, encoding="utf-8")
    decoder = "--model.decoder={name: forgetful, dim: 16, depth: 1, heads: 2}"
    finding = checked(config, "decoding", "--plugins=[forgetful.py]", decoder)
    assert finding.severity == "error"
    assert re.search(r"The logits of stepping differ .* by \d.* first at token 1 \(bos is 0\)", finding.message)


@pytest.mark.parametrize("name", ["micro_batch", "decoding", "resume", "checkpoint"])
def test_a_penalty_of_the_decoder_passes_and_nothing_is_printed(
    config: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    finding = checked(config, name, REGULARISED)
    assert capsys.readouterr().out == ""  # stdout is the report's
    assert finding.severity == "ok"
    assert re.fullmatch(r"Differs by at most \S+\.", finding.message)


def test_shifted_labels_change_the_loss(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift = VisionLanguageModel._shift

    def ahead(self: Any, batch: Any) -> Any:
        inputs, labels = shift(self, batch)
        return inputs, labels.roll(-1, 1).where(labels.roll(-1, 1) >= 0, labels)

    monkeypatch.setattr(VisionLanguageModel, "_shift", ahead)
    finding = checked(config, "decoding")
    assert finding.severity == "error"
    assert re.search(r"The loss 'captioning' is [\d.]+; the mean of -log p.* is \d", finding.message)


def test_a_random_state_that_micro_batches_do_not_restore_is_found(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(micro, "checkpoint", partial(checkpoint, preserve_rng_state=False))
    finding = checked(config, "micro_batch")
    assert finding.severity == "error"
    assert re.search(r"With dropout, .* by \d.*, most for model\.", finding.message)


def test_a_random_state_that_a_resume_does_not_restore_is_found(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velm.training.task.seed_step", lambda *place: None)
    finding = checked(config, "resume")
    assert finding.severity == "error"
    assert re.search(r"one: random state from batch 4 on; loss from batch 4 on; .*weights by", finding.message)


def test_a_position_in_the_data_that_is_not_restored_is_found(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velm.training.data.VisionLanguageData.load_state_dict", lambda self, state: None)
    finding = checked(config, "resume")
    assert finding.severity == "error"
    assert re.search(r"batches after the stop, of|one: data from batch 4 on", finding.message)


def test_a_tokenizer_that_is_saved_wrongly_is_found(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from velm.data.text.word import WordTokenizer

    before = WordTokenizer.from_state.__func__  # type: ignore[attr-defined]

    def swapped(cls: type, state: Any) -> Any:
        tokenizer = before(cls, state)
        encode = tokenizer.encode
        tokenizer.encode = lambda text: encode(text)[::-1]
        return tokenizer

    monkeypatch.setattr(WordTokenizer, "from_state", classmethod(swapped))
    finding = checked(config, "checkpoint")
    assert finding.severity == "error"
    assert finding.message.startswith("tokenizer:")


def test_weights_that_are_saved_wrongly_are_found(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = VisionLanguageTask.on_save_checkpoint

    def broken(self: VisionLanguageTask, content: dict[str, Any]) -> None:
        save(self, content)
        name = "model.text_projection.weight"
        content["state_dict"] = {**content["state_dict"], name: content["state_dict"][name] + 1}

    monkeypatch.setattr(VisionLanguageTask, "on_save_checkpoint", broken)
    finding = checked(config, "checkpoint", "--model.ema=null")
    assert finding.severity == "error"
    assert finding.message.startswith("The weights text_projection.weight of the loaded model differ by ")


def test_a_check_that_does_not_apply_is_skipped(config: Path) -> None:
    options = ("--model.decoder=null", "--model.losses={contrastive: {}}")
    finding = checked(config, "decoding", *options)
    assert (finding.severity, finding.value, finding.message) == ("skipped", None, "The model has no decoder.")


def test_a_part_that_raises_is_an_error(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velm.decoders.transformer.TransformerDecoder.start", lambda self, *memory: 1 / 0)
    finding = checked(config, "decoding")
    assert (finding.severity, finding.message) == ("error", "ZeroDivisionError: division by zero")


def test_the_batch_has_images_in_both_halves_and_unequal_lengths(config: Path) -> None:
    batch = small_run(config).batch
    ids = batch.image_ids.tolist()
    assert set(ids[:4]) & set(ids[4:])
    assert len(set(ids)) < len(ids) == 8
    first, second = (half.predicted() for half in batch.micro_batches(4))
    assert first > second


def test_farthest_names_the_worst_and_never_overlooks_nan() -> None:
    one = {"a": torch.tensor([4.0, 0.0]), "b": torch.ones(2)}
    assert farthest(one, one) == (0.0, "a")
    assert farthest(one, {**one, "b": torch.tensor([1.0, 2.0])}) == (0.25, "b")
    assert farthest(one, {"a": one["a"]}) == (0.25, "b")
    assert farthest(one, {**one, "b": torch.ones(3)}) == (float("inf"), "b")
    assert farthest(one, {**one, "b": torch.tensor([1.0, torch.nan])}) == (float("inf"), "b")


def test_a_difference_that_is_not_finite_is_none_in_json() -> None:
    assert passed("decoding", 1e-15).message == "Differs by at most 1.0e-15."
    assert "a part computes in float32" in passed("decoding", 1e-7, "A note.").message
    assert failed("resume", float("inf"), "No checkpoint.").value == {"difference": None}
