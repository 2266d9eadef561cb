"""The loss `scst` has the gradient of the expected reward, and rewards by CIDEr-D of the training captions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor

import velm
from velm.data.base import Record
from velm.errors import ConfigError, DataError
from velm.losses.self_critical import SelfCriticalLoss
from velm.metrics.captioning import caption_scores
from velm.outputs import Batch, SampledCaptions
from velm.training import self_critical
from velm.training.config import OptimizerConfig, ValidationConfig
from velm.training.data import VisionLanguageData
from velm.training.recovery.resume import seed_step
from velm.training.self_critical import END, CaptionRewards, SelfCritic, advantages, build_critic, split_losses
from velm.training.task import VisionLanguageTask

pytestmark = pytest.mark.filterwarnings("ignore")

PAD, BOS, EOS, UNK, A, B = range(6)
LIMIT = 3  # tokens of a caption, eos included
TINY = {"name": "transformer", "dim": 16, "depth": 1, "heads": 2, "dropout": 0.0}
IMAGES = {"name": "cnn", "dim": 16, "widths": [8]}


def make_task(options: dict[str, Any] | None = None, **changes: Any) -> VisionLanguageTask:
    torch.manual_seed(0)
    defaults: dict[str, Any] = {"image_encoder": IMAGES, "decoder": TINY, "losses": {"scst": options}, "vocab_size": 6}
    return VisionLanguageTask(**{**defaults, **changes})


def make_data(**changes: Any) -> VisionLanguageData:
    sizes = {"train_size": 16, "val_size": 8, "test_size": 2, "heldout_size": 0}
    dataset = {"name": "shapes", "objects": 1, "image_size": 32, **sizes}
    return VisionLanguageData(**{"dataset": dataset, "image_size": 16, "batch_size": 4, "max_length": 16, **changes})


def make_trainer(**options: Any) -> lightning.Trainer:
    silent = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return lightning.Trainer(
        **{"accelerator": "cpu", "enable_model_summary": False, "use_distributed_sampler": False, "max_steps": 1,
           "num_sanity_val_steps": 0, "limit_val_batches": 0, **silent, **options}
    )  # fmt: skip


def attached(task: VisionLanguageTask, data: VisionLanguageData) -> SelfCritic:
    """The critic of a task as in a fit of one device."""
    task._trainer = SimpleNamespace(world_size=1, datamodule=data)  # type: ignore[assignment]
    critic = build_critic(task)
    assert critic is not None
    return critic


def first_batch(data: VisionLanguageData) -> Batch:
    batch: Batch = next(iter(data.train_dataloader()))
    return batch


# --- the gradient


def all_captions() -> list[list[int]]:
    """Every caption of at most LIMIT tokens over eos, A and B; the longest may lack eos."""
    words = (A, B)
    complete = [[*body, EOS] for length in range(LIMIT) for body in product(words, repeat=length)]
    return complete + [list(body) for body in product(words, repeat=LIMIT)]


def rows_of(image: Tensor, captions: list[list[int]], factors: Tensor) -> Batch:
    tokens = torch.full((len(captions), LIMIT + 1), PAD)
    for row, caption in zip(tokens, captions, strict=True):
        row[: len(caption) + 1] = torch.tensor([BOS, *caption])
    lengths = torch.tensor([len(caption) + 1 for caption in captions])
    return Batch(
        images=image, tokens=tokens, mask=torch.arange(LIMIT + 1) < lengths[:, None],
        image_ids=torch.zeros(len(captions), dtype=torch.int64),
        image_rows=torch.zeros(len(captions), dtype=torch.int64), sharing=len(captions),
        sampled=SampledCaptions(factors, suppressed=(PAD, BOS, UNK)),
    )  # fmt: skip


def loss_of(task: VisionLanguageTask, batch: Batch) -> Tensor:
    loss: Tensor = task.losses["scst"](task.model(batch, {"decoder"}), batch)
    return loss


def probabilities(task: VisionLanguageTask, image: Tensor, captions: list[list[int]], temperature: float) -> Tensor:
    """p of each caption, float (n,), with gradient, by steps of softmax over eos, A and B."""
    encoded = task.model.encode_image(image)
    result = []
    for caption in captions:
        state = task.model.decoder.start(*task.model.memory(encoded, None))
        p = torch.ones((), dtype=torch.float64)
        for token, following in pairwise([BOS, *caption]):
            logits, state = task.model.decoder.step(torch.tensor([token]), state)
            allowed = logits[0, [EOS, A, B]] / temperature
            p = p * allowed.softmax(0)[[EOS, A, B].index(following)]
        result.append(p)
    return torch.stack(result)


def image() -> Tensor:
    return torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("bias", [True, False])
def test_the_trained_distribution_is_the_one_of_the_samples(temperature: float, bias: bool) -> None:
    task = make_task({"temperature": temperature}).double().eval()
    if not bias:
        task.model.decoder.output_projection.register_parameter("bias", None)
    captions = all_captions()
    p = probabilities(task, image(), captions, temperature).detach()
    assert float(p.sum()) == pytest.approx(1, rel=1e-12)
    for i, expected in enumerate(p.log()):
        one = rows_of(image(), captions[i : i + 1], torch.ones(1, dtype=torch.float64))
        assert float(loss_of(task, one)) == pytest.approx(-float(expected), rel=1e-10)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_the_expected_gradient_is_that_of_the_expected_reward(baseline: str, temperature: float) -> None:
    task = make_task({"temperature": temperature, "baseline": baseline}).double().eval()
    parameters = dict(task.model.named_parameters())
    captions = all_captions()
    rewards = torch.rand(len(captions), dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 10
    p = probabilities(task, image(), captions, temperature)
    expected = torch.autograd.grad(-(p * rewards).sum(), list(parameters.values()), allow_unused=True)

    # every pair of samples, with its probability: two samples of an image are a step
    pairs = list(product(range(len(captions)), repeat=2))
    of_pairs = torch.stack([rewards[list(pair)] for pair in pairs])
    greedy = None if baseline == "mean" else rewards[p.argmax()].expand(len(pairs), 1)
    weight = torch.stack([p[i] * p[j] for i, j in pairs]).detach()
    factors = advantages(of_pairs, greedy) * weight[:, None] / 2
    rows = [captions[i] for pair in pairs for i in pair]
    loss_of(task, rows_of(image(), rows, factors.flatten())).backward()
    assert any(gradient is not None and gradient.abs().max() > 1e-4 for gradient in expected)
    for (name, parameter), gradient in zip(parameters.items(), expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-12, msg=lambda m, n=name: n + m)


def test_eos_is_trained() -> None:
    task = make_task().double().eval()
    one = torch.ones(1, dtype=torch.float64)
    difference = loss_of(task, rows_of(image(), [[A, EOS]], one)) - loss_of(task, rows_of(image(), [[A]], one))
    p = probabilities(task, image(), [[A], [A, EOS]], 1.0)
    assert float(difference) == pytest.approx(float((p[0] / p[1]).log()), rel=1e-10)


def test_a_mean_of_the_others_by_hand() -> None:
    rewards = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])
    assert advantages(rewards).tolist() == [[-3.0, -1.5, 4.5], [0, 0, 0]]
    assert advantages(rewards, torch.tensor([[2.0], [5.0]])).tolist() == [[-1, 0, 4], [0, 0, 0]]


# --- rewards


def records() -> list[Record]:
    texts = [("a dog runs", "the dog runs fast"), ("two dogs play on the beach",), ("a man rides a horse",)]
    return [Record(image=None, image_id=str(i), texts=each) for i, each in enumerate(texts)]


def test_rewards_are_cider_d_of_captions_whose_end_is_a_word() -> None:
    rewards = CaptionRewards(records(), str.split)
    captions = ["a dog runs", "dogs on the beach", "a man rides"]
    found = rewards([[rewards.words(caption)] for caption in captions], [0, 1, 2])
    ended = [[f"{text} END" for text in record.texts] for record in records()]
    expected = caption_scores([f"{caption} END" for caption in captions], ended, tokenize=str.split).cider_d
    assert found.flatten().tolist() == pytest.approx(expected)


def test_a_caption_that_breaks_off_is_rewarded_less() -> None:
    rewards = CaptionRewards(records(), str.split)
    complete, cut = rewards([[rewards.words("a dog runs"), rewards.words("a dog runs", ended=False)]], [0])[0]
    assert complete > cut > 0
    assert rewards.words("a dog")[-1] == END


def test_references_are_those_of_all_records_of_an_image() -> None:
    class Repeated(list):
        image_indices = (7, 8, 7)

    rewards = CaptionRewards(Repeated(records()), str.split)
    assert [" ".join(words[:-1]) for words in rewards.references(0)] == [
        "a dog runs", "the dog runs fast", "a man rides a horse",
    ]  # fmt: skip
    assert rewards.frequencies.images == 2


def test_references_are_split_once_and_the_rewards_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few references are kept."""
    split: list[str] = []

    def words(text: str) -> list[str]:
        split.append(text)
        return text.split()

    captions, ids = [[["a", "dog", "runs"]], [["a", "man"]], [["two", "dogs"]]], [0, 2, 1]
    kept = CaptionRewards(records(), words)
    found = [kept(captions, ids) for _ in range(2)]
    assert sorted(split) == sorted(text for record in records() for text in record.texts)
    monkeypatch.setattr(self_critical, "CACHED", 1)
    split.clear()
    forgetful = CaptionRewards(records(), words)
    assert torch.equal(forgetful(captions, ids), found[0])
    assert torch.equal(found[0], found[1])
    assert len(split) > 4
    assert forgetful.references.cache_info().currsize == 1


def test_an_image_without_a_caption_is_refused() -> None:
    with pytest.raises(DataError, match=r"The image '9' of the training split has no caption.*train with captioning"):
        CaptionRewards([*records(), Record(image=None, image_id="9", texts=())], str.split)


# --- a step


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
@pytest.mark.parametrize("per_image", [1, 2])
def test_a_batch_of_samples(baseline: str, per_image: int) -> None:
    data = make_data(captions_per_image=per_image)
    task = make_task({"samples": 3, "baseline": baseline}, vocab_size=data.vocab_size)
    critic, batch = attached(task, data), first_batch(data)
    seed_step(0, 0, 0)
    found = critic(batch, task.train())
    assert task.training
    assert len(found) == 4 * 3, "each image is captioned once"
    assert found.image_ids.tolist() == [i for i in batch.image_ids.tolist()[::per_image] for _ in range(3)]
    special = {data.tokenizer.pad_id, data.tokenizer.bos_id, data.tokenizer.unk_id}
    for row, mask in zip(found.tokens.tolist(), found.mask.tolist(), strict=True):
        caption = row[1 : sum(mask)]
        assert row[0] == data.tokenizer.bos_id
        assert not special & set(caption)
        assert data.tokenizer.eos_id in caption[-1:] or len(caption) == data.max_length - 1
    texts = [data.tokenizer.decode(row) for row in found.tokens.tolist()]
    ended = [data.tokenizer.eos_id in row for row in found.tokens.tolist()]
    words = [critic.rewards.words(text, ended=end) for text, end in zip(texts, ended, strict=True)]
    rewards = critic.rewards([words[i : i + 3] for i in range(0, 12, 3)], found.image_ids.tolist()[::3])
    logged = task.losses["scst"].logged()
    assert logged["scst/reward"] == pytest.approx(float(rewards.mean()))
    if baseline == "mean":
        torch.testing.assert_close(found.sampled.advantages, (advantages(rewards) / 12).flatten().float())


def test_the_samples_of_a_step_depend_on_the_step_alone() -> None:
    data = make_data()
    task = make_task(vocab_size=data.vocab_size)
    critic, batch = attached(task, data), first_batch(data)

    def tokens(step: int) -> list[list[int]]:
        seed_step(0, step, 0)
        return critic(batch, task).tokens.tolist()

    first = tokens(0)
    assert tokens(1) != first
    assert tokens(0) == first


def gradients(task: VisionLanguageTask, batch: Batch) -> dict[str, Tensor]:
    task.zero_grad()
    task.compute_losses(batch)[0].backward()
    return {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_a_frozen_image_encoder_runs_once_and_the_gradients_are_the_same(
    precision: torch.dtype, micro_batch_size: int | None
) -> None:
    data = make_data()
    decoder = {**TINY, "dropout": 0.3}
    task = make_task(
        {"samples": 3}, decoder=decoder, vocab_size=data.vocab_size, freeze=["image_encoder"],
        micro_batch_size=micro_batch_size,
    )  # fmt: skip
    critic, batch = attached(task, data), first_batch(data)
    calls: list[int] = []
    task.model.image_encoder.register_forward_hook(lambda *_: calls.append(1))
    with torch.autocast("cpu", precision, enabled=precision is torch.bfloat16):
        seed_step(0, 0, 0)
        once = critic(batch, task.train())
        state = torch.get_rng_state()
        found = gradients(task, once)
        assert len(calls) == 1
        twice = replace(once, images=batch.images, encoded=None)
        torch.set_rng_state(state)
        expected = gradients(task, twice)
    assert len(calls) > 1
    assert found.keys() == expected.keys() == {n for n, p in task.model.named_parameters() if p.requires_grad}
    assert any(gradient.any() for gradient in found.values())
    exact = {"rtol": 0, "atol": 0} if micro_batch_size is None else {"rtol": 1e-2, "atol": 1e-4}  # other batch sizes
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], **exact, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("frozen", [False, True])
def test_an_image_encoder_that_changes_encodes_again(frozen: bool) -> None:
    """One that is trained, and one whose weights are frozen while its dropout draws."""
    data = make_data()
    vit = {"name": "vit", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8, "dropout": 0.5}
    task = make_task({"samples": 2}, image_encoder=vit, vocab_size=data.vocab_size)
    task.model.image_encoder.requires_grad_(not frozen)
    batch = attached(task, data)(first_batch(data), task.train())
    assert batch.encoded is None
    assert batch.images is not None


@pytest.mark.parametrize("baseline", ["mean", "greedy"])
def test_equal_rewards_give_no_gradient(monkeypatch: pytest.MonkeyPatch, baseline: str) -> None:
    def equal(self: CaptionRewards, captions: Any, image_ids: Any) -> Tensor:
        return torch.full((len(captions), len(captions[0])), 0.1, dtype=torch.float64)

    monkeypatch.setattr(CaptionRewards, "__call__", equal)
    data = make_data()
    task = make_task({"baseline": baseline}, vocab_size=data.vocab_size)
    critic = attached(task, data)
    total, _ = task.compute_losses(critic(first_batch(data), task))
    total.backward()
    assert all(not parameter.grad.any() for parameter in task.model.parameters() if parameter.grad is not None)
    assert task.model.decoder.output_projection.weight.grad is not None


@pytest.mark.parametrize("options", [{}, {"precision": "bf16-mixed"}])
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_a_fit_trains_every_weight_and_logs_the_reward(options: dict[str, Any], micro_batch_size: int | None) -> None:
    data = make_data()
    task = make_task({"samples": 2}, vocab_size=data.vocab_size, micro_batch_size=micro_batch_size)
    trainer = make_trainer(**options)
    trainer.fit(task, data)
    names = {"train/loss", "train/scst", "train/scst/reward", "train/scst/baseline"}
    assert names <= set(trainer.callback_metrics)
    without = [name for name, parameter in task.model.named_parameters() if parameter.grad is None]
    assert without == []


JOINT = {"contrastive": {"weight": 0.5}, "captioning": {}}
TEXT = {"name": "rnn", "dim": 8, "dropout": 0.2}


@pytest.mark.parametrize("freeze", [[], ["image_encoder"]])
@pytest.mark.parametrize("micro_batch_size", [None, 3])
def test_beside_other_losses_the_gradient_is_the_sum(freeze: list[str], micro_batch_size: int | None) -> None:
    data = make_data(captions_per_image=2)
    task = make_task(
        vocab_size=data.vocab_size, text_encoder=TEXT, losses={**JOINT, "scst": {"samples": 3, "weight": 2.0}},
        freeze=freeze, micro_batch_size=micro_batch_size, decoder={**TINY, "dropout": 0.3},
    )  # fmt: skip
    critic, batch = attached(task, data), first_batch(data)

    def gradients_of(step: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        task.train().zero_grad()
        seed_step(0, 0, 0)
        torch.stack([task.losses.weights[name] * value for name, value in step().items()]).sum().backward()
        return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}

    of_samples, of_data = split_losses(task.losses)
    assert (list(of_samples), list(of_data)) == (["scst"], list(JOINT))
    together = gradients_of(lambda: critic.losses(batch, task, task.losses))
    alone = gradients_of(lambda: task.compute_losses(critic(batch, task), of_samples)[1])
    torch.manual_seed(0)
    difference = {name: together[name] - alone.get(name, torch.zeros(())) for name in together}
    assert set(together) == {name for name, parameter in task.named_parameters() if parameter.requires_grad}

    def second() -> dict[str, Tensor]:
        task.compute_losses(critic(batch, task), of_samples)  # draws what comes before
        return task.compute_losses(batch, of_data)[1]

    expected = gradients_of(second)
    assert set(expected) == set(together)
    for name, found in difference.items():
        torch.testing.assert_close(found, expected[name], atol=1e-5, rtol=1e-4)


def test_with_weight_0_no_caption_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_data()
    task = make_task(vocab_size=data.vocab_size, text_encoder=TEXT, losses={**JOINT, "scst": {"weight": 0}})
    critic = attached(task, data)
    monkeypatch.setattr(type(critic), "__call__", None)
    assert list(critic.losses(first_batch(data), task, task.losses.in_steps(1))) == list(JOINT)


def test_a_joint_fit_gives_a_model_that_captions_and_retrieves(tmp_path: Path) -> None:
    data = make_data()
    task = make_task(vocab_size=data.vocab_size, text_encoder=TEXT, losses={**JOINT, "scst": {"samples": 2}})
    trainer = make_trainer()
    trainer.fit(task, data)
    assert {f"train/{name}" for name in (*JOINT, "scst", "scst/reward")} <= set(trainer.callback_metrics)
    trainer.save_checkpoint(tmp_path / "joint.ckpt")
    pipeline = velm.load(tmp_path / "joint.ckpt")
    assert pipeline.aligned
    assert pipeline.model.decoder is not None


def test_validation_is_the_cross_entropy_of_the_references() -> None:
    data = make_data()
    values = []
    for name in ("scst", "captioning"):
        task = make_task(vocab_size=data.vocab_size, losses={name: {}}, validation=ValidationConfig(captions=2))
        values.append(make_trainer(limit_val_batches=1.0).validate(task, data, verbose=False)[0][f"val/{name}"])
    assert values[0] == pytest.approx(values[1], rel=1e-6)


# --- what does not fit


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1}, "samples 1 is below 2, the least with baseline: mean .*baseline: greedy"),
        ({"samples": 0, "baseline": "greedy"}, "samples 0 is below 1, the least with baseline: greedy"),
        ({"baseline": "none"}, r"'baseline' of the loss 'scst' takes .*'mean', 'greedy'.*; got 'none'"),
        ({"temperature": 0.0}, "temperature 0.0 is not above 0"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task(options)


def test_a_baseline_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="baseline is one of mean, greedy; got 'none'"):
        SelfCriticalLoss(baseline="none")  # type: ignore[arg-type]


def test_a_model_without_a_decoder_is_refused() -> None:
    with pytest.raises(ConfigError, match="The loss 'scst' needs a decoder, and the model has none"):
        make_task(decoder=None, text_encoder={"name": "rnn", "dim": 8})


def test_a_decoder_that_reads_the_text_is_refused() -> None:
    with pytest.raises(ConfigError, match="this decoder also reads a text or a template"):
        make_task(text_encoder={"name": "rnn", "dim": 8}, memory=["image", "text"])


def test_a_fit_without_references_is_refused() -> None:
    tokens = torch.tensor([[BOS, A, EOS]])
    batch = Batch(images=image(), tokens=tokens, mask=tokens > 0, image_ids=torch.zeros(1, dtype=torch.int64))
    loader = torch.utils.data.DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="the Trainer has no data module that has them"):
        make_trainer().fit(make_task(), loader)


def test_sharded_weights_are_refused() -> None:
    task = make_task()
    task.sharded = True
    with pytest.raises(ConfigError, match=r"fsdp2 shards them: take --trainer.strategy=ddp"):
        attached(task, make_data())


# --- the aim


@pytest.mark.slow
def test_cider_d_of_unseen_scenes_rises(tmp_path: Path) -> None:
    sizes = {"train_size": 256, "val_size": 64, "test_size": 2, "heldout_size": 0}
    data = make_data(dataset={"name": "shapes", "objects": 1, "image_size": 32, **sizes}, image_size=32, batch_size=32)
    optimizer = OptimizerConfig(lr=2e-3)
    validation = ValidationConfig(captions=64, max_length=16)
    options = {"vocab_size": data.vocab_size, "optimizer": optimizer, "validation": validation}
    first = make_task(losses={"captioning": {}}, **options)
    make_trainer(max_steps=120).fit(first, data)

    def cider(task: VisionLanguageTask) -> float:
        found = make_trainer(limit_val_batches=1.0).validate(task, data, verbose=False)
        return float(found[0]["val/caption/cider"])

    before = cider(first)
    second = make_task({}, **options)
    second.load_state_dict(first.state_dict())
    make_trainer(max_steps=80).fit(second, data)
    assert cider(second) > before + 0.2
