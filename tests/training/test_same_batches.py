"""What is in a batch is a function of seed, epoch, rank and world size: not of workers, and ranks only share it out."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from velm.data.shards.packing import pack
from velm.outputs import Batch
from velm.training.config import Augmentation
from velm.training.data import VisionLanguageData

SHAPES = {"name": "shapes", "train_size": 50, "val_size": 9, "test_size": 4, "image_size": 32}
OPTIONS: dict[str, Any] = {
    "image_size": 32, "batch_size": 8, "seed": 5,
    "augment": {"crop_scale": (0.5, 1.0), "flip": True, "color_jitter": 0.3},
}  # fmt: skip


@pytest.fixture(scope="module", params=["map-style", "shards"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    if request.param == "map-style":
        return SHAPES
    folder = str(tmp_path_factory.mktemp("shards") / "packed")
    pack(SHAPES, folder, shard_size=20)
    return {"name": "webdataset", "path": folder}


def loader(dataset: dict[str, Any], rank: int = 0, world_size: int = 1, split: str = "train", **changes: Any) -> Any:
    options = {**OPTIONS, "augment": Augmentation(**OPTIONS["augment"]), **changes}
    data = VisionLanguageData(dataset=dataset, **options)
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    return data.train_dataloader() if split == "train" else data._each_image_once(split)


def epochs(made: Any, count: int = 3) -> list[list[Batch]]:
    found = []
    for epoch in range(count):
        made.batch_sampler.set_epoch(epoch)
        found.append(list(made))
    return found


def digest(batch: Batch) -> str:
    """Of every tensor of a batch, bit for bit."""
    parts = [f"{name} {value.shape} {value.dtype}".encode() + value.contiguous().numpy().tobytes()
             for name, value in vars(batch).items() if isinstance(value, torch.Tensor)]  # fmt: skip
    return hashlib.sha256(b"".join(parts)).hexdigest()


def rows(batch: Batch) -> list[str]:
    """A digest of every sample, without the padding that its neighbours ask for."""
    assert batch.images is not None
    assert batch.tokens is not None
    assert batch.mask is not None
    return [
        hashlib.sha256(image.numpy().tobytes() + tokens[mask].numpy().tobytes() + bytes([int(i)])).hexdigest()
        for image, tokens, mask, i in zip(batch.images, batch.tokens, batch.mask, batch.image_ids, strict=True)
    ]


def test_three_epochs_with_any_number_of_workers(dataset: dict[str, Any]) -> None:
    alone = [[digest(batch) for batch in epoch] for epoch in epochs(loader(dataset))]
    assert len({each for epoch in alone for each in epoch}) == 18  # 50 images by 8: 6 steps, each its own
    for workers in (1, 2, 4):
        found = epochs(loader(dataset, num_workers=workers))
        assert [[digest(batch) for batch in epoch] for epoch in found] == alone


def test_two_ranks_share_the_steps_of_one(dataset: dict[str, Any]) -> None:
    alone = epochs(loader(dataset))
    ranks = [epochs(loader(dataset, rank=rank, world_size=2, batch_size=4)) for rank in (0, 1)]
    for epoch in range(3):
        assert len(ranks[0][epoch]) == len(ranks[1][epoch]) == len(alone[epoch])
        for step, whole in enumerate(alone[epoch]):
            together = rows(ranks[0][epoch][step]) + rows(ranks[1][epoch][step])
            assert sorted(together) == sorted(rows(whole))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_validation_takes_every_image_once(dataset: dict[str, Any], world_size: int) -> None:
    seen = [i for rank in range(world_size) for batch in loader(dataset, rank, world_size, split="val")
            for i in batch.image_ids.tolist()]  # fmt: skip
    assert sorted(seen) == list(range(9))
