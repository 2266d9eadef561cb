"""`velm selfcheck` passes on what is right, and names what a mutation breaks, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.utils.checkpoint import checkpoint

from velm import cli
from velm.doctor.laws import CHECKS, Outcome, run_checks
from velm.doctor.laws.compare import farthest
from velm.doctor.laws.faults import fault_of
from velm.doctor.laws.outcome import as_dict, table
from velm.doctor.laws.processes import ALL, whole_gradients
from velm.doctor.laws.subject import Subject, settle, subject_of
from velm.model import VisionLanguageModel
from velm.outputs import IGNORE
from velm.training.memory import micro_batch as micro
from velm.training.run import parse_fit
from velm.training.task import VisionLanguageTask

pytestmark = pytest.mark.filterwarnings("ignore")

TINY: dict[str, Any] = {
    "seed_everything": 3,
    "model": {
        "image_encoder": {"name": "cnn", "dim": 16},
        "text_encoder": {"name": "rnn", "dim": 16},
        "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2},
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
        "contrastive: gathered without gradient. The towers' gradient is 0",
        """
from velm.losses.alignment import ContrastiveLoss
from velm.training.distributed.gather import gather as distributed
ContrastiveLoss.shares = False
distributed._gather = lambda module, embeds: module.all_gather(embeds).flatten(0, 1)
""",
    ),
    "gather with the own share's gradient": (
        "processes",
        "contrastive: gathered without gradient. The towers' gradient is half",
        """
from velm.losses.alignment import ContrastiveLoss
from velm.training.distributed.gather import gather as distributed
ContrastiveLoss.shares = False
def gather(module, embeds):
    gathered = module.all_gather(embeds).clone()
    gathered[module.global_rank] = embeds
    return gathered.flatten(0, 1)
distributed._gather = gather
""",
    ),
    "sentences' gradients stay where they are made": (
        "processes",
        "contrastive: gathered without gradient. What other processes' samples ask of the text encoder",
        """
from velm.losses.tiled.ranks import RankGroup
RankGroup.reduce_scatter = lambda self, values: values.unflatten(0, (self.size, -1))[self.rank]
""",
    ),
    "double averaging": (
        "processes",
        "averaged twice",
        """
from velm.training.task import VisionLanguageTask
before = VisionLanguageTask.training_step
VisionLanguageTask.training_step = lambda self, *a: before(self, *a) / self.trainer.world_size
""",
    ),
    "a shifted label": (
        "decoding",
        "labels shifted by -1",
        """
from velm.model import VisionLanguageModel
before = VisionLanguageModel._decode
def decode(self, batch, *memory):
    output, labels = before(self, batch, *memory)
    return output, batch.tokens[:, :-1].where(batch.mask[:, 1:], -100)
VisionLanguageModel._decode = decode
""",
    ),
    "random state not restored in pieces": (
        "micro_batch",
        "random state not restored",
        """
from functools import partial
from velm.training.memory import micro_batch as micro
micro.checkpoint = partial(micro.checkpoint, preserve_rng_state=False)
""",
    ),
    "random state not restored by a resume": (
        "resume",
        "random state not restored",
        """
from velm.training import task
task.seed_step = lambda *place: None
""",
    ),
    "a cache off by one": (
        "decoding",
        "the cache: stepping differs from reading the whole sentence, first at token 1",
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


def subject(config: Path, *options: str) -> Subject:
    return subject_of(parse_fit(["--config", str(config), *options]))


def checked(config: Path, name: str, *options: str) -> Outcome:
    (outcome,) = run_checks(parse_fit(["--config", str(config), *options]), [name])
    return outcome


@pytest.mark.slow
def test_a_sound_config_passes_and_leaves_nothing_behind(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["selfcheck", "--config", str(config), "--model.micro_batch_size=2"]) == 0
    printed = capsys.readouterr().out
    assert "5 passed, 0 failed, 0 skipped." in printed
    assert all(f"passed   {name}" in printed for name in CHECKS)
    assert [path.name for path in config.parent.iterdir()] == ["tiny.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_mutation_fails_its_check_and_no_other(config: Path, mutation: str) -> None:
    check, message, code = MUTATIONS[mutation]
    (config.parent / "mutate.py").write_text(code, encoding="utf-8")
    command = [sys.executable, "-m", "velm.cli", "selfcheck", "--config", "tiny.yaml", "--plugins=[mutate.py]"]
    done = subprocess.run([*command, "--json"], capture_output=True, text=True, cwd=config.parent)
    assert done.returncode == 1, done.stderr
    failed = {c["name"]: c["message"] for c in json.loads(done.stdout)["checks"] if c["status"] == "failed"}
    assert set(failed) == {check}
    assert message in failed[check]


def test_a_decoder_of_ones_own_that_forgets_is_named(config: Path) -> None:
    (config.parent / "forgetful.py").write_text(FORGETFUL, encoding="utf-8")
    decoder = "--model.decoder={name: forgetful, dim: 16, depth: 1, heads: 2}"
    outcome = checked(config, "decoding", "--plugins=[forgetful.py]", decoder)
    assert outcome.status == "failed"
    assert outcome.message.startswith("the cache: stepping differs from reading the whole sentence, first at token 1")


@pytest.mark.parametrize("name", ["micro_batch", "decoding", "resume", "checkpoint"])
def test_a_penalty_of_the_decoder_is_no_fault(config: Path, name: str) -> None:
    outcome = checked(config, name, REGULARISED)
    assert (outcome.status, outcome.message) == ("passed", "")


def test_labels_that_are_shifted_are_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decode = VisionLanguageModel._decode

    def ahead(self: Any, *given: Any) -> Any:
        output, labels = decode(self, *given)
        return output, labels.roll(-1, 1).where(labels.roll(-1, 1) >= 0, labels)

    monkeypatch.setattr(VisionLanguageModel, "_decode", ahead)
    outcome = checked(config, "decoding")
    assert outcome.status == "failed"
    assert "labels shifted" in outcome.message


def test_a_random_state_that_pieces_do_not_restore_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(micro, "checkpoint", partial(checkpoint, preserve_rng_state=False))
    outcome = checked(config, "micro_batch")
    assert outcome.status == "failed"
    assert outcome.message.startswith("random state not restored")


def test_a_random_state_that_a_resume_does_not_restore_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velm.training.task.seed_step", lambda *place: None)
    outcome = checked(config, "resume")
    assert outcome.status == "failed"
    assert outcome.message.startswith("random state not restored")


def test_a_place_that_is_not_restored_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velm.training.data.VisionLanguageData.load_state_dict", lambda self, state: None)
    outcome = checked(config, "resume")
    assert outcome.status == "failed"
    assert outcome.message.startswith("the place")


def test_a_tokenizer_that_is_saved_wrongly_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from velm.data.text.word import WordTokenizer

    before = WordTokenizer.from_state.__func__  # type: ignore[attr-defined]

    def swapped(cls: type, state: Any) -> Any:
        tokenizer = before(cls, state)
        encode = tokenizer.encode
        tokenizer.encode = lambda text: encode(text)[::-1]
        return tokenizer

    monkeypatch.setattr(WordTokenizer, "from_state", classmethod(swapped))
    outcome = checked(config, "checkpoint")
    assert outcome.status == "failed"
    assert outcome.message.startswith("tokenizer:")


def test_weights_that_are_saved_wrongly_are_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = VisionLanguageTask.on_save_checkpoint

    def broken(self: VisionLanguageTask, content: dict[str, Any]) -> None:
        save(self, content)
        name = "model.text_projection.weight"
        content["state_dict"] = {**content["state_dict"], name: content["state_dict"][name] + 1}

    monkeypatch.setattr(VisionLanguageTask, "on_save_checkpoint", broken)
    outcome = checked(config, "checkpoint", "--model.ema=null")
    assert (outcome.status, outcome.message[:29]) == ("failed", "weights: text_projection.weig")


def test_what_does_not_apply_is_skipped_and_says_why(config: Path) -> None:
    options = ("--model.decoder=null", "--model.losses={contrastive: {}}")
    outcome = checked(config, "decoding", *options)
    assert (outcome.status, outcome.figure, outcome.message) == ("skipped", None, "the model has no decoder.")


def test_a_part_that_raises_is_a_failed_check(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("velm.decoders.transformer.TransformerDecoder.start", lambda self, *memory: 1 / 0)
    outcome = checked(config, "decoding")
    assert (outcome.status, outcome.message) == ("failed", "ZeroDivisionError: division by zero")


def test_the_batch_has_images_in_both_halves_and_unequal_lengths(config: Path) -> None:
    batch = subject(config).batch
    ids = batch.image_ids.tolist()
    assert set(ids[:4]) & set(ids[4:])
    assert len(set(ids)) < len(ids) == 8
    first, second = (half.predicted() for half in batch.micro_batches(4))
    assert first > second


class Case:
    """A task, its gradients by loss, and copies of them to be spoilt."""

    def __init__(self, config: Path, *options: str) -> None:
        made = subject(config, *options)
        self.batch, self.task = made.batch, made.task().double()
        settle(self.task, self.batch)
        self.expected = whole_gradients(self.task, self.batch)

    def fault(self, factor: float, own: float, *cases: str) -> str:
        """The fault where gradients are so many times what they are to be; a loss's own, so many times."""
        found = {
            case: {n: g * (own if n.startswith("losses.") else factor) for n, g in gradients.items()}
            if not cases or case in cases
            else gradients
            for case, gradients in self.expected.items()
        }
        return fault_of(self.task, self.batch, self.expected, found)


def test_faults_of_gradients_are_told_apart(config: Path) -> None:
    case = Case(config)
    assert set(case.expected) == {ALL, "contrastive", "captioning"}
    assert case.fault(0.5, 0.5).startswith("averaged twice")
    assert case.fault(2.0, 2.0).startswith("summed, not averaged")
    assert case.fault(0.5, 1.0, "contrastive").startswith("contrastive: gathered without gradient")
    assert case.fault(0.0, 1.0, "contrastive").startswith("contrastive: gathered without gradient")
    assert case.fault(1.3, 1.3, "captioning").startswith("captioning: the gradients of two processes differ")
    assert case.fault(1.3, 1.3, ALL).startswith("every loss alone is right")


def test_a_loss_without_parameters_cannot_tell_two_faults_apart(config: Path) -> None:
    case = Case(config, "--model.decoder=null", "--model.losses={triplet: {}}")
    assert "averaged twice" in case.fault(0.5, 0.5)
    assert "Or gathered without gradient" in case.fault(0.5, 0.5)


@pytest.mark.parametrize(
    ("loss", "message"), [("contrastive", "contrastive: not gathered"), ("captioning", "the mean over its own tokens")]
)
def test_halves_that_know_nothing_of_each_other_are_named(config: Path, loss: str, message: str) -> None:
    case = Case(config)
    case.task.zero_grad()
    for half in case.batch.micro_batches(4):
        (case.task.losses[loss](case.task.model(half), half) / 2).backward()
    alone = {name: p.grad for name, p in case.task.named_parameters() if p.grad is not None}
    assert message in fault_of(case.task, case.batch, case.expected, {**case.expected, loss: alone})


def test_farthest_names_the_worst_and_never_overlooks_nan() -> None:
    one = {"a": torch.tensor([4.0, 0.0]), "b": torch.ones(2)}
    assert farthest(one, one) == (0.0, "a")
    assert farthest(one, {**one, "b": torch.tensor([1.0, 2.0])}) == (0.25, "b")
    assert farthest(one, {"a": one["a"]}) == (0.25, "b")
    assert farthest(one, {**one, "b": torch.ones(3)}) == (float("inf"), "b")
    assert farthest(one, {**one, "b": torch.tensor([1.0, torch.nan])}) == (float("inf"), "b")


def test_outcomes_are_told_as_a_table_and_as_json() -> None:
    outcomes = [
        Outcome("processes", "passed", 1e-15, "", 4.2),
        Outcome("resume", "failed", float("inf"), "the place", 1.0),
        Outcome("decoding", "skipped", None, "the model has no decoder.", 0.0),
    ]
    told = as_dict(outcomes)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert not told["passed"]
    assert told["checks"][1]["figure"] is None
    lines = table(outcomes).splitlines()
    assert lines[0].split() == ["passed", "processes", "1.0e-15", "4.2", "s"]
    assert lines[2].strip() == "the place"
    assert lines[-1] == "1 passed, 1 failed, 1 skipped."


def test_ignored_labels_are_torchs_own() -> None:
    assert IGNORE == -100  # the mutations write it out
