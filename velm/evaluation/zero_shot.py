"""Zero-shot classification: an image belongs to the class with the nearest embedding of its prompts.

Radford et al. 2021 (arXiv 2103.00020, section 3.1). The embedding of a class is the mean of those of its prompts.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from velm.data.base import Record
from velm.errors import DataError
from velm.metrics.classification import ensemble_prompts, top_k_accuracy
from velm.pipeline import Pipeline

TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a close up of a {}.", "there is a {}.", "a {}.")
"""Plain English: a small model does not know prompts such as 'itap of a {}.'."""


def classes_of(records: Sequence[Record]) -> tuple[list[str], Tensor] | None:
    """The class names and the class of each record; None if the records have no classes.

    Args:
        records: with 'class' in their metadata, as those of `image_folder`. An attribute `classes` of the records
            lists all classes, also those without images.

    Returns:
        C names, and int64 (records,), indices of the names.
    """
    if not len(records) or "class" not in records[0].metadata:
        return None
    metadata = [record.metadata for record in records]
    without = next((i for i, each in enumerate(metadata) if "class" not in each), None)
    if without is not None:
        raise DataError(f"Record {records[without].image_id!r} has no class, others have; all must, or none.")
    names = list(getattr(records, "classes", None) or dict.fromkeys(each["class"] for each in metadata))
    indices = {name: index for index, name in enumerate(names)}
    return names, torch.tensor([indices[each["class"]] for each in metadata])


def require_classes(records: Sequence[Record]) -> tuple[list[str], Tensor]:
    """As `classes_of`; DataError if there are none."""
    classes = classes_of(records)
    if classes is None:
        raise DataError(
            "The records have no classes; zero-shot classification and probes need a dataset such as "
            "--data.dataset '{name: image_folder, path: FOLDER}'."
        )
    return classes


def class_embeds(pipeline: Pipeline, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """Class embeddings float (C, E), L2-normalised: the mean of the embeddings of each class's prompts.

    Args:
        names: class names, as words.

    Warns:
        UserWarning: the tokenizer lacks words of some names, so the model cannot distinguish them.
    """
    check_templates(templates)
    unknown = [name for name in names if pipeline.tokenizer.unk_id in pipeline.tokenizer.encode(name)]
    if unknown:
        warnings.warn(
            f"The tokenizer does not know all words of {len(unknown)} of {len(names)} classes: "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}. It cannot distinguish them by name.",
            stacklevel=2,
        )
    prompts = pipeline.embed_texts([template.replace("{}", name) for name in names for template in templates])
    return ensemble_prompts(prompts.float().reshape(len(names), len(templates), -1))


def zero_shot_metrics(
    pipeline: Pipeline,
    records: Sequence[Record],
    image_embeds: Tensor,
    *,
    templates: Sequence[str] = TEMPLATES,
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """`zero_shot/top1`, ...: fraction of the images whose class is among the first k; ties count against the model.

    Args:
        image_embeds: float (records, E).
        ks: values of k; those of at least the number of classes are left out, except 1.

    Raises:
        DataError: the records have no classes.
    """
    names, labels = require_classes(records)
    scores = image_embeds.float() @ class_embeds(pipeline, names, templates).T
    return {f"zero_shot/top{k}": top_k_accuracy(scores, labels, k) for k in ks if k == 1 or k < len(names)}


def check_templates(templates: Sequence[str]) -> None:
    """Raise DataError unless each template has exactly one {}."""
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise DataError(
            f"templates are prompts with one {{}} for the class, such as 'a photo of a {{}}.'; got "
            f"{repr(wrong[0]) if wrong else 'none'}."
        )
