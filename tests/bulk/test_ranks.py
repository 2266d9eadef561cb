"""Shares: every part belongs to one process, whoever started it."""

from __future__ import annotations

import pytest

from velm.bulk.ranks import Share, launch, read_shard, share_of_process
from velm.errors import ConfigError


@pytest.mark.parametrize("total", [0, 1, 7, 12])
@pytest.mark.parametrize(("jobs", "ranks"), [(1, 1), (1, 3), (4, 1), (2, 3)])
def test_every_part_belongs_to_one_process(total, jobs, ranks):
    shares = [read_shard(f"{job}/{jobs}").within(rank, ranks, rank) for job in range(jobs) for rank in range(ranks)]
    parts = sorted(part for share in shares for part in share.parts(total))
    assert parts == list(range(total))
    assert {share.count for share in shares} == {jobs * ranks}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("3/2", "--shard 3/2 does not exist: the shards of 2 are 0/2 to 1/2"),
        ("2/2", "--shard 2/2 does not exist"),
        ("0/0", "the shards of 0 are none"),
        ("1", "--shard 1 is not I/N"),
        ("-1/2", "--shard -1/2 is not I/N"),
        ("a/b", "counted from 0, such as 0/4"),
    ],
)
def test_a_shard_that_does_not_exist(text, message):
    with pytest.raises(ConfigError, match=message):
        read_shard(text)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "1", "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SLURM = {
    "SLURM_JOB_NAME": "embed",
    "SLURM_JOB_ID": "7",
    "SLURM_NTASKS": "8",
    "SLURM_NTASKS_PER_NODE": "4",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
}


@pytest.mark.parametrize("variables", [TORCHRUN, SLURM], ids=["torchrun", "slurm"])
def test_launchers_give_the_rank(monkeypatch, variables):
    assert share_of_process(Share()) == Share()
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    share = share_of_process(Share())
    assert share == Share(5, 8, local_rank=1)
    assert (share.device("cuda"), share.device("cuda:3"), share.device("cpu")) == ("cuda:1", "cuda:3", "cpu")
    assert share_of_process(Share(1, 2)) == Share(13, 16, local_rank=1)


def test_slurm_variables_that_contradict_each_other(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(ConfigError, match=r"Use `--ntasks-per-node=8` instead\. Or name the share of each process"):
        share_of_process(Share())


def test_devices_that_are_not_there():
    with pytest.raises(ConfigError, match="--devices 2 needs --device cpu or cuda, which it counts; got --device mps"):
        launch(print, 2, "mps")


@pytest.mark.skipif("__import__('torch').cuda.is_available()", reason="there are GPUs")
def test_no_gpu():
    with pytest.raises(ConfigError, match="--devices 2 --device cuda: "):
        launch(print, 2, "cuda")
