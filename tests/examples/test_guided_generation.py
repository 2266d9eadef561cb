"""examples/guided_generation: laws of its diffusion and its guide, and all its commands in small."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import velm
from examples.guided_generation import run
from examples.guided_generation.compare import Painter, compare, page
from examples.guided_generation.diffusion import add_noise, ddim, denoise, loss, more_noise, signal_and_noise
from examples.guided_generation.guide import best_of, guided, similarity, to_images, to_pixels
from examples.guided_generation.train import load, save, train
from examples.guided_generation.unet import UNet

DATASET = {
    "name": "shapes", "objects": 1, "image_size": 32,
    "train_size": 16, "val_size": 4, "test_size": 4, "heldout_size": 4, "colours": ["red", "green", "blue"],
}  # fmt: skip
NETWORK = {"widths": [8, 16], "patch": 4}
TEXTS = ["a red circle", "a small blue square"]


@pytest.fixture(scope="module")
def network() -> UNet:
    return train(DATASET, NETWORK, steps=30, batch_size=8, lr=5e-3)


@pytest.fixture
def pipeline(write_checkpoint) -> velm.Pipeline:
    return velm.load(write_checkpoint(data={"dataset": DATASET}))


def noise(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed))


def test_signal_and_noise_keep_the_variance() -> None:
    alpha, sigma = signal_and_noise(torch.linspace(0, 1, 11))
    torch.testing.assert_close(alpha.square() + sigma.square(), torch.ones(11, 1, 1, 1))
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert alpha[-1].abs() < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_ddim_that_sees_the_true_image_follows_its_noise_back_to_it(steps: int) -> None:
    image, start = noise(seed=1).clamp(-1, 1), noise()
    path = []

    def see(noisy: torch.Tensor, time: float) -> torch.Tensor:
        path.append((noisy, add_noise(image, start, time)))
        return image

    torch.testing.assert_close(ddim(see, start, steps=steps), image)
    for came, expected in path:
        torch.testing.assert_close(came, expected, atol=1e-4, rtol=0)


def test_noise_in_two_parts_is_noise_once() -> None:
    alpha, sigma = signal_and_noise(0.7)
    image, zero = noise(), torch.zeros(2, 3, 32, 32)
    torch.testing.assert_close(more_noise(signal_and_noise(0.4)[0] * image, 0.4, 0.7, zero), alpha * image)
    kept, added = more_noise(signal_and_noise(0.4)[1] * image, 0.4, 0.7, zero), more_noise(zero, 0.4, 0.7, image)
    torch.testing.assert_close(kept.square() + added.square(), (sigma * image).square())


def test_training_lowers_the_loss(network: UNet) -> None:
    records = velm.datasets.build(DATASET).split("val")
    images = to_pixels(np.stack([record.image for record in records]))
    torch.manual_seed(0)
    with torch.no_grad():
        before = loss(UNet(**NETWORK), images, torch.Generator().manual_seed(0))
        assert loss(network, images, torch.Generator().manual_seed(0)) < 0.9 * before


def test_a_network_is_the_same_from_its_file(network: UNet, tmp_path: Path) -> None:
    save(network, NETWORK, tmp_path / "folder" / "network.pt")
    with torch.no_grad():
        again = denoise(load(tmp_path / "folder" / "network.pt"), noise(), 0.5)
        assert torch.equal(again, denoise(network, noise(), 0.5))


def test_pixels_and_images_are_inverse() -> None:
    images = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3) * 2
    assert np.array_equal(np.stack(to_images(to_pixels(images))), images)


def test_similarity_of_a_finished_image_is_the_score_of_the_pipeline(pipeline: velm.Pipeline) -> None:
    images = [record.image for record in velm.datasets.build(DATASET).split("test")[:2]]
    found = similarity(pipeline, TEXTS)(to_pixels(np.stack(images)))
    torch.testing.assert_close(found.detach(), pipeline.score(images, TEXTS).diagonal(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("repeats", [1, 2])
def test_guidance_raises_the_similarity_from_the_same_noise(
    network: UNet, pipeline: velm.Pipeline, repeats: int
) -> None:
    cosines = similarity(pipeline, TEXTS)
    unguided = ddim(partial(denoise, network), noise(), steps=5)
    generator = torch.Generator().manual_seed(0)
    steered = ddim(guided(network, cosines, 0.1), noise(), steps=5, repeats=repeats, generator=generator)
    assert (cosines(steered) > cosines(unguided)).all()


def test_guidance_of_strength_0_changes_nothing(network: UNet, pipeline: velm.Pipeline) -> None:
    steered = ddim(guided(network, similarity(pipeline, TEXTS), 0.0), noise(), steps=3)
    unguided = ddim(lambda noisy, time: denoise(network, noisy, time).clamp(-1, 1), noise(), steps=3)
    torch.testing.assert_close(steered, unguided)


def test_the_best_of_n_has_the_highest_score(pipeline: velm.Pipeline) -> None:
    images = [record.image for record in velm.datasets.build(DATASET).split("test")]
    scores = pipeline.score(images, TEXTS[:1]).flatten()
    assert np.array_equal(best_of(pipeline, images, TEXTS[0]), images[int(scores.argmax())])


def test_the_same_seed_gives_the_same_images(network: UNet, pipeline: velm.Pipeline) -> None:
    painter = Painter(network, pipeline, 32, steps=2, repeats=2)
    for guidance in (False, True):
        first, again = (np.stack(painter.paint(TEXTS, guidance=guidance)) for _ in range(2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, np.stack(painter.paint(TEXTS, guidance=guidance, candidate=1)))


def test_the_judge_reads_every_image_of_the_page(network: UNet, pipeline: velm.Pipeline, monkeypatch) -> None:
    records = velm.datasets.build(DATASET).split("test")[:2]
    monkeypatch.setattr(pipeline, "caption", lambda images: [records[0].texts[1]] * len(images))
    results = compare(Painter(network, pipeline, 32, steps=2), pipeline, records, n=2)
    assert [result.shown for result in results.values()] == [[True, False]] * 5
    assert page(records, results).count("border-color: green") == 5


def test_every_command_in_small(write_checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = yaml.safe_load((run.HERE / "config.yaml").read_text())
    checkpoint = str(write_checkpoint(data={"dataset": DATASET}))
    config |= {"dataset": DATASET, "network": NETWORK, "candidates": 2, "prompts": 3}
    config |= {"files": {"network": str(tmp_path / "network.pt"), "guide": checkpoint, "judge": checkpoint}}
    config["training"] |= {"steps": 2, "batch_size": 4}
    config["sampling"]["steps"] = 2
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    options = ["--config", str(tmp_path / "config.yaml"), "--output", str(tmp_path)]

    run.main(["train", *options])
    run.main(["draw", "a red circle", *options])
    run.main(["compare", *options])
    assert (tmp_path / "a_red_circle.png").is_file()
    figures = json.loads((tmp_path / "compare.json").read_text())
    assert set(figures) == {"unguided", "unguided, best of 2", "guided", "guided, best of 2", "drawn"}
    assert (tmp_path / "compare.html").read_text().count("<img") == 5 * 3
    assert Image.open(tmp_path / "compare.png").size == (3 * 32, 5 * 32)
    assert "drawn" in capsys.readouterr().out


def test_the_data_of_the_guide_is_what_the_network_sees(network: UNet, tmp_path: Path) -> None:
    save(network, NETWORK, tmp_path / "network.pt")
    options = yaml.safe_load((run.HERE / "guide.yaml").read_text())["data"]["dataset"]
    options |= {"network": str(tmp_path / "network.pt"), "dataset": DATASET}
    drawn, seen, again = (velm.datasets.build(each).split("val") for each in (DATASET, options, options))
    assert [record.texts for record in seen] == [record.texts for record in drawn]
    for one, other, image in zip(seen, again, drawn, strict=True):
        assert np.array_equal(one.image, other.image)
        assert one.image.shape == image.image.shape
        assert not np.array_equal(one.image, image.image)
