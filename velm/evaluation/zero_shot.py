"""Zero-shot classification: each class is a few sentences, an image's class the one whose embedding is nearest.

Radford et al. 2021 (arXiv 2103.00020, section 3.1). A class has one embedding, the mean of those of its prompts.
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

__all__ = ["TEMPLATES", "check_templates", "class_embeds", "classes_of", "require_classes", "zero_shot_figures"]

TEMPLATES = ("a photo of a {}.", "a picture of a {}.", "a close up of a {}.", "there is a {}.", "a {}.")
"""Plain English, because a small model has never met 'itap of a {}.'."""


def classes_of(records: Sequence[Record]) -> tuple[list[str], Tensor] | None:
    """The names of the classes and each record's, or None where records have none in their metadata.

    Args:
        records: whose metadata has 'class' and 'class_index', as those of `image_folder`; what is known of classes
            without an image is taken from the attribute `classes`.

    Returns:
        C names, and int64 (records,), places in them.
    """
    if not len(records) or "class" not in records[0].metadata:
        return None
    found = [record.metadata for record in records]
    without = next((i for i, each in enumerate(found) if "class" not in each), None)
    if without is not None:
        raise DataError(f"Record {records[without].image_id!r} has no class, others have; all must, or none.")
    names = list(getattr(records, "classes", None) or dict.fromkeys(each["class"] for each in found))
    places = {name: place for place, name in enumerate(names)}
    return names, torch.tensor([places[each["class"]] for each in found])


def require_classes(records: Sequence[Record]) -> tuple[list[str], Tensor]:
    """As `classes_of`, or DataError where there are none."""
    found = classes_of(records)
    if found is None:
        raise DataError(
            "The records have no classes; zero-shot classification and probes take a dataset such as "
            "--data.dataset '{name: image_folder, path: FOLDER}'."
        )
    return found


def class_embeds(pipeline: Pipeline, names: Sequence[str], templates: Sequence[str] = TEMPLATES) -> Tensor:
    """One embedding a class, float (C, E), L2-normalised: the mean of those of its prompts.

    Args:
        pipeline: a model that aligns.
        names: of the classes, in words.
        templates: sentences with one {} for the name.

    Warns:
        UserWarning: the tokenizer does not know words of some names, which are then all alike to the model.
    """
    check_templates(templates)
    unknown = [name for name in names if pipeline.tokenizer.unk_id in pipeline.tokenizer.encode(name)]
    if unknown:
        warnings.warn(
            f"The tokenizer does not know all words of {len(unknown)} of {len(names)} classes: "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}. By their names it cannot tell them.",
            stacklevel=2,
        )
    prompts = pipeline.embed_texts([template.replace("{}", name) for name in names for template in templates])
    return ensemble_prompts(prompts.float().reshape(len(names), len(templates), -1))


def zero_shot_figures(
    pipeline: Pipeline,
    records: Sequence[Record],
    image_embeds: Tensor,
    *,
    templates: Sequence[str] = TEMPLATES,
    ks: Sequence[int] = (1, 5),
) -> dict[str, float]:
    """Share of the images whose class is among the first k, under the names of metrics.json; ties count against.

    Args:
        pipeline: a model that aligns.
        records: with classes.
        image_embeds: float (records, E), of their images.
        templates: as of `class_embeds`.
        ks: numbers of classes looked at; those, but for 1, that are as many as there are classes are left out.

    Raises:
        DataError: the records have no classes.
    """
    names, labels = require_classes(records)
    scores = image_embeds.float() @ class_embeds(pipeline, names, templates).T
    return {f"zero_shot/top{k}": top_k_accuracy(scores, labels, k) for k in ks if k == 1 or k < len(names)}


def check_templates(templates: Sequence[str]) -> None:
    """Raise DataError where a template has no one place for the class."""
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise DataError(
            f"templates are sentences with one {{}} for the class, such as 'a photo of a {{}}.'; got "
            f"{repr(wrong[0]) if wrong else 'none'}."
        )
