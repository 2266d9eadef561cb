"""A checkpoint beside its export to ONNX: embeddings and greedy captions of records of its dataset, in two processes.

    velm export runs/quickstart/best.ckpt --format onnx --output small
    python -m benchmarks.without_torch runs/quickstart/best.ckpt small

The second process cannot import torch: it reads the images and the texts itself, with `velm.onnx`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path, help="of velm export --format onnx")
    parser.add_argument("--split", default="test", help="of the checkpoint's dataset")
    parser.add_argument("--samples", type=int, default=200, help="records, evenly spaced")
    args = parser.parse_args()
    import velm
    from velm.data.opening import open_dataset
    from velm.data.text.vocabulary import sampled_indices

    pipeline = velm.load(args.checkpoint)
    split = open_dataset(str(args.checkpoint), pipeline.data, []).split(args.split)
    records = [split[index] for index in sampled_indices(len(split), args.samples)]
    with tempfile.TemporaryDirectory() as place:
        given, found = Path(place) / "given.json", Path(place) / "found.npz"
        paths = [_path(record.image, Path(place) / f"{number}.png") for number, record in enumerate(records)]
        texts = [record.texts[0] for record in records]
        given.write_text(json.dumps({"images": paths, "texts": texts}), encoding="utf-8")
        command = [sys.executable, "-m", "benchmarks.without_torch", "--answer", str(args.folder)]
        subprocess.run([*command, str(given), str(found)], check=True)
        theirs, ours = dict(np.load(found)), _say(pipeline, paths, texts)
    print(f"{len(records)} records of {args.split!r}; torch in the second process: {bool(theirs.pop('torch'))}")
    for name, value in ours.items():
        if name == "captions":
            equal = sum(a == b for a, b in zip(value, theirs[name].tolist(), strict=True))
            print(f"greedy captions: {equal} of {len(value)} equal, {len(set(value))} distinct")
        else:
            print(f"{name}: largest difference {np.abs(np.asarray(value) - theirs[name]).max():.1e}")


def answer(folder: str, given: str, found: str) -> None:
    """What the export says of the images and texts of a JSON file, as an npz file."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # an import of it fails from here on
    import velm.onnx

    inputs = json.loads(Path(given).read_text(encoding="utf-8"))
    said = _say(velm.onnx.load(folder), inputs["images"], inputs["texts"])
    loaded = any(name.startswith("torch.") for name in sys.modules)
    np.savez(found, torch=loaded, **{name: np.asarray(value) for name, value in said.items()})


def _say(pipeline: Any, images: list[str], texts: list[str]) -> dict[str, Any]:
    """Embeddings of an aligned model and captions of one that writes, of a `velm.Pipeline` or of `velm.onnx`."""
    said: dict[str, Any] = {}
    if pipeline.aligned:
        said = {"image embeddings": pipeline.embed_images(images), "text embeddings": pipeline.embed_texts(texts)}
    if pipeline.writes:
        said["captions"] = pipeline.caption(images, batch_size=BATCH)
    return said


def _path(image: Any, place: Path) -> str:
    """The file of an image; one that is drawn is written to `place`."""
    if isinstance(image, str | Path):
        return str(image)
    (image if isinstance(image, Image.Image) else Image.fromarray(np.asarray(image))).save(place)
    return str(place)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answer"]:
        answer(*sys.argv[2:])
    else:
        main()
