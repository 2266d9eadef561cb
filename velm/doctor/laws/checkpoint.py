"""A checkpoint that the Trainer wrote, read as everybody reads it."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from velm.doctor.laws.compare import farthest
from velm.doctor.laws.outcome import Verdict
from velm.doctor.laws.subject import Subject, trainer_of
from velm.outputs import Batch, aligns
from velm.pipeline import Pipeline
from velm.pipeline.loading import load
from velm.training.data import VisionLanguageData

__all__ = ["check_checkpoint"]

RECORDS = 8


def check_checkpoint(subject: Subject) -> Verdict:
    """Weights, embeddings, logits, captions, tokens and pixels of both."""
    with tempfile.TemporaryDirectory(prefix="velm-selfcheck-") as name:
        data, task = subject.run_data(), subject.task()
        trainer = trainer_of(Path(name), max_steps=1)
        trainer.fit(task, datamodule=data)
        trainer.save_checkpoint(Path(name) / "one.ckpt")
        loaded = load(Path(name) / "one.ckpt")
        saved = Pipeline(
            model=task.model, tokenizer=data.tokenizer, transform=data.eval_transform, max_length=data.max_length,
            aligned=aligns(task.needs),
        )  # fmt: skip
        weights = {name: value.clone() for name, value in loaded.model.state_dict().items()}
        figure, where = farthest(saved.model.state_dict(), weights)
        if figure or (missing := saved.model.state_dict().keys() ^ weights.keys()):
            return Verdict(figure, f"weights: {where if figure else sorted(missing)[0]} is another in the file.")
        if (fault := _words(data, saved, loaded)) is not None:
            return Verdict(figure, fault)
        apart = _outputs(saved, loaded, subject.batch)
    worst = max(apart.values(), default=0.0)
    if worst:
        listed = " and ".join(name for name, value in apart.items() if value)
        return Verdict(worst, f"{listed} of the loaded model differ, though its weights are those that were saved.")
    return Verdict(0.0, _captions(saved, loaded, subject.batch))


def _words(data: VisionLanguageData, saved: Pipeline, loaded: Pipeline) -> str | None:
    """A fault of tokenizer, transform or of what else goes with the weights."""
    for name in ("vocab_size", "pad_id", "bos_id", "eos_id", "unk_id"):
        one, other = (getattr(pipeline.tokenizer, name) for pipeline in (saved, loaded))
        if one != other:
            return f"tokenizer: {name} is {other} in the file, and was {one}."
    if saved.max_length != loaded.max_length or saved.aligned != loaded.aligned:
        return "max_length, or whether the embeddings are trained to match, is another in the file."
    records = data.records("train")
    for place in range(min(RECORDS, len(records))):
        record = records[place]
        for text in (*record.texts, *(record.targets or ())):
            one, other = (pipeline.tokenizer.encode(text) for pipeline in (saved, loaded))
            if one != other:
                return f"tokenizer: {text!r} was {one}, and is {other} by the file."
            if saved.tokenizer.decode(one) != loaded.tokenizer.decode(one):
                return f"tokenizer: the tokens of {text!r} are decoded in another way."
    return _pixels(records, saved, loaded)


def _pixels(records: Sequence, saved: Pipeline, loaded: Pipeline) -> str | None:
    if saved.transform.config() != loaded.transform.config():
        return f"transform: {loaded.transform.config()} in the file, and {saved.transform.config()} before."
    image = next((records[place].image for place in range(min(RECORDS, len(records)))), None)
    if image is not None and not torch.equal(saved.transform(image), loaded.transform(image)):
        return "transform: the same image becomes other pixels."
    return None


@torch.no_grad()
def _outputs(saved: Pipeline, loaded: Pipeline, batch: Batch) -> dict[str, float]:
    """How far embeddings and logits are apart."""
    found: list[Mapping[str, Tensor]] = []
    for pipeline in (saved, loaded):
        output = pipeline.model(batch)
        values: dict[str, Tensor] = {}
        if output.embeddings is not None:
            values |= {"image embeddings": output.image_embeds, "text embeddings": output.text_embeds}
        if output.prediction is not None:
            values["logits"] = output.output_projection(output.decoder.hidden)
        found.append(values)
    return {name: farthest({name: value}, {name: found[1][name]})[0] for name, value in found[0].items()}


@torch.no_grad()
def _captions(saved: Pipeline, loaded: Pipeline, batch: Batch) -> str | None:
    if not saved.writes:
        return None
    written = []
    for pipeline in (saved, loaded):
        output = pipeline.model(batch)
        config = pipeline.generation_config()
        found = pipeline.write(output.image, output.text, config)
        written.append([[caption.text for caption in candidates] for candidates in found])
    return None if written[0] == written[1] else "captions of the loaded model are other ones."
