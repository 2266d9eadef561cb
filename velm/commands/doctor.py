"""`velm doctor`: look over data and config before hours are spent, without training."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from velm.commands.options import at_least_one

if TYPE_CHECKING:
    from velm.data.base import Record
    from velm.doctor.texts import Sentences
    from velm.findings import Finding
    from velm.training.data import VisionLanguageData
    from velm.training.task import VisionLanguageTask

__all__ = ["examine", "main"]

T = TypeVar("T")
SPLITS = ("train", "val", "test")
IMAGES = 20_000


def main(argv: Sequence[str]) -> int:
    """Run `velm doctor`: 0 nothing but information, 1 warnings, 2 errors."""
    args, rest = _parser().parse_known_args(argv)
    from velm.findings import as_dict, table
    from velm.training.run import parse_fit

    progress = _show_progress if sys.stderr.isatty() else None
    findings = examine(parse_fit(rest), images=args.images, progress=progress)
    told = as_dict(findings)
    print(json.dumps(told, indent=2, ensure_ascii=False) if args.json else table(findings))
    return int(told["summary"]["exit_code"])


def examine(
    config: Mapping[str, Any], *, images: int = IMAGES, progress: Callable[[int, int], None] | None = None
) -> list[Finding]:
    """Everything there is to say about a run; what cannot be built is a finding, and the rest goes on.

    Args:
        config: of `velm.training.run.parse_fit`.
        images: how many to decode, evenly spaced.
        progress: told (images done, images in all).
    """
    findings: list[Finding] = []
    data = _tried(findings, "data", lambda: _data(config["data"]))
    splits = {} if data is None else _splits(findings, data)
    _look_at_images(findings, splits, images, progress, config["data"]["max_bad"])
    trained = None
    if data is not None and "train" in splits:
        trained = _tried(findings, "tokenizer", lambda: data.tokenizer)
    sentences = {} if trained is None else _read_sentences(findings, splits, trained, config["data"]["max_length"])
    vocabulary = {"vocab_size": 1000, "pad_id": 0} if trained is None else _ids(trained)
    task = _tried(findings, "model", lambda: _task(config["model"], vocabulary))
    if data is not None and "train" in splits:
        _look_at_batches(findings, config, data, task, vocabulary["vocab_size"])
    if task is not None:
        _look_at_parts(findings, config, task)
    if task is not None and data is not None and sentences:
        _hold_together(findings, config, task, data, sentences)
    return findings


def _tried(findings: list[Finding], check: str, build: Callable[[], T]) -> T | None:
    """What `build` gives; None, and a finding, where it fails. VELM's own warnings are findings too."""
    from velm.findings import Finding

    home = str(Path(__file__).parents[1])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            return build()
        except Exception as error:  # also what a plugin of somebody else's raises
            findings.append(Finding(check, "error", _told(error), "`velm fit` would end with this message."))
            return None
        finally:
            ours = {str(w.message) for w in caught if w.category is UserWarning and w.filename.startswith(home)}
            findings += [Finding(check, "warning", message) for message in sorted(ours)]


def _told(error: Exception) -> str:
    """The message; of what is no error of VELM's, its kind as well."""
    return str(error) if type(error).__module__.startswith("velm.") else f"{type(error).__name__}: {error}"


def _data(options: Mapping[str, Any]) -> VisionLanguageData:
    """The data module; its dataset leaves out what it cannot use, and leaves it to us to look for image files."""
    from velm import registry
    from velm.training.run import build_data

    registry.load_plugins(options["plugins"] or ())
    name, dataset = registry.split_config(options["dataset"], "dataset")
    if "check_files" in registry.parameters(registry.datasets.get(name)):
        dataset["check_files"] = False
    data = build_data({**options, "dataset": {"name": name, **dataset}})
    data.dataset.max_bad = 1.0
    return data


def _splits(findings: list[Finding], data: VisionLanguageData) -> dict[str, Sequence[Record]]:
    """The splits there are; one that is absent is information (but for 'train'), one that is broken an error."""
    from velm.doctor.images import left_out
    from velm.errors import MissingSplitError
    from velm.findings import Finding

    splits = {}
    for name in SPLITS:
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*cannot be used")  # `left_out` tells it
                splits[name] = data.records(name)
        except Exception as error:
            told = _told(error)
            absent = name != "train" and isinstance(error, MissingSplitError)
            lacks = {"val": "`velm fit` trains without validation.", "test": "`velm evaluate` needs it."}.get(name, "")
            advice = lacks if absent else "`velm fit` or `velm evaluate` would end with this message."
            finding = Finding("data", "info" if absent else "error", told, advice)
            if finding not in findings:  # what is wrong with the file is wrong for every split
                findings.append(finding)
    if splits:
        counts = {name: len(records) for name, records in splits.items()}
        listed = ", ".join(f"{name} {count:,}" for name, count in counts.items())
        findings.append(Finding("data", "ok", f"Images by split: {listed}.", value=counts))
    findings += [f for name, records in splits.items() for f in left_out(name, records, data.max_bad)]
    return splits


def _look_at_images(
    findings: list[Finding],
    splits: Mapping[str, Sequence[Record]],
    limit: int,
    progress: Callable[[int, int], None] | None,
    max_bad: float,
) -> None:
    from velm.doctor.duplicates import duplicates
    from velm.doctor.images import image_findings, look

    if splits:
        found = look(splits, limit=limit, progress=progress)
        findings += [*image_findings(found, max_bad), *duplicates(found)]


def _read_sentences(
    findings: list[Finding], splits: Mapping[str, Sequence[Record]], tokenizer: Any, max_length: int
) -> dict[str, Sentences]:
    from velm.doctor import texts as look

    findings.append(look.special_tokens(tokenizer))
    read = _tried(findings, "data", lambda: {n: look.read_sentences(r, tokenizer) for n, r in splits.items()})
    if read is None:
        return {}
    findings += [look.long_captions(read, max_length), look.unknown_words(read), *look.odd_captions(read)]
    findings.append(look.repeated_captions(read))
    return read


def _ids(tokenizer: Any) -> dict[str, int]:
    return {"vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id}


def _task(options: Mapping[str, Any], vocabulary: Mapping[str, int]) -> VisionLanguageTask:
    """The task, and its optimizer's groups, which hold `lr_scale` against the parts."""
    from velm.training.optim import parameter_groups
    from velm.training.run import build_task

    task = build_task(options, **vocabulary)
    parameter_groups({**dict(task.model.named_children()), "losses": task.losses}, task.optimizer_config)
    return task


def _look_at_batches(
    findings: list[Finding],
    config: Mapping[str, Any],
    module: VisionLanguageData,
    task: VisionLanguageTask | None,
    vocab_size: int,
) -> None:
    from velm.data.base import text_counts
    from velm.doctor import batches as look
    from velm.model.build import needs_of
    from velm.outputs import aligns
    from velm.training.run import count_devices

    data, trainer, model = config["data"], config["trainer"], config["model"]
    devices = _tried(findings, "trainer", lambda: count_devices(trainer)) or 1
    records = module.records("train")
    counts = text_counts(records)
    if module.by_length:
        finding, batches, samples = look.batches_by_length(
            lambda: module.batch_sampler(module.train_items(), world_size=devices),
            tokens=data["max_tokens"], devices=devices,
        )  # fmt: skip
    else:
        finding, batches, samples = look.batch_size(
            counts, size=data["batch_size"], devices=devices, captions=data["captions"]
        )
    findings.append(finding)
    if not batches:
        return
    accumulate = trainer["accumulate_grad_batches"] or 1
    ends = {"max_epochs": trainer["max_epochs"], "max_steps": trainer["max_steps"]}
    total = look.optimizer_steps(batches, accumulate=accumulate, limit=trainer["limit_train_batches"], **ends)
    rows, losses = samples * data["captions_per_image"], model["losses"] or {}
    told = [look.steps(total), look.warmup(model["optimizer"]["warmup"], total)]
    if task is not None:
        aligning = [name for name in losses if aligns(needs_of({name: {}}))]
        told.append(look.accumulation(accumulate, aligning))
        if aligning:
            ids = [record.image_id for record in (records[place] for place in range(len(records)))]
            told.append(look.false_negatives(counts, rows=rows, repeated_ids=len(ids) - len(set(ids))))
        per_image = data["captions_per_image"]
        told.append(look.first_loss(losses, rows=rows, per_image=per_image, vocab_size=vocab_size))
    findings += [finding for finding in told if finding is not None]


def _look_at_parts(findings: list[Finding], config: Mapping[str, Any], task: VisionLanguageTask) -> None:
    from velm.doctor.parts import learning_rate, parameters

    optimizer = task.optimizer_config
    findings.append(parameters({**dict(task.model.named_children()), "losses": task.losses}))
    names = ("image_encoder", "text_encoder", "decoder")
    parts = {name: getattr(task.model, name) for name in names}
    findings += learning_rate(config["model"], parts, lr=optimizer.lr, lr_scale=optimizer.lr_scale)


def _hold_together(
    findings: list[Finding],
    config: Mapping[str, Any],
    task: VisionLanguageTask,
    data: VisionLanguageData,
    sentences: Mapping[str, Sentences],
) -> None:
    """Model and data against each other, and a step with them."""
    import numpy as np

    from velm.doctor.memory import MEASURED, memory, probe
    from velm.doctor.parts import lengths

    before = len(findings)
    _tried(findings, "model", lambda: task.check_data(data))
    counted = np.concatenate([split.lengths for split in sentences.values()])
    parts = {"text_encoder": task.model.text_encoder, "decoder": task.model.decoder}
    findings.append(lengths(parts, longest=int(counted.max()), max_length=data.max_length))
    if any(finding.severity == "error" for finding in findings[before:]):
        return
    length = min(data.max_length, max(3, int(np.quantile(counted, 0.99))))
    shown = data.records("train")[0].image is not None
    first, second = (
        probe(
            number, tokenizer=data.tokenizer, length=length, image_size=data.image_size if shown else None,
            per_image=data.captions_per_image, has_target=data.has_target,
        )
        for number in MEASURED
    )  # fmt: skip
    precision = str(config["trainer"]["precision"] or "32-true")
    findings.append(
        memory(
            task.model, task.losses, probes=(first, second), size=data.batch_size, precision=precision,
            average=task.ema is not None,
        )
    )  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm doctor",
        usage="velm doctor --config X.yaml [options of velm fit] [--pictures N] [--json]",
        description="Look over data and config before hours are spent. Nothing is trained, nothing is written.",
        epilog="Every option of `velm fit` is taken as `velm fit` takes it. The exit code is 0 where there is nothing "
        "but information, 1 with warnings, 2 with errors.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--pictures",
        type=at_least_one,
        default=IMAGES,
        metavar="N",
        help=f"images to decode (default {IMAGES:,})",
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    return parser


def _show_progress(done: int, total: int) -> None:
    print(f"\r{done}/{total} images", end="\n" if done == total else "", file=sys.stderr, flush=True)
