"""A checkpoint written by the Trainer against what `velm.load` makes of it: weights, tokenizer, pixels, outputs.

Adapters are merged when a checkpoint is loaded, which is exact up to the order of sums: outputs may differ by 1e-5.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from velm.checkpoint import build_from_checkpoint, read_checkpoint
from velm.data.base import Record
from velm.doctor.laws.compare import failed, farthest, passed
from velm.doctor.laws.small_run import SmallRun, trainer_of
from velm.findings import Finding
from velm.outputs import Batch, aligns
from velm.pipeline import Pipeline
from velm.pipeline.loading import load
from velm.training.data import VisionLanguageData

RECORDS = 8
MERGED = 1e-5


def check_checkpoint(run: SmallRun) -> Finding:
    """Weights, tokenizer, transform, embeddings, logits and captions are the same; without adapters bit for bit."""
    with tempfile.TemporaryDirectory(prefix="velm-selfcheck-") as name:
        data, task = run.run_data(), run.task()
        trainer = trainer_of(Path(name), max_steps=1)
        trainer.fit(task, datamodule=data)
        trainer.save_checkpoint(Path(name) / "one.ckpt")
        loaded = load(Path(name) / "one.ckpt")
        weights = build_from_checkpoint(read_checkpoint(Path(name) / "one.ckpt")).state_dict()
    task.zero_grad()
    saved = Pipeline(
        model=task.model, tokenizer=data.tokenizer, transform=data.eval_transform, max_length=data.max_length,
        aligned=aligns(task.needs),
    )  # fmt: skip
    difference, where = farthest(saved.model.state_dict(), weights)
    missing = sorted(saved.model.state_dict().keys() ^ weights.keys())
    if difference or missing:
        where = where if difference else missing[0]
        return failed("checkpoint", difference, f"The weights {where} of the loaded model differ by {difference:.1e}.")
    message = _compare_tokenizers(data, saved, loaded) or _compare_transforms(data, saved, loaded)
    if message is not None:
        return failed("checkpoint", difference, message)
    allowed = MERGED if "adapt" in task.model_config else 0.0
    differences = {name: gap for name, gap in _compare_outputs(saved, loaded, run.batch).items() if gap > allowed}
    if differences:
        listed = ", ".join(f"{name} by {gap:.1e}" for name, gap in differences.items())
        message = f"Outputs of the loaded model differ although its weights are equal: {listed}."
        return failed("checkpoint", max(differences.values()), message)
    if saved.writes and not allowed and _captions(saved, run.batch) != _captions(loaded, run.batch):
        return failed("checkpoint", 0.0, "Captions of the loaded model differ although its outputs are equal.")
    return passed("checkpoint", 0.0)


def _compare_tokenizers(data: VisionLanguageData, saved: Pipeline, loaded: Pipeline) -> str | None:
    """The first difference of the tokenizers, of max_length or of `aligned`."""
    for name in ("vocab_size", "pad_id", "bos_id", "eos_id", "unk_id"):
        before, after = (getattr(pipeline.tokenizer, name) for pipeline in (saved, loaded))
        if before != after:
            return f"tokenizer: {name} was {before} and is {after}."
    for name in ("max_length", "aligned"):
        before, after = (getattr(pipeline, name) for pipeline in (saved, loaded))
        if before != after:
            return f"{name} was {before} and is {after}."
    for record in _records(data):
        for text in (*record.texts, *(record.targets or ())):
            before, after = (pipeline.tokenizer.encode(text) for pipeline in (saved, loaded))
            if before != after:
                return f"tokenizer: {text!r} was encoded as {before} and is encoded as {after}."
            if saved.tokenizer.decode(before) != loaded.tokenizer.decode(before):
                return f"tokenizer: the tokens of {text!r} are decoded differently."
    return None


def _compare_transforms(data: VisionLanguageData, saved: Pipeline, loaded: Pipeline) -> str | None:
    """The first difference of the image transforms."""
    if saved.transform.config() != loaded.transform.config():
        return f"transform: was {saved.transform.config()} and is {loaded.transform.config()}."
    image = next((record.image for record in _records(data)), None)
    if image is not None and not torch.equal(saved.transform(image), loaded.transform(image)):
        return "transform: the same image gives other pixels."
    return None


def _records(data: VisionLanguageData) -> Sequence[Record]:
    records = data.records("train")
    return [records[index] for index in range(min(RECORDS, len(records)))]


@torch.no_grad()
def _compare_outputs(saved: Pipeline, loaded: Pipeline, batch: Batch) -> dict[str, float]:
    """The difference of embeddings and logits, by name."""
    before, after = _outputs(saved, batch), _outputs(loaded, batch)
    return {name: farthest({name: value}, {name: after[name]})[0] for name, value in before.items()}


def _outputs(pipeline: Pipeline, batch: Batch) -> dict[str, Tensor]:
    output = pipeline.model(batch)
    tensors: dict[str, Tensor] = {}
    if output.embeddings is not None:
        tensors |= {"image embeddings": output.image_embeds, "text embeddings": output.text_embeds}
    if output.prediction is not None:
        tensors["logits"] = output.output_projection(output.decoder.hidden)
    return tensors


@torch.no_grad()
def _captions(pipeline: Pipeline, batch: Batch) -> list[list[str]]:
    output = pipeline.model(batch)
    candidates = pipeline.write(output.image, output.text, pipeline.generation_config(), batch.prompt)
    return [[caption.text for caption in captions] for captions in candidates]
