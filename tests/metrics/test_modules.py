"""torchmetrics' classes: batches and devices change nothing; two processes agree with one."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from velm.metrics import java, modules
from velm.metrics.captioning import caption_metrics
from velm.metrics.classification import linear_probe, nearest_neighbours, top_k_accuracy
from velm.metrics.clipscore import clip_score, ref_clip_score
from velm.metrics.diversity import novelty
from velm.metrics.modules import (
    CaptionMetrics,
    ClipScore,
    ProbeAccuracy,
    RefClipScore,
    RetrievalMetrics,
    TopKAccuracy,
)
from velm.metrics.retrieval import fold_metrics, retrieval_metrics

N = 13


def pairs() -> tuple[Tensor, Tensor, Tensor]:
    """13 pairs of 5 images."""
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


def references() -> tuple[Tensor, Tensor]:
    """One or two a pair."""
    ids = torch.tensor([i for i in range(N) for _ in range(1 + i % 2)])
    return torch.randn(len(ids), 4, generator=torch.Generator().manual_seed(2)), ids


def feed_references(metric: RefClipScore, rows: list[int]) -> None:
    embeds, owners = references()
    mine = torch.cat([(owners == row).nonzero().flatten() for row in rows])
    ids = torch.tensor([rows.index(row) for row in owners[mine].tolist()])
    metric.update(pairs()[0][rows], pairs()[1][rows], embeds[mine], ids)


def features() -> tuple[Tensor, Tensor, Tensor]:
    """Of three classes; the first nine are learnt from."""
    labels = torch.arange(N) % 3
    noise = torch.randn(N, 3, generator=torch.Generator().manual_seed(3))
    return torch.eye(3)[labels] + 0.7 * noise, labels, torch.arange(N) < 9


def feed_features(metric: ProbeAccuracy, rows: list[int]) -> None:
    x, y, learnt = (each[rows] for each in features())
    for train in (True, False):
        if (learnt == train).any():
            metric.update(x[learnt == train], y[learnt == train], train=train)


def probed() -> dict[str, float]:
    x, y, learnt = features()
    logits = linear_probe(x[learnt], y[learnt], x[~learnt])
    votes = nearest_neighbours(x[learnt], y[learnt], x[~learnt], k=3)
    return {
        "linear_probe/top1": top_k_accuracy(logits, y[~learnt]),
        "nearest_neighbours/top1": top_k_accuracy(votes, y[~learnt]),
    }


def folded() -> dict[str, float]:
    image, text, ids = pairs()
    folds = fold_metrics(image[:5], text, ids, folds=2)
    return retrieval_metrics(image[:5], text, ids) | {f"folds/{name}": value for name, value in folds.items()}


KNOWN = ["a dog a dog", "the sea shore the sea shore", "no bird"]
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
    "folds": (
        lambda: RetrievalMetrics(folds=2),
        lambda metric, rows: metric.update(*(each[rows] for each in pairs()), text_ids=torch.tensor(rows)),
        folded,
    ),
    "novelty": (
        lambda: CaptionMetrics(training=KNOWN),
        lambda metric, rows: metric.update(*([each[i] for i in rows] for each in captions()), image_ids=rows),
        lambda: caption_metrics(*captions()) | {"caption/novel": novelty(captions()[0], KNOWN)},
    ),
    "ref_clip_score": (
        RefClipScore,
        feed_references,
        lambda: float(ref_clip_score(*pairs()[:2], *references()).double().mean()),
    ),
    "probes": (lambda: ProbeAccuracy(k=3), feed_features, probed),
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
EMPTY = [list(range(N)), []]


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
        for case, shares in (("uneven", UNEVEN), ("one is empty", EMPTY), ("doubled", [UNEVEN[0], [*UNEVEN[1], 0, 1]])):
            if case == "doubled" and name not in ("retrieval", "captions", "folds", "novelty"):
                continue
            metric = build()
            if shares[rank]:
                feed(metric, shares[rank])
            found[f"{name}/{case}"] = metric.compute()
            feed(metric, [0])  # unsynchronised again: own rows, and one more
            metric.reset()
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_agree_with_one(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, args=(port, str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert ranks[0] == ranks[1]
    assert len(ranks[0]) == 2 * len(FED) + 4
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


def test_forward_gives_the_metrics_of_a_batch() -> None:
    metric = TopKAccuracy(ks=(1,))
    assert metric(torch.eye(2), torch.tensor([0, 1])) == {"top1": 1.0}
    assert metric(torch.eye(2), torch.tensor([1, 0])) == {"top1": 0.0}
    assert metric.compute() == {"top1": 0.5}


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_embeds \(2, 2\), text_embeds \(2, 2\) and image_ids \(3,\)"):
        RetrievalMetrics().update(torch.eye(2), torch.eye(2), torch.arange(3))
    with pytest.raises(ValueError, match="1 hypotheses, 2 lists of references and 1 image_ids"):
        CaptionMetrics().update(["a"], [["a"], ["b"]])
    with pytest.raises(ValueError, match="java names 'bleu'; it takes some of meteor, spice"):
        CaptionMetrics(java=["bleu"])
    with pytest.raises(ValueError, match=r"features \(2, 2\) and labels \(3,\)"):
        ProbeAccuracy().update(torch.eye(2), torch.arange(3), train=True)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_probes_need_both_sets() -> None:
    metric = ProbeAccuracy()
    with pytest.raises(ValueError, match="ProbeAccuracy has seen nothing"):
        metric.compute()
    metric.update(torch.eye(2), torch.arange(2), train=False)
    with pytest.raises(ValueError, match="one set only: update it with train=True and with train=False"):
        metric.compute()


def test_missing_java_raises_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocoevalcap.spice.spice", None)
    with pytest.raises(java.JavaMissingError, match="SPICE needs pycocoevalcap"):
        CaptionMetrics(java=["spice"])
    monkeypatch.setattr("velm.metrics.modules.require_java", lambda *_: None)
    monkeypatch.setitem(modules._JAVA, "meteor", lambda captions, references, **_: len(captions) / 10)
    metric = CaptionMetrics(java=["meteor"])
    metric.update(["a dog", "a cat"], [["a dog"], ["a bird"]])
    assert metric.compute()["caption/meteor"] == 0.2
