"""Zero-shot classification: an image belongs to the class with the nearest embedding of its prompts.

Radford et al. 2021 (arXiv 2103.00020, section 3.1). The embedding of a class is the normalised mean of the normalised
embeddings of its prompts.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from velm.data.base import Record
from velm.errors import DataError
from velm.evaluation.prompts import ClassNames, Templates
from velm.metrics.classification import ensemble_prompts, mean_per_class, top_k_hits
from velm.pipeline import Pipeline

TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a close up of a {}.", "there is a {}.", "a {}.")
"""Plain English: a small model does not know prompts such as 'itap of a {}.'."""
DEFAULT = Templates(TEMPLATES, "velm")


def has_classes(records: Sequence[Record]) -> bool:
    """Whether the first record has a class."""
    return bool(len(records)) and "class" in records[0].metadata


def classes_of(records: Sequence[Record]) -> tuple[list[str], Tensor] | None:
    """The class names and the class of each record; None if the records have no classes.

    Args:
        records: with 'class' in their metadata, as those of `image_folder`. An attribute `classes` of the records
            lists all classes, also those without images.

    Returns:
        C names, and int64 (records,), indices of the names.
    """
    if not has_classes(records):
        return None
    metadata = [record.metadata for record in records]
    without = next((i for i, each in enumerate(metadata) if "class" not in each), None)
    if without is not None:
        raise DataError(f"Record {records[without].image_id!r} has no class, others have; all must, or none.")
    known = getattr(records, "classes", None)
    names = list(known or dict.fromkeys(each["class"] for each in metadata))
    indices = {name: index for index, name in enumerate(names)}
    numbered = known and all("class_index" in each for each in metadata)  # two classes may have the same name
    labels = [each["class_index"] if numbered else indices[each["class"]] for each in metadata]
    return names, torch.tensor(labels)


def require_classes(records: Sequence[Record]) -> tuple[list[str], Tensor]:
    """As `classes_of`; DataError if there are none."""
    classes = classes_of(records)
    if classes is None:
        raise DataError(
            "The records have no classes; zero-shot classification and probes need a dataset such as "
            "--data.dataset '{name: image_folder, path: FOLDER}'."
        )
    return classes


def class_words(
    records: Sequence[Record], names: Sequence[str], class_names: ClassNames | Mapping[str, str] | Sequence[str] | None
) -> list[str]:
    """The words for the classes `names` of the records; the names themselves for None.

    Raises:
        DataError: `class_names` lacks a class, or is a list of another length.
    """
    if class_names is None:
        return list(names)
    return ClassNames.of(class_names).words(names, getattr(records, "folders", None))


def class_embeds(pipeline: Pipeline, names: Sequence[str], templates: Templates | Sequence[str] = DEFAULT) -> Tensor:
    """Class embeddings float (C, E), L2-normalised: the mean of the embeddings of each class's prompts.

    Args:
        names: class names, as words.

    Warns:
        UserWarning: the tokenizer lacks words of some names, so the model cannot distinguish them.
    """
    templates = Templates.of(templates)
    unknown = [name for name in names if pipeline.tokenizer.unk_id in pipeline.tokenizer.to_ids(name)]
    if unknown:
        warnings.warn(
            f"The tokenizer does not know all words of {len(unknown)} of {len(names)} classes: "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}. It cannot distinguish them by name.",
            stacklevel=2,
        )
    prompts = pipeline.embed_texts(templates.prompts(names))
    return ensemble_prompts(prompts.float().reshape(len(names), len(templates.texts), -1))


def zero_shot_metrics(
    pipeline: Pipeline,
    records: Sequence[Record],
    image_embeds: Tensor,
    *,
    templates: Templates | Sequence[str] = DEFAULT,
    class_names: ClassNames | Mapping[str, str] | Sequence[str] | None = None,
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """`zero_shot/top1`, ... and `zero_shot/mean_per_class_recall`; ties count against the model.

    `top<k>` is the fraction of the images whose class is among the first k, `mean_per_class_recall` the mean over the
    classes that have images of their own top-1. Of classes with the same words, which no model distinguishes (ImageNet
    has two pairs), the first is preferred, as by an argmax.

    Args:
        image_embeds: float (records, E).
        class_names: words for the classes; None: the names that the records have.
        ks: values of k; those of at least the number of classes are left out, except 1.

    Raises:
        DataError: the records have no classes, or `class_names` does not fit them.
    """
    names, labels = require_classes(records)
    words = class_words(records, names, class_names)
    scores = image_embeds.float() @ class_embeds(pipeline, words, templates).T
    _prefer_first(scores, labels, words)
    hits = {k: top_k_hits(scores, labels, k) for k in ks if k == 1 or k < len(names)}
    metrics = {f"zero_shot/top{k}": int(each.sum()) / len(each) for k, each in hits.items()}
    if 1 in hits:
        metrics["zero_shot/mean_per_class_recall"] = mean_per_class(hits[1], labels)
    return metrics


def _prefer_first(scores: Tensor, labels: Tensor, words: Sequence[str]) -> None:
    """Leave later classes with the words of the true class out of the comparison, in place."""
    first: dict[str, list[int]] = {}
    for index, word in enumerate(words):
        first.setdefault(word, []).append(index)
    for same in first.values():
        for number, index in enumerate(same[:-1]):
            rows = (labels == index).nonzero()
            scores[rows, torch.tensor(same[number + 1 :])] = -math.inf
