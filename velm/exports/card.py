"""The model card README.md of an exported model, from its checkpoint and the results beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from velm.checkpoint import Checkpoint
from velm.errors import ExportError
from velm.exports.change import Change
from velm.exports.golden import Difference
from velm.prompt import takes_text
from velm.registry import split_config

__all__ = ["find_metrics", "model_card"]

LIBRARIES = {
    "velm": "velm",
    "transformers": "transformers",
    "open_clip": "open_clip",
    "backbone": "velm",
    "onnx": "velm",
    "torch": "pytorch",
}
_USES = {
    "velm": 'import velm\n\npipeline = velm.load("hf://org/name")  # or this folder',
    "torch": 'import torch\n\nembed = torch.export.load("FOLDER/image.pt2").module()  # uint8 (B, 3, H, W)',
    "onnx": 'import velm.onnx\n\npipeline = velm.onnx.load("FOLDER")  # needs onnxruntime and no torch',
    "open_clip": 'import open_clip\n\nmodel, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")',
    "backbone": 'import velm\n\nbackbone = velm.load_backbone("FOLDER")  # images to a dict of maps',
}


def find_metrics(checkpoint: Path) -> Path | None:
    """metrics.json of `velm evaluate` in the folder of a checkpoint or in `evaluation` there; None: there is none."""
    places = (checkpoint.parent / "evaluation" / "metrics.json", checkpoint.parent / "metrics.json")
    return next((place for place in places if place.is_file()), None)


def model_card(
    checkpoint: Checkpoint,
    library: str,
    differences: Sequence[Difference | Change],
    metrics: Path | None,
    command: str,
    title: str = "model",
) -> str:
    """The text of README.md; the licence is left to the user.

    Args:
        library: the format, a key of `LIBRARIES`.
        differences: between the checkpoint and what was written, of outputs and of metrics.
        metrics: a metrics.json, beside which intervals.json may lie.
        command: how the export was made.

    Raises:
        ExportError: metrics.json cannot be read.
    """
    head = [
        "---",
        f"library_name: {LIBRARIES[library]}",
        f"pipeline_tag: {_task(checkpoint, library)}",
        "tags: [velm]",
        "---",
    ]
    parts = [
        *head,
        f"# {title}\n",
        "Licence: not stated yet. Add `license:` to the head of this file before you publish it; it also depends on "
        "the data and on the weights that training started from.\n",
        "## Model\n",
        *_parts(checkpoint),
        "\n## Data\n",
        _data(checkpoint),
        *_metrics(metrics),
        "\n## Use\n",
        f"```python\n{_USES[library]}\n```\n" if library in _USES else _transformers_use(checkpoint),
        "## How it was made\n",
        f"```bash\n{command}\n```\n",
        "In a fresh process what was written says the same of golden inputs as the checkpoint:\n",
        "```text",
        *map(str, differences),
        "```",
    ]
    return "\n".join(parts) + "\n"


def _task(checkpoint: Checkpoint, library: str) -> str:
    if library == "backbone":
        return "image-feature-extraction"
    if checkpoint.config.get("decoder") is None:
        return "zero-shot-image-classification"
    template = split_config(checkpoint.config["decoder"])[1].get("template")
    reads_text = "text" in (checkpoint.config.get("memory") or ()) or (template is not None and takes_text(template))
    return "image-text-to-text" if reads_text else "image-to-text"


def _parts(checkpoint: Checkpoint) -> list[str]:
    rows = []
    for part in ("image_encoder", "text_encoder", "decoder"):
        if checkpoint.config.get(part):
            name, options = split_config(checkpoint.config[part])
            shown = ", ".join(
                f"{key} {value}" for key, value in options.items() if isinstance(value, int | str | float)
            )
            rows.append(f"- {part}: `{name}` ({shown})" if shown else f"- {part}: `{name}`")
    count = sum(tensor.numel() for tensor in checkpoint.weights.values())
    losses = ", ".join(f"`{name}`" for name in checkpoint.config.get("losses") or {}) or "not recorded"
    rows += [f"- {count:,} numbers; losses: {losses}", f"- images of {checkpoint.transform.get('image_size')} pixels"]
    return rows + [f"- {key}: {value}" for key, value in checkpoint.origin.items()]


def _data(checkpoint: Checkpoint) -> str:
    dataset = checkpoint.data.get("dataset")
    if not dataset:
        return "Not recorded in the checkpoint.\n"
    name, options = split_config(dataset)
    # a path of the author's disk says nothing to a reader
    shown = {key: Path(v).name if isinstance(v, str) and "/" in v else v for key, v in options.items()}
    return f"`{name}` {json.dumps(shown, ensure_ascii=False, default=str)}\n"


def _metrics(path: Path | None) -> list[str]:
    """A table of the metrics, with intervals where there are some."""
    if path is None:
        return []
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ExportError(f"--metrics {path} cannot be read as the metrics.json of `velm evaluate`: {error}") from error
    if not isinstance(values, Mapping):
        raise ExportError(f"--metrics {path} is no metrics.json of `velm evaluate`, which is a mapping of numbers.")
    intervals = path.with_name("intervals.json")
    bounds: dict[str, Any] = json.loads(intervals.read_text(encoding="utf-8")) if intervals.is_file() else {}
    rows = [f"| {key} | {value:.4g} | {_bounds(bounds.get(key))} |" for key, value in values.items() if _number(value)]
    return ["## Metrics\n", "| metric | value | 95 % interval |", "| --- | --- | --- |", *rows]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bounds(value: Any) -> str:
    if isinstance(value, list) and len(value) == 2:
        return f"{value[0]:.4g} to {value[1]:.4g}"
    return ""


def _transformers_use(checkpoint: Checkpoint) -> str:
    if checkpoint.config.get("decoder") is None:
        use = 'from transformers import pipeline\n\npipe = pipeline("zero-shot-image-classification", model="FOLDER")'
    elif split_config(checkpoint.config["decoder"])[0].startswith("llm/"):
        use = 'from transformers import pipeline\n\npipe = pipeline("image-text-to-text", model="FOLDER")'
    else:
        use = (
            "from transformers import AutoModelForImageTextToText, AutoProcessor\n\n"
            'model = AutoModelForImageTextToText.from_pretrained("FOLDER").eval()\n'
            'processor = AutoProcessor.from_pretrained("FOLDER")\n'
            'tokens = model.generate(processor.image_processor(image, return_tensors="pt").pixel_values)\n'
            "captions = processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)"
        )
    return f"```python\n{use}\n```\n"
