"""The sums of a plan: by hand, and as laws."""

from __future__ import annotations

from dataclasses import replace

import pytest

from velm.planning.advice import advise
from velm.planning.step import Costs, Machine, Setup, collectives, flops, memory, seconds

COSTS = Costs(
    weights=1000, learnt=1000, in_blocks=600, largest_block=100, averaged=0, of_losses=4, activations=(50.0, 10.0),
    forward_flops=(10.0, 0.0), backward_flops=(20.0, 0.0), sample_bytes=3, embed_bytes=8, rows=1, writes=True,
    shared=False, loss_bytes=(29.0, 0.0, 0.0), loss_flops=(6.0, 0.0, 0.0),
)  # fmt: skip


def test_memory_by_hand() -> None:
    told = memory(COSTS, Setup(gpus=2, batch=4))
    assert told["optimizer"] == 2000
    assert told["activations"] == 210
    assert told["similarities"] == 29 * 64
    assert told["embeddings"] == 2 * 8 * (8 + 4)
    assert told["total"] == sum(number for name, number in told.items() if name != "total")


def test_losses_that_share_divide_the_pairs_by_the_devices() -> None:
    alone, setup = memory(replace(COSTS, shared=True), Setup(gpus=1, batch=8)), Setup(gpus=2, batch=4)
    shared = replace(COSTS, shared=True)
    assert memory(shared, setup)["similarities"] * 2 == alone["similarities"] == 29 * 64
    assert memory(shared, setup)["embeddings"] == 8 * (2 * 4 + 8)
    assert flops(shared, setup)["losses"] * 2 == flops(COSTS, setup)["losses"]
    sent = {each.what: each for each in collectives(shared, setup)}
    assert sent["sentences"].bytes == sent["gradients of sentences"].bytes == 4 * 8


def test_pieces_keep_fewer_activations_and_cost_a_forward_pass() -> None:
    whole, pieces = Setup(gpus=1, batch=8), Setup(gpus=1, batch=8, piece=2)
    assert memory(COSTS, pieces)["activations"] == 110
    assert memory(COSTS, pieces)["total"] < memory(COSTS, whole)["total"]
    assert flops(COSTS, pieces)["forward"] == 2 * flops(COSTS, whole)["forward"]


def test_shards_divide_the_state() -> None:
    ddp, fsdp = (memory(COSTS, Setup(gpus=4, batch=2, sharded=sharded)) for sharded in (False, True))
    assert [fsdp[name] * 4 for name in ("weights", "gradients", "optimizer")] == [1000, 1000, 2000]
    assert fsdp["buckets"] == ddp["unsharded"] == 0


def test_one_device_sends_nothing_and_a_ring_sends_less_than_twice() -> None:
    assert collectives(COSTS, Setup(gpus=1, batch=4)) == []
    gradients = collectives(COSTS, Setup(gpus=8, batch=4))[-1]
    assert gradients.wire(8) == 2 * 1000 * 7 / 8


@pytest.mark.parametrize("gpus", [1, 2, 64, 1024])
def test_the_total_is_the_sum_of_its_parts(gpus: int) -> None:
    told = seconds(COSTS, Setup(gpus=gpus, batch=4), Machine(half=1e3, single=1e3))
    assert told["total"] == pytest.approx(sum(v for k, v in told.items() if k != "total"))


def test_advice_is_nothing_where_it_fits_and_the_largest_pieces_where_not() -> None:
    setup = Setup(gpus=1, batch=8)
    costs = replace(COSTS, loss_bytes=(0.0, 0.0, 0.0))
    whole = memory(costs, setup)["total"]
    fits = advise(costs, setup, whole, lambda: None)
    assert fits is not None
    assert fits.flags == ()
    pieces = advise(costs, setup, whole - 1, lambda: None)
    assert pieces is not None
    assert pieces.flags == ("--model.micro_batch_size=4",)
    assert advise(costs, setup, 100, lambda: None) is None
