"""Validation metrics are those of the whole split, for any batches and any number of ranks."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from velm import metrics
from velm.data.base import Record
from velm.losses.weighted import build_losses
from velm.model import build_model
from velm.pipeline import Pipeline
from velm.training.blind import blind_scores
from velm.training.config import ValidationConfig
from velm.training.data import VisionLanguageData
from velm.training.validation import SplitScores

SIZES = {"train_size": 4, "val_size": 5, "test_size": 1, "heldout_size": 0}
RECALLS = [f"{way}/recall@{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]

pytestmark = pytest.mark.filterwarnings("ignore")


def make_data() -> VisionLanguageData:
    dataset = {"name": "shapes", "objects": 2, "image_size": 32, **SIZES}
    return VisionLanguageData(dataset=dataset, image_size=16, batch_size=2, max_length=24)


@pytest.fixture(scope="module")
def data() -> VisionLanguageData:
    return make_data()


def make_scores(data: VisionLanguageData, *losses: str, **config: Any) -> SplitScores:
    torch.manual_seed(0)
    model = build_model(
        {
            "image_encoder": {"name": "cnn", "dim": 16, "widths": [8]},
            "text_encoder": {"name": "rnn", "dim": 12},
            "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2},
            "losses": dict.fromkeys(losses),
            "embed_dim": 8,
            "vocab_size": data.vocab_size,
        }
    )
    pipeline = Pipeline(model=model, tokenizer=data.tokenizer, transform=data.eval_transform, max_length=24)
    weighted = build_losses({name: {"weight": 0.5} for name in losses})
    return SplitScores(pipeline, data.records("val"), weighted, ValidationConfig(**config))


def measure(
    data: VisionLanguageData, *losses: str, batch_size: int = 2, **config: Any
) -> tuple[dict[str, float], SplitScores]:
    scores = make_scores(data, *losses, **{"captions": 3, "max_length": 5, **config})
    data.eval_batch_size = batch_size
    for batch in data.val_dataloader():
        scores.update(batch)
    return scores.compute(), scores


@pytest.mark.parametrize(
    ("losses", "recall", "captions"),
    [(["contrastive"], True, False), (["captioning"], False, True), (["triplet", "captioning"], True, True)],
)
def test_the_losses_decide_which_metrics_are_computed(
    data: VisionLanguageData, losses: list[str], recall: bool, captions: bool
) -> None:
    found, _ = measure(data, *losses)
    assert {"loss", "score", *losses} <= set(found)
    assert (set(RECALLS) <= set(found)) == ("text_to_image/median_rank" in found) == recall
    assert ("caption/cider" in found) == ("caption/exact_match" in found) == captions
    assert found["loss"] == pytest.approx(0.5 * sum(found[name] for name in losses))


def test_recall_and_captions_do_not_depend_on_the_batches(data: VisionLanguageData) -> None:
    (small, one), (large, other) = (measure(data, "contrastive", "captioning", batch_size=size) for size in (2, 5))
    compared = [name for name in small if "recall" in name or "rank" in name or "caption/" in name]
    assert len(compared) > 10
    assert {name: small[name] for name in compared} == pytest.approx({name: large[name] for name in compared})
    assert one.captions == other.captions


def test_recall_is_that_of_everything_encoded_one_by_one(data: VisionLanguageData) -> None:
    found, scores = measure(data, "contrastive")
    model, images, texts, owners = scores.pipeline.model, [], [], []
    data.eval_batch_size = 1
    with torch.no_grad():
        for row, batch in enumerate(data.val_dataloader()):
            images.append(model.embed_image(model.encode_image(batch.images))[0])
            for text in data.records("val")[row].texts:
                tokens = torch.tensor([data.tokenizer.encode(text)])
                texts.append(model.embed_text(model.encode_text(tokens, torch.ones_like(tokens, dtype=torch.bool)))[0])
                owners.append(row)
    assert len(texts) > len(images)
    expected = metrics.retrieval_metrics(torch.stack(images), torch.stack(texts), torch.tensor(owners))
    assert {name: found[name] for name in expected} == pytest.approx(expected)


SHARES = {
    "uneven": ([0, 3], [1, 4], [2]),
    "one rank has no images": ([0, 1, 2, 3, 4], [], []),
    "no rank has captions": ([3], [4], []),
}


def _process(rank: int, port: int, folder: str, world_size: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world_size)
    data = make_data()
    found = {}
    for name, shares in SHARES.items():
        images = [image for share in shares[rank::world_size] for image in share]
        scores, blind = update_with(data, images), update_with(data, images, blind=True)
        found[name] = ({**scores.compute(), **blind.compute()}, scores.captions, scores.embeds)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def update_with(data: VisionLanguageData, images: Sequence[int], blind: bool = False) -> SplitScores:
    scores = make_scores(data, "contrastive", "captioning", captions=3, max_length=5, blind=blind)
    if blind:
        scores = blind_scores(scores) or scores
    data.eval_batch_size = 1
    for row, batch in enumerate(data.val_dataloader()):
        if row in images:
            scores.update(batch)
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_change_no_bit(data: VisionLanguageData, tmp_path: Path, world_size: int) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(_process, args=(port, str(tmp_path), world_size), nprocs=world_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, shares in SHARES.items():
        alone = update_with(data, [image for share in shares for image in share])
        expected = {
            **alone.compute(),
            **update_with(data, [i for share in shares for i in share], blind=True).compute(),
        }
        assert "blind/captioning" in expected
        assert ("caption/cider" in expected) == (name != "no rank has captions")
        for rank in range(world_size):
            metrics, captions, embeds = torch.load(tmp_path / f"{rank}.pt")[name]
            assert metrics == expected, (name, rank)
            assert captions == alone.captions
            assert {key: len(rows) for key, rows in embeds.items()} == {k: len(v) for k, v in alone.embeds.items()}
    torch.set_num_threads(threads)


def test_the_gallery_may_hold_fewer_captions(data: VisionLanguageData, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    counted = Pipeline.embed_texts
    monkeypatch.setattr(Pipeline, "embed_texts", lambda self, texts: sizes.append(len(texts)) or counted(self, texts))
    measure(data, "contrastive", texts_per_image=1)
    measure(data, "contrastive", texts_per_image=0)
    assert sizes == [5, sum(len(record.texts) for record in data.records("val"))]


def test_the_first_images_are_captioned_no_longer_than_asked(data: VisionLanguageData) -> None:
    found, scores = measure(data, "captioning", captions=3, max_length=2)
    assert sorted(scores.captions) == [0, 1, 2]
    assert all(len(caption.split()) <= 2 for caption in scores.captions.values())
    references = [list(data.records("val")[row].texts) for row in range(3)]
    expected = metrics.caption_metrics([scores.captions[row] for row in range(3)], references)
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_the_score_is_the_mean_of_recalls_and_of_cider(data: VisionLanguageData) -> None:
    aligned, _ = measure(data, "contrastive")
    recall = sum(aligned[name] for name in RECALLS) / 6
    assert aligned["score"] == pytest.approx(recall)
    written, _ = measure(data, "captioning")
    assert written["score"] == pytest.approx(written["caption/cider"])
    both, _ = measure(data, "contrastive", "captioning")
    recall = sum(both[name] for name in RECALLS) / 6
    assert both["score"] == pytest.approx((recall + both["caption/cider"]) / 2)


def test_without_recall_and_captions_the_loss_is_the_score(data: VisionLanguageData) -> None:
    found, scores = measure(data, "captioning", captions=0)
    assert scores.captions == {}
    assert found["score"] == -found["loss"] < 0


def test_targets_are_the_references(data: VisionLanguageData) -> None:
    records = [
        SimpleNamespace(texts=("a dog",), targets=("ein Hund",)),
        SimpleNamespace(texts=("a cat",), targets=None),
    ]
    scores = make_scores(data, "captioning")
    scores.records = records  # type: ignore[assignment]
    scores.captions = {0: "ein Hund", 1: "a cat"}
    assert scores._captioning()["caption/exact_match"] == 1.0
    scores.captions = {0: "a dog", 1: "a cat"}
    assert scores._captioning()["caption/exact_match"] == 0.5


def test_an_answer_is_right_for_its_own_question_only(data: VisionLanguageData) -> None:
    scores = make_scores(data, "captioning")
    scores.records = [Record("a", None, ("colour ?", "shape ?", "colour ?"), ("red", "star", "crimson"))]
    scores.captions = {0: "star"}
    assert scores._captioning()["caption/exact_match"] == 1.0  # a decoder that looks at the image alone
    scores.pipeline.model.memory_sources = ("image", "text")
    assert scores._captioning()["caption/exact_match"] == 0.0
    scores.captions = {0: "crimson"}
    assert scores._captioning()["caption/exact_match"] == 1.0


def test_a_validation_has_all_kinds_of_questions_though_each_image_lists_them_in_the_same_order() -> None:
    sizes = {**SIZES, "val_size": 20}
    data = VisionLanguageData(dataset={"name": "shapes_questions", "image_size": 32, **sizes}, image_size=16)
    scores, records = make_scores(data, "captioning"), data.records("val")
    scores.pipeline.model.memory_sources = ("image", "text")
    samples = list(data._items("val", train=False))
    kinds = [{" ".join(text.split()[:2]) for text in texts} for texts in (
        [record.texts[0] for record in records], [records[s.image_id].texts[s.text_index] for s in samples]
    )]  # fmt: skip
    assert kinds == [{"what colour", "what shape"}, {"what colour", "what shape", "what size", "is there"}]
    for sample in samples:
        assert records[sample.image_id].targets[sample.text_index] in scores.references_of(sample.image_id)
        assert sample.tokens == data.tokenizer.encode(records[sample.image_id].texts[sample.text_index])


def test_a_validation_without_targets_has_first_captions(data: VisionLanguageData) -> None:
    assert {sample.text_index for sample in data._items("val", train=False)} == {0}


def test_every_image_of_a_batch_is_captioned_on_demand(data: VisionLanguageData) -> None:
    _, scores = measure(data, "contrastive", "captioning", captions=0)
    data.eval_batch_size = 5
    [batch] = data.val_dataloader()
    rows = scores.captions_of(batch)
    assert [row["image_id"] for row in rows] == [record.image_id for record in data.records("val")]
    assert [row["caption"] for row in rows] == [scores.captions[i] for i in range(5)]
