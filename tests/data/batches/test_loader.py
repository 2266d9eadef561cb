"""An epoch that was left goes on with the very next batch, whoever reads it."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from velm.data.bad_samples import BadSample
from velm.data.batches.loader import RESTARTS, LoadedBatch, Loader, ResumableLoader
from velm.data.batches.samplers import ImageBatchSampler
from velm.data.batches.samples import CaptionSamples
from velm.errors import DataError, RunFailedError, WorkerDiedError
from velm.registry import load_plugins, tokenizers


class Keys(Dataset):
    """A sample is its own (epoch, number)."""

    def __getitem__(self, key):
        return torch.tensor(key)


def loader(workers=0, samples=23, batch_size=4, seed=5):
    sampler = ImageBatchSampler(image_of=range(samples), batch_size=batch_size, seed=seed)
    return ResumableLoader(Keys(), batch_sampler=sampler, num_workers=workers, persistent_workers=workers > 0)


def epoch(source, number):
    source.batch_sampler.set_epoch(number)
    return [batch.tolist() for batch in source]


@pytest.mark.parametrize(("before", "after"), [(0, 0), (0, 2), (2, 0), (2, 1)])
@pytest.mark.parametrize("taken", [1, 3, 5])
def test_it_goes_on_with_the_next_batch(before, after, taken):
    whole = [epoch(loader(), number) for number in range(3)]
    first = loader(before)
    assert epoch(first, 0) == whole[0]
    first.batch_sampler.set_epoch(1)
    batches = iter(first)
    assert [next(batches).tolist() for _ in range(taken)] == whole[1][:taken]
    state = first.state_dict()
    assert state == {"taken": taken, "of": 6, "plan": first.batch_sampler.plan}

    second = loader(after)
    second.load_state_dict(state)
    assert epoch(second, 1) == whole[1][taken:]
    assert second.state_dict() == {"taken": 6, "of": 6, "plan": second.batch_sampler.plan}
    assert epoch(second, 2) == whole[2]


def test_a_whole_epoch_is_followed_by_the_next():
    source = loader()
    epoch(source, 0)
    again = loader()
    again.load_state_dict(source.state_dict())
    assert epoch(again, 1) == epoch(loader(), 1)
    fresh = loader()
    fresh.load_state_dict({"taken": 0, "of": 6})
    assert len(epoch(fresh, 0)) == len(fresh) == 6


def test_nothing_is_fetched_before_the_epoch_is_known():
    """Lightning asks for an iterator first and sets the epoch afterwards; workers would have fetched epoch 0."""
    source = loader(workers=2)
    batches = iter(source)
    source.batch_sampler.set_epoch(4)
    assert [batch.tolist() for batch in batches] == epoch(loader(), 4)


def test_a_place_in_another_epoch_is_refused():
    other = loader(batch_size=8)
    with pytest.raises(DataError, match="stopped after 2 of the 6 batches of an epoch, and an epoch has 3 now"):
        other.load_state_dict({"taken": 2, "of": 6})
    other.load_state_dict({"taken": 6, "of": 6})  # a whole epoch has no place in it
    assert len(epoch(other, 1)) == 3


class Mortal(Keys):
    """Its worker is killed by the system where it reads one of some samples, for the first `deaths` times."""

    def __init__(self, folder, samples, deaths):
        self.folder, self.samples, self.deaths = folder, samples, deaths

    def __getitem__(self, key):
        died = len(list(self.folder.iterdir()))
        if key[1] in self.samples and died < self.deaths:
            (self.folder / str(died)).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(key)


def mortal(folder, deaths):
    sampler = ImageBatchSampler(image_of=range(23), batch_size=4, seed=5)
    return ResumableLoader(Mortal(folder, {11}, deaths), batch_sampler=sampler, num_workers=1, persistent_workers=True)


@pytest.mark.slow  # torch looks after its workers every 5 seconds
def test_a_killed_worker_is_replaced_and_the_batches_are_the_same(tmp_path):
    source = mortal(tmp_path, deaths=2)
    with pytest.warns(
        UserWarning, match=r"because memory ran out. The workers are restarted .*data.num_workers below 1"
    ):
        assert [epoch(source, number) for number in range(2)] == [epoch(loader(), number) for number in range(2)]


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_worker_killed_while_it_sends_a_batch_is_replaced(error, monkeypatch):
    """The main process sees a broken connection, and not the message of the `DataLoader`."""
    worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,), daemon=True)
    worker.start()
    whole, failed = epoch(loader(), 0), []

    class Broken:
        """The first three batches; then the connection breaks."""

        def __init__(self, source):
            self.batches, self.left = iterate(source), 3
            self._workers = [] if failed else [worker]

        def __iter__(self):
            return self

        def __next__(self):
            if self.left == 0 and not failed:
                failed.append(worker.kill())
                raise error
            self.left -= 1
            return next(self.batches)

    iterate = DataLoader.__iter__
    monkeypatch.setattr(DataLoader, "__iter__", Broken)
    with pytest.warns(UserWarning, match="ended while it sent a batch: killed by the system"):
        assert epoch(loader(), 0) == whole
    assert failed


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*workers are restarted")
def test_workers_that_die_again_and_again_end_it(tmp_path):
    source = mortal(tmp_path, deaths=RESTARTS + 1)
    with pytest.raises(WorkerDiedError, match=r"DataLoader worker .*killed by the .*or give the job more memory"):
        epoch(source, 0)
    assert epoch(source, 1) == epoch(loader(), 1)


def test_the_handler_of_child_processes_is_left_alone():
    before = signal.getsignal(signal.SIGCHLD)
    epoch(loader(workers=1), 0)
    assert signal.getsignal(signal.SIGCHLD) == before


@pytest.mark.parametrize(("batch_size", "world_size"), [(4, 2), (8, 1), (2, 4)])
def test_the_same_global_batch_on_other_devices_goes_on(batch_size, world_size):
    def of_ranks(size, world, state=None):
        batches = []
        for rank in range(world):
            sampler = ImageBatchSampler(
                image_of=range(50), batch_size=size, drop_last=True, seed=5, rank=rank, world_size=world
            )
            source = ResumableLoader(Keys(), batch_sampler=sampler)
            if state is not None:
                source.load_state_dict(state)
            batches.append(epoch(source, 1))
        return [[key for part in parts for key in part] for parts in zip(*batches, strict=True)]

    sampler = ImageBatchSampler(image_of=range(50), batch_size=8, drop_last=True, seed=5)
    state = {**ResumableLoader(Keys(), batch_sampler=sampler).state_dict(), "taken": 2}
    assert of_ranks(batch_size, world_size, state) == of_ranks(8, 1)[2:]


def test_as_many_batches_of_another_size_are_no_such_place():
    def of(size):
        sampler = ImageBatchSampler(image_of=range(50), batch_size=size, drop_last=True, seed=5)
        return ResumableLoader(Keys(), batch_sampler=sampler)

    assert len(of(13)) == len(of(14)) == 3
    with pytest.raises(DataError, match=r"after 2 of the 3 batches of an epoch, and an epoch has 3 others now"):
        of(13).load_state_dict({**of(14).state_dict(), "taken": 2})


# --- bad samples travel beside the batch


class Partly(Keys):
    """Every third sample cannot be read."""

    def __getitems__(self, keys):
        return [BadSample(f"{key}", "unreadable", lost=0) if key % 3 == 0 else key for key in keys]


def readable(samples):
    return torch.tensor([sample for sample in samples if not isinstance(sample, BadSample)])


@pytest.mark.parametrize("workers", [0, 2])
def test_bad_samples_come_beside_their_batch(workers):
    source = Loader(Partly(), sampler=range(12), batch_size=4, collate_fn=readable, num_workers=workers)
    taken = [(batch.tolist(), [bad_sample.path for bad_sample in source.take_bad_samples()]) for batch in source]
    assert taken == [([1, 2], ["0", "3"]), ([4, 5, 7], ["6"]), ([8, 10, 11], ["9"])]
    assert source.take_bad_samples() == []
    assert sum(len(batch) for batch in source) == 8
    assert len(source.take_bad_samples()) == 4  # of a whole epoch


def test_a_loader_that_is_made_again_yields_the_same():
    source = Loader(Partly(), sampler=range(4), batch_size=4, collate_fn=readable)
    again = Loader(Partly(), sampler=range(4), batch_size=4, collate_fn=source.collate_fn)
    assert [batch.tolist() for batch in again] == [[1, 2]]
    assert len(again.take_bad_samples()) == 2


def test_pinning_pins_the_batch_and_keeps_its_bad_samples():
    class Pinnable:
        def pin_memory(self):
            return "pinned"

    bad_samples = [BadSample("a", "unreadable")]
    assert LoadedBatch(Pinnable(), bad_samples).pin_memory() == LoadedBatch("pinned", bad_samples)


class Quits(Keys):
    """Its worker ends by itself, as one does whose process cannot import what the main process can."""

    def __getitem__(self, key):
        os._exit(3)


def test_a_worker_that_ends_by_itself_is_not_told_as_want_of_memory():
    sampler = ImageBatchSampler(image_of=range(8), batch_size=4, seed=0)
    for source in (
        ResumableLoader(Quits(), batch_sampler=sampler, num_workers=1),
        Loader(Quits(), sampler=range(8), num_workers=1),
    ):
        with pytest.raises(RunFailedError, match=r"exit code 3.*printed above.*--data.num_workers=0") as error:
            list(source)
        assert not isinstance(error.value, WorkerDiedError)
        assert "memory" not in str(error.value)


def test_a_process_without_the_plugins_unpickles_samples_of_a_plugin_file(tmp_path):
    """What a spawned or forkserver worker does first."""
    (tmp_path / "own_data.py").write_text(
        "from velm.data.base import Record, Records\n\n\nclass Mine(Records):\n"
        "    def __len__(self):\n        return 2\n\n"
        "    def record(self, place):\n        return Record(str(place), None, (f'text {place}',))\n"
    )
    load_plugins([str(tmp_path / "own_data.py")])
    records = sys.modules["velm_plugin_own_data"].Mine()
    samples = CaptionSamples(records, tokenizer=tokenizers.build("byte"), transform=None)
    (tmp_path / "samples.pickle").write_bytes(pickle.dumps(samples))
    code = "import pickle; print(pickle.load(open('samples.pickle', 'rb')).records[1].texts[0])"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout == "text 1\n", done.stderr
