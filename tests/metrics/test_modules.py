"""torchmetrics' classes: batches and devices change nothing; two processes agree with one."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from velm.metrics.captioning import caption_metrics
from velm.metrics.classification import top_k_accuracy
from velm.metrics.clipscore import clip_score
from velm.metrics.modules import CaptionMetrics, ClipScore, RetrievalMetrics, TopKAccuracy
from velm.metrics.retrieval import retrieval_metrics

N = 13


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """13 pairs of 5 pictures."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(N) % 5
    image = torch.randn(5, 4, generator=generator)
    return image[ids], image[ids] + torch.randn(N, 4, generator=generator), ids


def captions() -> tuple[list[str], list[list[str]]]:
    words = ["a dog", "two „cats“", "the sea\nshore", "a red bird", "naïve café"]
    return [f"{words[i % 5]} {words[i % 3]}" for i in range(N)], [
        [f"{words[i % 5]} {words[k]}" for k in range(1 + i % 3)] for i in range(N)
    ]


def scores() -> tuple[Tensor, Tensor]:
    return torch.rand(N, 7, generator=torch.Generator().manual_seed(1)), torch.arange(N) % 7


Fed = dict[str, tuple[Callable[[], Any], Callable[[Any, list[int]], None], Callable[[], Any]]]
FED: Fed = {
    "retrieval": (
        RetrievalMetrics,
        lambda metric, rows: metric.update(*(each[rows] for each in pairs()), text_ids=torch.tensor(rows)),
        lambda: retrieval_metrics(pairs()[0][:5], pairs()[1], pairs()[2]),
    ),
    "captions": (
        CaptionMetrics,
        lambda metric, rows: metric.update(*([each[i] for i in rows] for each in captions()), image_ids=rows),
        lambda: caption_metrics(*captions()),
    ),
    "clip_score": (
        ClipScore,
        lambda metric, rows: metric.update(*(each[rows] for each in pairs()[:2])),
        lambda: float(clip_score(*pairs()[:2]).double().mean()),
    ),
    "top_k": (
        TopKAccuracy,
        lambda metric, rows: metric.update(*(each[rows] for each in scores())),
        lambda: {f"top{k}": pytest.approx(top_k_accuracy(*scores(), k)) for k in (1, 5)},
    ),
}
UNEVEN = [list(range(0, 9)), list(range(9, N))]
LAME = [list(range(N)), []]


@pytest.mark.parametrize("name", FED)
@pytest.mark.parametrize("batch", [1, 4, N])
def test_batches_change_nothing(name: str, batch: int) -> None:
    build, feed, expected = FED[name]
    metric = build()
    for start in range(0, N, batch):
        feed(metric, list(range(start, min(start + batch, N))))
    assert metric.compute() == pytest.approx(expected())


@pytest.mark.parametrize("name", FED)
def test_merged_states_are_those_of_everything(name: str) -> None:
    build, feed, expected = FED[name]
    first, second = build(), build()
    feed(first, UNEVEN[0])
    feed(second, UNEVEN[1])
    first.merge_state(second)
    assert first.compute() == pytest.approx(expected())


def _process(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    found = {}
    for name, (build, feed, _) in FED.items():
        for case, shares in (("uneven", UNEVEN), ("lame", LAME), ("doubled", [UNEVEN[0], [*UNEVEN[1], 0, 1]])):
            if case == "doubled" and name not in ("retrieval", "captions"):
                continue
            metric = build()
            if shares[rank]:
                feed(metric, shares[rank])
            found[f"{name}/{case}"] = metric.compute()
            feed(metric, [0])  # unsynchronised again: own rows, and one more
            metric.reset()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, args=(port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert len(ranks[0]) == 10
    for name, value in ranks[0].items():
        assert value == pytest.approx(FED[name.split("/")[0]][2]()), name


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_reset_forgets() -> None:
    metric = CaptionMetrics()
    metric.update(["a dog"], [["a dog"]])
    metric.reset()
    with pytest.raises(ValueError, match="CaptionMetrics has seen nothing: call update before compute"):
        metric.compute()


def test_without_ids_nothing_is_a_double() -> None:
    image, text, ids = pairs()
    metric = RetrievalMetrics(ks=(2,))
    metric.update(image, text, ids)
    metric.update(image, text, ids)
    assert metric.compute() == retrieval_metrics(image[:5], torch.cat([text, text]), torch.cat([ids, ids]), (2,))
    captions = CaptionMetrics()
    captions.update(["a dog", "a dog"], [["a dog"], ["a cat"]])
    assert captions.compute()["caption/exact_match"] == 0.5


def test_forward_gives_the_figures_of_a_batch() -> None:
    metric = TopKAccuracy(ks=(1,))
    assert metric(torch.eye(2), torch.tensor([0, 1])) == {"top1": 1.0}
    assert metric(torch.eye(2), torch.tensor([1, 0])) == {"top1": 0.0}
    assert metric.compute() == {"top1": 0.5}


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_embeds \(2, 2\), text_embeds \(2, 2\) and image_ids \(3,\)"):
        RetrievalMetrics().update(torch.eye(2), torch.eye(2), torch.arange(3))
    with pytest.raises(ValueError, match="1 hypotheses, 2 lists of references and 1 image_ids"):
        CaptionMetrics().update(["a"], [["a"], ["b"]])
