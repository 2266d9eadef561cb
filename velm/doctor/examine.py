"""`examine`: every check of `velm doctor` on a config, without training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from velm import registry
from velm.data.base import DetectedFormat, Record, first_records, text_counts, text_only
from velm.data.text.base import Tokenizer
from velm.data.text.template import Template
from velm.doctor import batches, parts, texts
from velm.doctor.duplicates import check_duplicates
from velm.doctor.images import check_images, check_range, check_records, scan_images
from velm.errors import MissingSplitError, cause_of
from velm.findings import Finding, Severity
from velm.model.build import needs_of
from velm.outputs import aligns
from velm.planning.plan import costs_of, setup_of
from velm.training.build import build_data, build_task, count_devices
from velm.training.data import VisionLanguageData
from velm.training.matching_data import require_matching_data
from velm.training.optim import parameter_groups
from velm.training.task import VisionLanguageTask
from velm.util import Progress

#: Every check and what it examines.
CHECKS: dict[str, str] = {
    "data": "the dataset and each of its splits can be read, and which records are unusable",
    "images": "every image file exists and can be decoded",
    "value_range": "the range of grey images of more than 8 bits; images that are nearly black",
    "duplicates_across_splits": "no image of one split is in another, byte for byte or nearly",
    "duplicates_within_a_split": "the same image under two names",
    "tokenizer": "pad, bos, eos and unk are four different ids of the vocabulary",
    "long_captions": "texts that max_length cuts",
    "unknown_words": "tokens of a split that are unknown to the tokenizer",
    "odd_captions": "texts that are empty, huge, or hold NUL or replacement characters",
    "repeated_captions": "one text for many images",
    "trainer": "the Trainer can be built; how many devices share a step",
    "batch_size": "the training split fills a batch",
    "false_negatives": "rows of a batch with a caption of their own image among the negatives",
    "first_loss": "the loss of a model that knows nothing",
    "steps": "optimizer steps of the whole run",
    "warmup": "the warm-up is a small part of the run",
    "accumulation": "accumulated batches are not taken for one large batch",
    "model": "model, losses and optimizer can be built, and fit the data",
    "lengths": "encoder and decoder hold the longest text",
    "learning_rate": "the learning rate of pretrained parts",
    "parameters": "trainable and frozen parameters, by part",
    "memory": "a training step runs, and its peak memory",
}
SPLITS = ("train", "val", "test")
IMAGES = 20_000
FIT_FAILS = "`velm fit` would end with this message."

T = TypeVar("T")


def examine(config: Mapping[str, Any], *, images: int = IMAGES, progress: Progress | None = None) -> list[Finding]:
    """Run every check; a part that cannot be built is a finding, and the other checks go on.

    Args:
        config: of `velm.training.run.parse_fit`.
    """
    examination = _Examination(config)
    examination.run(images, progress)
    return examination.findings


class _Examination:
    """The checks in order; each appends to `findings`."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.findings: list[Finding] = []
        self.devices = 1

    def run(self, images: int, progress: Progress | None) -> None:
        """Data first, then the model, then both together."""
        options = self.config["data"]
        data = self.attempt("data", lambda: _build_data(options))
        splits = {} if data is None else self.open_splits(data)
        if splits:
            scanned = scan_images(splits, limit=images, progress=progress)
            self.findings += [*check_images(scanned, options["max_bad"]), *check_range(scanned)]
            self.findings += check_duplicates(scanned)
        train_data = data if "train" in splits else None
        tokenizer = None if train_data is None else self.attempt("tokenizer", lambda: train_data.tokenizer)
        prompts = None if train_data is None or tokenizer is None else self.attempt("model", lambda: train_data.prompts)
        lengths = None if tokenizer is None else self.check_texts(splits, tokenizer, prompts)
        vocabulary = {"vocab_size": 1000, "pad_id": 0}
        if tokenizer is not None:
            vocabulary = {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id}
        task = self.attempt("model", lambda: _build_task(self.config["model"], vocabulary))
        if train_data is not None:
            self.check_batches(train_data, task, vocabulary["vocab_size"])
        if task is not None:
            self.check_parts(task)
        if task is not None and train_data is not None and lengths is not None:
            self.check_step(task, train_data, lengths)

    def attempt(self, check: str, build: Callable[[], T]) -> T | None:
        """`build()`; None and an error if it raises. VELM's own warnings become findings."""
        home = str(Path(__file__).parents[1])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                return build()
            except Exception as error:  # of any plugin
                self.findings.append(Finding(check, "error", cause_of(error), FIT_FAILS))
                return None
            finally:
                own = {str(w.message) for w in caught if w.category is UserWarning and w.filename.startswith(home)}
                self.findings += [Finding(check, "warning", message) for message in sorted(own)]

    def open_splits(self, data: VisionLanguageData) -> dict[str, Sequence[Record]]:
        """The splits that exist; a missing 'val' or 'test' is info, a broken split an error."""
        splits = {}
        for name in SPLITS:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    splits[name] = data.records(name)
                except Exception as error:
                    finding = _unreadable_split(name, error)
                    if finding not in self.findings:  # a broken file is broken for every split
                        self.findings.append(finding)
            for warning in caught:
                if " cannot be used: " not in str(warning.message):  # `check_records` reports it
                    severity: Severity = "info" if issubclass(warning.category, DetectedFormat) else "warning"
                    self.findings.append(Finding("data", severity, str(warning.message)))
        if splits:
            counts = {name: len(records) for name, records in splits.items()}
            listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
            self.findings.append(Finding("data", "ok", f"Images by split: {listed}.", value=counts))
        for name, records in splits.items():
            self.findings += check_records(name, records, self.config["data"]["max_bad"])
        return splits

    def check_texts(
        self, splits: Mapping[str, Sequence[Record]], tokenizer: Tokenizer, prompts: Template | None
    ) -> np.ndarray | None:
        """The checks of texts; int (texts,), tokens of each text of all splits, None if they cannot be read."""
        self.findings.append(texts.special_tokens(tokenizer))
        read = self.attempt("data", lambda: _read_texts(splits, tokenizer, prompts))
        if read is None:
            return None
        self.findings += [
            texts.long_captions(read, self.config["data"]["max_length"]),
            texts.unknown_words(read, tokenizer),
            *texts.odd_captions(read),
            texts.repeated_captions(read),
        ]
        return np.concatenate([split.lengths for split in read.values()])

    def check_batches(self, data: VisionLanguageData, task: VisionLanguageTask | None, vocab_size: int) -> None:
        """The checks of batches, steps and the schedule."""
        options, trainer, model = self.config["data"], self.config["trainer"], self.config["model"]
        self.devices = self.attempt("trainer", lambda: count_devices(trainer)) or 1
        records = data.records("train")
        counts = text_counts(records)
        if data.by_length:
            finding, steps, samples = batches.batches_by_length(
                lambda: data.batch_sampler(data.train_items(), world_size=self.devices),
                tokens=options["max_tokens"], devices=self.devices,
            )  # fmt: skip
        else:
            finding, steps, samples = batches.batch_size(
                counts, size=options["batch_size"], devices=self.devices, captions=options["captions"]
            )
        self.findings.append(finding)
        if not steps:
            return
        accumulate = trainer["accumulate_grad_batches"] or 1
        total = batches.optimizer_steps(
            steps, accumulate=accumulate, limit=trainer["limit_train_batches"], max_epochs=trainer["max_epochs"],
            max_steps=trainer["max_steps"],
        )  # fmt: skip
        optional = [batches.steps(total), batches.warmup(model["optimizer"]["warmup"], total)]
        if task is not None:
            losses, per_image = model["losses"] or {}, options["captions_per_image"]
            aligning = [name for name in losses if aligns(needs_of({name: {}}))]
            optional.append(batches.accumulation(accumulate, aligning))
            rows = samples * per_image
            if aligning:
                images = np.unique(first_records(records)).tolist()
                repeated = len(images) - len({text_only(records, i).image_id for i in images})
                optional.append(batches.false_negatives(counts, rows=rows, repeated_ids=repeated))
            first = batches.first_loss(
                losses, rows=rows, per_image=per_image, vocab_size=vocab_size, hard_negatives=task.losses.hard_negatives
            )
            optional.append(first)
        self.findings += [finding for finding in optional if finding is not None]

    def check_parts(self, task: VisionLanguageTask) -> None:
        """Parameters and learning rates."""
        optimizer = task.optimizer_config
        self.findings.append(parts.parameters(task.parts))
        modules = {name: getattr(task.model, name) for name in ("image_encoder", "text_encoder", "decoder")}
        self.findings += parts.learning_rates(
            self.config["model"], modules, lr=optimizer.lr, lr_scale=optimizer.lr_scale
        )

    def check_step(self, task: VisionLanguageTask, data: VisionLanguageData, lengths: np.ndarray) -> None:
        """Whether model and data fit together, and the memory of a step."""
        before = len(self.findings)
        self.attempt("model", lambda: require_matching_data(task.model, task.needs, data))
        towers = {"text_encoder": task.model.text_encoder, "decoder": task.model.decoder}
        self.findings.append(parts.lengths(towers, longest=int(lengths.max()), max_length=data.max_length))
        if any(finding.severity == "error" for finding in self.findings[before:]):
            return
        length = min(data.max_length, max(3, int(np.quantile(lengths, 0.99))))
        has_images = data.records("train")[0].image is not None
        setup = setup_of(self.config, self.devices)
        try:
            costs = costs_of(self.config, data.vocab_size, setup, length=length, has_images=has_images)
        except Exception as error:  # of any part
            message = f"A training step fails: {type(error).__name__}: {error}"
            advice = "Check that image_size, patch sizes and lengths fit together."
            self.findings.append(Finding("memory", "error", message, advice))
        else:
            self.findings.append(parts.memory(costs, setup, length=length))


def _build_data(options: Mapping[str, Any]) -> VisionLanguageData:
    """The data module; its dataset leaves out every bad record, and does not look for image files."""
    registry.load_plugins(options["plugins"] or ())
    name, dataset = registry.split_config(options["dataset"], "dataset")
    if "check_files" in registry.parameters(registry.datasets.get(name)):
        dataset["check_files"] = False
    data = build_data({**options, "dataset": {"name": name, **dataset}})
    data.dataset.max_bad = 1.0
    return data


def _read_texts(
    splits: Mapping[str, Sequence[Record]], tokenizer: Tokenizer, prompts: Template | None
) -> dict[str, texts.TextStatistics]:
    return {name: texts.read_texts(records, tokenizer, template=prompts) for name, records in splits.items()}


def _build_task(options: Mapping[str, Any], vocabulary: Mapping[str, int]) -> VisionLanguageTask:
    """The task; building its optimizer's parameter groups checks `lr_scale`."""
    task = build_task(options, **vocabulary)
    parameter_groups(task.parts, task.optimizer_config)
    return task


def _unreadable_split(name: str, error: Exception) -> Finding:
    """Info for a missing 'val' or 'test', else an error."""
    if name != "train" and isinstance(error, MissingSplitError):
        consequence = {"val": "`velm fit` trains without validation.", "test": "`velm evaluate` needs it."}[name]
        return Finding("data", "info", cause_of(error), consequence)
    return Finding("data", "error", cause_of(error), "`velm fit` or `velm evaluate` would end with this message.")
