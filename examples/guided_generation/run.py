"""Train a diffusion model, draw images of prompts, and judge them: `python -m examples.guided_generation.run`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image

import velm
from examples.guided_generation.compare import Painter, compare, page, sheet
from examples.guided_generation.train import load, save, train

HERE = Path(__file__).parent


def main(args: list[str] | None = None) -> None:
    """The commands train, draw and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=("train", "draw", "compare"))
    parser.add_argument("prompts", nargs="*", help="texts to draw")
    parser.add_argument("--config", type=Path, default=HERE / "config.yaml")
    parser.add_argument("--output", type=Path, default=Path("runs/guided_generation"), help="folder of what is made")
    options = parser.parse_args(args)
    config = yaml.safe_load(options.config.read_text(encoding="utf-8"))
    {"train": _train, "draw": _draw, "compare": _compare}[options.command](config, options)


def _train(config: dict[str, Any], options: argparse.Namespace) -> None:
    network = train(config["dataset"], config["network"], **config["training"])
    save(network, config["network"], config["files"]["network"])
    print(f"wrote {config['files']['network']}")


def _painter(config: dict[str, Any]) -> Painter:
    size = velm.datasets.build(config["dataset"]).image_size
    guide, network = velm.load(config["files"]["guide"]), load(config["files"]["network"])
    return Painter(network, guide, size, **config["sampling"])


def _draw(config: dict[str, Any], options: argparse.Namespace) -> None:
    _, images = _painter(config).best(options.prompts, guidance=True, n=config["candidates"])
    options.output.mkdir(parents=True, exist_ok=True)
    for prompt, image in zip(options.prompts, images, strict=True):
        path = options.output / f"{prompt.replace(' ', '_')}.png"
        Image.fromarray(image).save(path)
        print(f"{path}\t{prompt}")


def _compare(config: dict[str, Any], options: argparse.Namespace) -> None:
    records = velm.datasets.build(config["dataset"]).split("test")[: config["prompts"]]
    results = compare(_painter(config), velm.load(config["files"]["judge"]), records, config["candidates"])
    options.output.mkdir(parents=True, exist_ok=True)
    figures = {name: result.figures() for name, result in results.items()}
    (options.output / "compare.json").write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    (options.output / "compare.html").write_text(page(records, results), encoding="utf-8")
    sheet(results).save(options.output / "compare.png")
    for name, row in figures.items():
        print(f"{name:20}", *(f"{key} {value:.3f}" for key, value in row.items()), sep="  ")
    print(f"images: {options.output / 'compare.html'}")


if __name__ == "__main__":
    with torch.autocast("cpu", torch.bfloat16):
        main()
