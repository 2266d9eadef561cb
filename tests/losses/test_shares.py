"""Losses whose batch lies on 2 and 4 processes are those of one with all of it, and move what docs/training.md says."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torch import distributed as dist
from torch.nn.functional import normalize

from velm.losses.alignment import ContrastiveLoss, SigmoidLoss
from velm.losses.base import Loss
from velm.losses.captioning import CaptioningLoss
from velm.losses.distillation import DistillationLoss
from velm.losses.tiled import tiles
from velm.losses.weighted import WeightedLosses
from velm.negatives import NegativeEmbeddings
from velm.outputs import Batch, JointEmbeddings, TeacherEmbeddings, VisionLanguageOutput

WIDTH = 5


def distillation_with_maps() -> DistillationLoss:
    torch.manual_seed(0)
    return DistillationLoss(teacher="a.ckpt", teacher_dim=WIDTH, embed_dim=WIDTH)


CASES: dict[str, Any] = {
    "contrastive": ContrastiveLoss,
    "contrastive_100": lambda: ContrastiveLoss(temperature=0.01),
    "contrastive_hard": lambda: ContrastiveLoss(hard_negatives=2),
    "sigmoid": SigmoidLoss,
    "distillation": lambda: DistillationLoss(teacher="a.ckpt"),
    "distillation_maps": distillation_with_maps,
}
DTYPES = {"float32": torch.float32, "float64": torch.float64}
IDS = {"distinct": list(range(24)), "shared": [i % 9 for i in range(24)], "one": [0] * 24}


def result(loss: Loss, dtype: torch.dtype, ids: list[int], rows: slice, group: Any = None) -> list[Tensor]:
    """The value and the gradients of images, texts, hard negatives and the loss's scalars, from some rows."""
    generator = torch.Generator().manual_seed(0)
    whole = (normalize(torch.randn(24, WIDTH, generator=generator, dtype=torch.float64), dim=1) for _ in range(2))
    image, text = (each.to(dtype)[rows].requires_grad_() for each in whole)
    teacher = TeacherEmbeddings(*torch.randn(2, 24, WIDTH, generator=generator), scale=10.0).map(
        lambda each: each[rows]
    )
    batch = Batch(images=None, tokens=None, mask=None, image_ids=torch.tensor(ids)[rows], teacher=teacher)
    negative = torch.randn(24, 2, WIDTH, generator=generator).to(dtype)[rows].requires_grad_()
    valid = (torch.arange(48).view(24, 2) % 5 > 0)[rows]  # one of five is missing
    output = VisionLanguageOutput(embeddings=JointEmbeddings(image, text, NegativeEmbeddings(negative, valid)))
    value = loss.to(dtype)(output, batch, group)
    with torch.no_grad():
        torch.testing.assert_close(loss(output, batch, group), value)
    inputs = [image, text, negative, *loss.parameters()]
    return [value.detach(), *torch.autograd.grad(value, inputs, allow_unused=True, materialize_grads=True)]


class Counted:
    """Bytes that this rank hands to others, as the algorithms of the collectives have it."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.total = 0.0
        share = {
            "all_gather_into_tensor": lambda size, whole, own: (size - 1) * own.nbytes,
            "all_to_all_single": lambda size, parts, whole, *rows: (size - 1) / size * whole.nbytes,
            "all_reduce": lambda size, values, operation: 2 * (size - 1) / size * values.nbytes,
        }
        for name, cost in share.items():
            patch.setattr(dist, name, self._counting(getattr(dist, name), cost))
        send = dist.batch_isend_irecv

        def sending(operations: list) -> list:
            self.total += sum(each.tensor.nbytes for each in operations if each.op is dist.isend)
            return send(operations)

        patch.setattr(dist, "batch_isend_irecv", sending)

    def _counting(self, function: Any, cost: Any) -> Any:
        def counting(*args: Any, group: Any) -> Any:
            self.total += cost(dist.get_world_size(group), *args)
            return function(*args, group=group)

        return counting


def formula(name: str, size: int, rows: int, number: int) -> float:
    """Bytes a rank sends in a step, as docs/training.md has it; `number` bytes a float."""
    pair = 2 * WIDTH * number + 8  # a text, its gradient, its image's id
    counts = (size - 1) * 8  # how many rows each rank has
    if name == "distillation":  # a text, its gradient, the teacher's text; two terms
        return 2 * counts + (size - 1) * rows * (3 * WIDTH + 8) * number + 2 * (size - 1) / size * 3 * number
    if name.startswith("contrastive"):
        return counts + (size - 1) * rows * (pair + 6 * number) + 2 * (size - 1) / size * 2 * number
    return counts + (size - 1) * rows * pair + rows * WIDTH * number + 2 * (size - 1) / size * 3 * number


def worker(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    tiles.tile_size = lambda _: (4, 5)
    store = f"file://{folder}/store"
    limit = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=4, timeout=limit)
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    for size, group in ((4, dist.group.WORLD), (2, pairs[rank // 2])):
        rows = 24 // size
        mine = slice(dist.get_rank(group) * rows, (dist.get_rank(group) + 1) * rows)
        found: dict[str, list[Tensor]] = {}
        for name, make in CASES.items():
            for kind, dtype in DTYPES.items():
                for shared, ids in IDS.items():
                    found[f"{name} {kind} {shared}"] = result(make(), dtype, ids, mine, group)
            with pytest.MonkeyPatch.context() as patch:
                counted = Counted(patch)
                image, text = (torch.ones(rows, WIDTH, requires_grad=True) for _ in range(2))
                teacher = TeacherEmbeddings(torch.ones(rows, WIDTH), torch.ones(rows, WIDTH), scale=10.0)
                batch = Batch(None, None, None, image_ids=torch.arange(rows) + rank, teacher=teacher)
                make()(VisionLanguageOutput(embeddings=JointEmbeddings(image, text)), batch, group).backward()
                found[f"{name} bytes"] = [torch.tensor(counted.total)]
        torch.save(found, folder / f"{size}_{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_processes(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[dict[str, list[Tensor]]]]:
    """What each of 4 processes, and each of 2 (twice), has found."""
    folder = tmp_path_factory.mktemp("shares")
    mp.spawn(worker, args=(folder,), nprocs=4)
    return {size: [torch.load(folder / f"{size}_{rank}.pt") for rank in range(4)] for size in (2, 4)}


@pytest.mark.slow
@pytest.mark.parametrize("ids", IDS)
@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("size", [2, 4])
def test_shares_are_the_whole(size: int, name: str, kind: str, ids: str, of_processes: dict) -> None:
    value, *embeddings, scalars = _split(result(CASES[name](), DTYPES[kind], IDS[ids], slice(None)))
    exact = 1e-10 if kind == "float64" else 1e-5 if "100" in name else 1e-6
    for rank, found in enumerate(of_processes[size]):
        of_rank, *theirs, of_scalars = _split(found[f"{name} {kind} {ids}"])
        torch.testing.assert_close(of_rank, value, rtol=exact, atol=exact)
        torch.testing.assert_close(of_scalars, scalars, rtol=exact, atol=exact)
        rows = 24 // size
        first = (rank % size) * rows
        for mine, whole in zip(theirs, embeddings, strict=True):  # DDP's mean over ranks divides again
            torch.testing.assert_close(mine / size, whole[first : first + rows], rtol=exact, atol=exact)


def _split(found: list[Tensor]) -> list[Any]:
    return [*found[:4], found[4:]]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "distillation_maps"])
@pytest.mark.parametrize("size", [2, 4])
def test_what_moves_is_what_the_docs_say(size: int, name: str, of_processes: dict) -> None:
    for found in of_processes[size]:
        assert found[f"{name} bytes"][0].item() == pytest.approx(formula(name, size, 24 // size, 4), rel=1e-6)


def test_losses_share_the_work_where_all_that_look_at_embeddings_can() -> None:
    class Plain(ContrastiveLoss):
        shares = False

    def share(*losses: Loss) -> bool:
        return WeightedLosses(dict(zip("ab", losses, strict=False)), {"a": 1.0, "b": 1.0}).share

    assert share(ContrastiveLoss(), CaptioningLoss())
    assert not share(ContrastiveLoss(), Plain())
