"""Fixed weights are the plain sum, uncertainty has its paper's gradient, projection leaves no conflict: on one device,
in pieces, accumulated, and on two devices."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.training.memory.test_micro_batch import assert_same
from velm.errors import ConfigError
from velm.losses.alignment import ContrastiveLoss
from velm.losses.base import Loss
from velm.losses.captioning import CaptioningLoss
from velm.outputs import Batch
from velm.training.balancing.gradients import GradientProjection, dot_products, loss_gradient, shared_parameters
from velm.training.balancing.policies import Policy, Projection, Uncertainty, build_policy
from velm.training.distributed.fsdp import FSDP2Strategy
from velm.training.task import VisionLanguageTask

pytestmark = pytest.mark.filterwarnings("ignore")


class Against(Loss):
    """Captioning, and against all alignment: its gradient conflicts with the contrastive one's."""

    requires = frozenset({"image_embeds", "text_embeds", "decoder"})

    def __init__(self) -> None:
        super().__init__()
        self.align, self.write = ContrastiveLoss(learnable=False), CaptioningLoss()

    def forward(self, output: Any, batch: Batch) -> Tensor:
        return self.write(output, batch) - 3 * self.align(output, batch)


AGAINST = "tests.training.balancing.test_policies:Against"
CONFLICT: dict[str, Any] = {"contrastive": {"weight": 2.0}, AGAINST: {"weight": 0.5}}
THREE: dict[str, Any] = {"contrastive": {}, "captioning": {"weight": 2.0}, AGAINST: {}}


def whole_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8, generator=generator)
    lengths = torch.tensor([9, 7, 5, 5, 6, 4, 4, 4])
    tokens = torch.randint(4, 20, (8, 9), generator=generator)
    mask = torch.arange(9) < lengths[:, None]
    tokens[:, 0] = 1
    tokens[torch.arange(8), lengths - 1] = 2
    return Batch(images=images, tokens=tokens.where(mask, 0), mask=mask, image_ids=torch.arange(8))


def make_task(losses: dict[str, Any], balance: Any = "fixed", **changes: Any) -> VisionLanguageTask:
    torch.manual_seed(0)
    return VisionLanguageTask(
        image_encoder={"name": "cnn", "dim": 16, "widths": [8]},
        text_encoder={"name": "rnn", "dim": 12},
        decoder={"name": "transformer", "dim": 16, "depth": 1, "heads": 2},
        losses=losses,
        balance=balance,
        embed_dim=8,
        vocab_size=20,
        **changes,
    ).double()


class Batches(torch.utils.data.Dataset):
    def __init__(self, batches: list[Batch]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> Batch:
        return self.batches[index]


class Keep(lightning.Callback):
    """The gradients that the last step was taken with; of shards, the whole."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        found = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
        self.gradients = {n: g.full_tensor() if isinstance(g, DTensor) else g.clone() for n, g in found.items()}


def step(task: VisionLanguageTask, *batches: Batch, **options: Any) -> dict[str, Tensor]:
    """The gradients as the optimizer got them, after one step of so many batches."""
    keep = Keep()
    trainer = lightning.Trainer(**{
        "accelerator": "cpu", "max_steps": 1, "logger": False, "enable_checkpointing": False, "devices": 1,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
        "accumulate_grad_batches": len(batches), **options, "callbacks": [keep, *options.get("callbacks", [])],
    })  # fmt: skip
    loader = torch.utils.data.DataLoader(Batches(list(batches)), batch_size=None)
    trainer.fit(task, loader)
    return keep.gradients


class Alone:
    world_size = 1


def apart(losses: dict[str, Any]) -> tuple[list[str], dict[str, dict[str, Tensor]]]:
    """The names of shared parameters, and every weighted loss's own gradient, from its own backward pass."""
    found: dict[str, dict[str, Tensor]] = {}
    for name in make_task(losses).losses:
        task = make_task(losses)
        task._trainer = Alone()  # type: ignore[assignment]
        (task.compute_losses(whole_batch())[1][name] * task.losses.weights[name]).backward()
        found[name] = {n: p.grad for n, p in task.named_parameters() if p.grad is not None}
    counts = [n for grads in found.values() for n in grads if n.startswith("model.")]
    return sorted(n for n in set(counts) if counts.count(n) > 1), found


def flat(gradients: dict[str, Tensor], names: list[str]) -> Tensor:
    return torch.cat([gradients[name].flatten() if name in gradients else torch.zeros(0) for name in names])


# --- projection, by hand


def combined(gradients: list[list[float]], step: int = 0) -> Tensor:
    rows = torch.tensor(gradients, dtype=torch.float64)
    return Projection().coefficients(rows @ rows.T, step) @ rows


def test_two_that_conflict_by_hand() -> None:
    """g1 = (1, 0), g2 = (-1, 1): g1 - (g1.g2 / 2) g2 = (1/2, 1/2), g2 + g1 = (0, 1); together (1/2, 3/2)."""
    torch.testing.assert_close(combined([[1, 0], [-1, 1]]), torch.tensor([0.5, 1.5], dtype=torch.float64))


def test_those_that_agree_are_added_exactly() -> None:
    gradients = torch.tensor([[1.0, 2.0], [0.3, 0.1], [0.0, 5.0]])
    assert Projection().coefficients(gradients @ gradients.T, 7).tolist() == [1, 1, 1]


def test_a_gradient_of_nothing_conflicts_with_nobody() -> None:
    assert combined([[0, 0], [-1, 1]]).tolist() == [-1, 1]


def test_opposite_gradients_cancel() -> None:
    assert combined([[1, -2], [-2, 4]]).abs().max() < 1e-12


def by_the_paper(rows: Tensor, step: int) -> Tensor:
    """Algorithm 1 on the vectors themselves."""
    from random import Random

    draw, total = Random(step), torch.zeros_like(rows[0])
    for i in range(len(rows)):
        mine, others = rows[i].clone(), [j for j in range(len(rows)) if j != i]
        draw.shuffle(others)
        for j in others:
            mine -= min(0.0, float(mine @ rows[j])) / float(rows[j] @ rows[j]) * rows[j]
        total += mine
    return total


def test_four_losses_are_projected_as_the_paper_does() -> None:
    orders = set()
    rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    for number in range(5):
        found = Projection().coefficients(rows @ rows.T, number) @ rows
        torch.testing.assert_close(found, by_the_paper(rows, number))
        orders.add(round(float(found.sum()), 9))
    assert len(orders) > 1, "the order is drawn anew at every step"


# --- projection, in training


@pytest.fixture(scope="module")
def projected() -> dict[str, Tensor]:
    return step(make_task(CONFLICT, "projection"), whole_batch())


def test_no_conflict_is_left_on_shared_parameters_and_others_are_as_ever(projected: dict[str, Tensor]) -> None:
    shared, own = apart(CONFLICT)
    first, second = (flat(gradients, shared) for gradients in own.values())
    assert float(first @ second) < 0
    assert any("image_encoder" in name for name in shared)
    found = flat(projected, shared)
    expected = (
        first - (first @ second) / (second @ second) * second + second - (first @ second) / (first @ first) * first
    )
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    assert float(found @ first) > -1e-10
    assert float(found @ second) > -1e-10
    plain = step(make_task(CONFLICT), whole_batch())
    alone = plain.keys() - set(shared)
    assert any("decoder" in name for name in alone)
    assert_same({n: projected[n] for n in alone}, {n: plain[n] for n in alone})
    assert float((flat(plain, shared) - found).abs().max()) > 1e-3


def test_micro_batches_are_projected_as_the_whole(projected: dict[str, Tensor]) -> None:
    assert_same(step(make_task(CONFLICT, "projection", micro_batch_size=3), whole_batch()), projected)


def test_recomputed_blocks_are_projected_as_the_whole() -> None:
    vit = {"name": "vit", "dim": 16, "depth": 2, "heads": 2, "patch_size": 8}

    def gradients(again: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        task = VisionLanguageTask(
            image_encoder=vit, text_encoder={"name": "rnn", "dim": 12}, checkpoint_blocks=again, embed_dim=8,
            decoder={"name": "rnn", "dim": 16}, losses=CONFLICT, balance="projection", vocab_size=20,
        )  # fmt: skip
        return step(task.double(), whole_batch())

    assert_same(gradients(again=True), gradients(again=False))


def test_accumulated_gradients_are_projected_once() -> None:
    """Twice the same batch, at half its weight: the same gradient, and the same projection."""
    once = step(make_task(CONFLICT, "projection"), whole_batch())
    assert_same(step(make_task(CONFLICT, "projection"), whole_batch(), whole_batch()), once)


def test_clipping_comes_after_projecting(projected: dict[str, Tensor]) -> None:
    clipped = step(make_task(CONFLICT, "projection"), whole_batch(), gradient_clip_val=0.1)
    norm = torch.stack([gradient.norm() for gradient in projected.values()]).norm()
    assert norm > 0.1
    assert_same(clipped, {name: gradient * 0.1 / norm for name, gradient in projected.items()}, 1e-6)


def test_without_conflict_the_gradient_is_the_plain_one_bit_by_bit() -> None:
    twice = {"contrastive": {}, "tests.training.balancing.test_policies:Same": {}}
    plain, found = (step(make_task(twice, balance), whole_batch()) for balance in ("fixed", "projection"))
    assert plain.keys() == found.keys()
    assert all(torch.equal(found[name], gradient) for name, gradient in plain.items())


class Same(ContrastiveLoss):
    """The contrastive loss, once more."""


def test_bfloat16_is_projected_too() -> None:
    task = make_task(CONFLICT, "projection").float()
    found = step(task, whole_batch(), precision="bf16-mixed")
    expected = step(make_task(CONFLICT, "projection").float(), whole_batch())
    names = [name for name in expected if "image_encoder" in name]
    assert torch.cosine_similarity(flat(found, names), flat(expected, names), dim=0) > 0.95


@pytest.mark.slow
def test_compiled_towers_are_run_backwards_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    from velm.training import task as module
    from velm.training.memory.compile import compile_tower

    torch._dynamo.reset()
    monkeypatch.setattr(module, "compile_tower", lambda tower: compile_tower(tower, backend="aot_eager"))
    plain = step(make_task(CONFLICT, "projection"), whole_batch())
    assert_same(step(make_task(CONFLICT, "projection", compile=True), whole_batch()), plain)


# --- uncertainty


def test_the_sum_and_its_gradient_are_those_of_the_paper() -> None:
    policy = Uncertainty(losses=["a", "b"])
    for s, value in zip(policy.parameters(), (0.4, -1.0), strict=True):
        s.data.fill_(value)
    losses = {"a": torch.tensor(3.0, requires_grad=True), "b": torch.tensor(0.2, requires_grad=True)}
    total = policy(losses)
    total.backward()
    weights = torch.tensor([-0.4, 1.0]).exp()
    assert float(total) == pytest.approx(float(weights[0] * 3 + 0.2 + weights[1] * 0.2 - 0.5), rel=1e-6)
    assert [float(s.grad) for s in policy.parameters()] == pytest.approx(
        [0.5 - 3 * float(weights[0]), 0.5 - 0.2 * float(weights[1])]
    )
    assert [float(loss.grad) for loss in losses.values()] == pytest.approx(weights.tolist())
    assert {name: float(f) for name, f in policy.factors().items()} == pytest.approx(
        dict(zip("ab", weights.tolist(), strict=True))
    )


def test_at_rest_every_loss_counts_one_half() -> None:
    policy, losses = Uncertainty(losses=["a", "b"]), {"a": torch.tensor(4.0), "b": torch.tensor(0.05)}
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.3)
    for _ in range(200):
        optimizer.zero_grad()
        policy(losses).backward()
        optimizer.step()
    assert {name: float(policy.factors()[name] * value) for name, value in losses.items()} == pytest.approx(
        {"a": 0.5, "b": 0.5}, rel=1e-3
    )


def test_it_is_trained_without_decay_and_saved(tmp_path: Path) -> None:
    task = make_task(THREE, "uncertainty")
    step(task, whole_batch(), max_steps=3, max_epochs=3)
    [group] = [group for group in task.optimizers().param_groups if group["name"].startswith("balance")]
    assert group["weight_decay"] == 0.0
    assert len(group["params"]) == 3
    saved = {name: value for name, value in task.state_dict().items() if name.startswith("balance.")}
    assert set(saved) == {f"balance.log_variance.{name}" for name in task.losses}
    assert float(saved["balance.log_variance.captioning"]) > 0, "2 x ln 20 is above 1/2: its weight falls"


def test_fixed_is_the_weighted_sum_with_no_parameter() -> None:
    task = make_task(THREE)
    assert not list(task.balance.parameters())
    assert not any(isinstance(callback, GradientProjection) for callback in task.configure_callbacks())
    task._trainer = Alone()  # type: ignore[assignment]
    total, parts = task.compute_losses(whole_batch())
    assert torch.equal(task.balance({name: task.losses.weights[name] * value for name, value in parts.items()}), total)


# --- what cannot be


@pytest.mark.parametrize("name", ["uncertainty", "projection"])
def test_a_single_loss_has_nothing_to_be_balanced_with(name: str) -> None:
    with pytest.raises(ConfigError, match=f"balance: {name} holds losses against each other.*lists contrastive alone"):
        make_task({"contrastive": {}}, name)


@pytest.mark.parametrize("name", ["uncertainty", "projection"])
def test_a_weight_of_nothing_is_not_balanced(name: str) -> None:
    with pytest.raises(ConfigError, match=f"balance: {name} cannot balance captioning, whose weight is 0"):
        make_task({"contrastive": {}, "captioning": {"weight": 0}}, name)


def test_an_unknown_policy_comes_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"Unknown balancing policy 'projecton'. Did you mean 'projection'\?"):
        build_policy("projecton", {"a": 1.0, "b": 1.0})
    with pytest.raises(ConfigError, match="has no option 'rate'"):
        build_policy({"name": "fixed", "rate": 1}, {"a": 1.0})


class Halved(Policy):
    """An own policy."""

    def forward(self, weighted: Any) -> Tensor:
        return sum(weighted.values()) / 2


def test_an_own_policy_comes_by_its_path() -> None:
    plain = step(make_task(THREE), whole_batch())
    halved = step(make_task(THREE, {"name": f"{__name__}:Halved"}), whole_batch())
    assert_same(halved, {name: gradient / 2 for name, gradient in plain.items()})


def test_projection_in_float16_is_refused() -> None:
    trainer = lightning.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    monkey = type("Trainer", (), {"strategy": trainer.strategy, "precision": "16-mixed"})
    with pytest.raises(ConfigError, match=r"--trainer.precision=bf16-mixed"):
        GradientProjection().setup(monkey(), make_task(CONFLICT, "projection"), "fit")  # type: ignore[arg-type]


def test_projection_of_shards_is_refused() -> None:
    strategy = FSDP2Strategy()
    with pytest.raises(ConfigError, match=r"which FSDP2Strategy shards: use --trainer.strategy=ddp"):
        GradientProjection().setup(type("T", (), {"strategy": strategy})(), make_task(CONFLICT, "projection"), "fit")  # type: ignore[arg-type]


# --- which parameters are shared


def test_shared_are_those_that_two_losses_reach() -> None:
    a, b, c = (torch.nn.Parameter(torch.tensor(float(value))) for value in (1, 2, 3))
    losses = {"first": a * b, "second": b.exp() + c, "third": 2 * b}
    assert shared_parameters(losses, [a, b, c]) == [b]
    assert loss_gradient(losses["first"], [a, b, c]).tolist() == [2, 1, 0]
    assert a.grad is None
    products = dot_products([torch.tensor([1.0, 2.0]), torch.tensor([3.0, -1.0])])
    assert products.tolist() == [[5, 1], [1, 10]]


# --- two devices

CASES = [
    ("projection", "ddp", None),
    ("projection", "ddp", 3),
    ("uncertainty", "ddp", None),
    ("uncertainty", "fsdp2", None),
]


def worker(rank: int, port: int, folder: Path) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(rank), "NODE_RANK": "0"}
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank)}
    torch.set_num_threads(1)
    mine = whole_batch()[rank * 4 : (rank + 1) * 4]
    for number, (balance, name, micro) in enumerate(CASES):
        ddp = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
        strategy = ddp if name == "ddp" else FSDP2Strategy(process_group_backend="gloo")
        task = make_task(THREE, balance, micro_batch_size=micro)
        torch.save(step(task, mine, devices=2, strategy=strategy), folder / f"{number}-{rank}.pt")


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(worker, args=(port, folder), nprocs=2)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(CASES)), ids=["-".join(map(str, case)) for case in CASES])
def test_two_devices_take_the_step_of_one(number: int, of_two_processes: Path) -> None:
    balance = CASES[number][0]
    expected = step(make_task(THREE, balance), whole_batch())
    first, second = (torch.load(of_two_processes / f"{number}-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert_same(first, expected)
    if balance == "projection":
        plain = step(make_task(THREE), whole_batch())
        assert max(float((plain[n] - expected[n]).abs().max()) for n in plain) > 1e-3, "there is a conflict"
