"""The batcher: every input gets its own result, whatever shares its batch."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from velm.errors import RequestError
from velm.serving.batcher import Batcher, Kind

EVEN, ODD = Kind("even"), Kind("odd")


class Computer:
    """Doubles numbers; `batches` are those it saw; negative numbers fail; waits for `gate`."""

    def __init__(self) -> None:
        self.batches: list[tuple[Kind, list[int]]] = []
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, kind: Kind, items: list[int]) -> list[int]:
        self.gate.wait(10)
        self.batches.append((kind, list(items)))
        if min(items) < 0:
            raise ValueError(f"{min(items)} is negative")
        return [2 * item for item in items]


def run(test: Any, **options: Any) -> Any:
    """The value of `test(batcher, computer)`."""

    async def whole() -> Any:
        computer = Computer()
        batcher = Batcher(computer, **{"max_batch": 4, "max_wait": 0.005, "limit": 64, **options})
        batcher.start()
        try:
            return await asyncio.wait_for(test(batcher, computer), 20)
        finally:
            computer.gate.set()
            await batcher.close()

    return asyncio.run(whole())


def test_results_are_in_order_and_kinds_do_not_mix():
    async def test(batcher, computer):
        inputs = [(ODD if number % 2 else EVEN, number) for number in range(25)]
        assert await batcher.submit(inputs) == [2 * number for number in range(25)]
        for kind, items in computer.batches:
            assert len(items) <= 4
            assert {number % 2 for number in items} == {int(kind == ODD)}
        assert len(computer.batches) == 4 + 3

    run(test)


def test_inputs_that_arrive_while_it_computes_share_the_next_batch():
    async def test(batcher, computer):
        computer.gate.clear()
        answers = [asyncio.ensure_future(batcher.submit([(EVEN, number)])) for number in range(4)]
        await asyncio.sleep(0.02)
        answers += [asyncio.ensure_future(batcher.submit([(EVEN, number)])) for number in range(4, 7)]
        await asyncio.sleep(0.02)
        computer.gate.set()
        assert await asyncio.gather(*answers) == [[2 * number] for number in range(7)]
        assert [items for _, items in computer.batches] == [[0, 1, 2, 3], [4, 5, 6]]

    run(test)


def test_rows_of_a_batch_count_the_beams():
    async def test(batcher, computer):
        await batcher.submit([(Kind("wide", weight=3), number) for number in range(3)])
        assert [len(items) for _, items in computer.batches] == [1, 1, 1]

    run(test)


def test_a_bad_input_fails_alone():
    async def test(batcher, computer):
        answers = [batcher.submit([(EVEN, number)]) for number in (1, -2, 3)]
        found = await asyncio.gather(*answers, return_exceptions=True)
        assert found[0] == [2]
        assert isinstance(found[1], ValueError)
        assert found[2] == [6]

    run(test)


def test_a_full_queue_refuses_and_places_are_given_back():
    async def test(batcher, computer):
        with batcher.place(3), pytest.raises(RequestError, match="3 of 4 places are taken, and this request needs 2"):
            batcher.place(2).__enter__()
        with batcher.place(4) as place:
            assert await place.submit([(EVEN, 1)]) == [2]
        assert batcher.taken == batcher.coming == 0

    run(test, limit=4)


def test_an_input_whose_client_has_gone_is_not_computed():
    async def test(batcher, computer):
        computer.gate.clear()
        first = asyncio.ensure_future(batcher.submit([(EVEN, 0)]))
        await asyncio.sleep(0.02)

        async def ask() -> Any:
            with batcher.place() as place:
                return await place.submit([(EVEN, 1)])

        gone = asyncio.ensure_future(ask())
        last = asyncio.ensure_future(batcher.submit([(EVEN, 2)]))
        await asyncio.sleep(0)
        assert batcher.taken == 1
        gone.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert batcher.taken == 0
        computer.gate.set()
        assert [await first, await last] == [[0], [4]]
        assert [items for _, items in computer.batches] == [[0], [2]]

    run(test)


def test_a_batch_waits_for_inputs_that_are_being_read():
    async def test(batcher, computer):
        with batcher.place() as slow, batcher.place() as fast:
            answer = asyncio.ensure_future(fast.submit([(EVEN, 1)]))
            await asyncio.sleep(0.05)
            assert computer.batches == []
            assert await slow.submit([(EVEN, 2)]) == [4]
            assert await answer == [2]
        assert [items for _, items in computer.batches] == [[1, 2]]

    run(test, max_wait=10.0)


@pytest.mark.parametrize("max_wait", [0.0, 0.01])
def test_but_not_longer_than_max_wait(max_wait):
    async def test(batcher, computer):
        with batcher.place(), batcher.place() as fast:
            assert await fast.submit([(EVEN, 1)]) == [2]

    run(test, max_wait=max_wait)


def test_a_wrong_number_of_results_is_an_error():
    async def test(batcher, computer):
        batcher.compute = lambda kind, items: [1, 2, 3]
        with pytest.raises(RuntimeError, match="3 results of 1 inputs"):
            await batcher.submit([(EVEN, 1)])

    run(test)


def test_closing_cancels_what_waits():
    async def whole() -> None:
        computer = Computer()
        batcher = Batcher(computer, max_batch=1, max_wait=0.0, limit=9)
        batcher.start()
        computer.gate.clear()
        answers = [asyncio.ensure_future(batcher.submit([(EVEN, number)])) for number in range(3)]
        await asyncio.sleep(0.02)
        computer.gate.set()
        await batcher.close()
        found = await asyncio.gather(*answers, return_exceptions=True)
        assert all(isinstance(each, asyncio.CancelledError) or each == [0] for each in found)

    asyncio.run(whole())
