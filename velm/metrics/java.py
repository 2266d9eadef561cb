"""METEOR and SPICE by pycocoevalcap (an extra) and Java."""

from __future__ import annotations

import importlib
import shutil
import subprocess
from collections.abc import Sequence
from typing import Any

from velm.errors import JavaMissingError
from velm.metrics.tokenization import Tokenize, tokenize_by

__all__ = ["meteor", "require_java", "spice"]


def meteor(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str | Tokenize = "auto"
) -> float:
    """METEOR 1.5 of the corpus (Denkowski and Lavie 2014), in [0, 1], as pycocoevalcap reports it.

    Args:
        hypotheses, references, tokenize: as of `velm.metrics.captioning`.

    Raises:
        JavaMissingError: pycocoevalcap or Java is missing.
    """
    return _score("METEOR", "meteor.meteor", "Meteor", hypotheses, references, tokenize)


def spice(
    hypotheses: Sequence[str], references: Sequence[Sequence[str]], *, tokenize: str | Tokenize = "auto"
) -> float:
    """SPICE (Anderson et al. 2016, arXiv 1607.08822), in [0, 1], as pycocoevalcap reports it.

    pycocoevalcap downloads Stanford CoreNLP 3.6.0 on first use and needs Java 8 to 11.

    Args:
        hypotheses, references, tokenize: as of `velm.metrics.captioning`.

    Raises:
        JavaMissingError: pycocoevalcap or Java is missing.
    """
    return _score("SPICE", "spice.spice", "Spice", hypotheses, references, tokenize)


def require_java(metric: str, module: str) -> Any:
    """Import a module of pycocoevalcap; JavaMissingError if it or Java is missing."""
    try:
        imported = importlib.import_module(f"pycocoevalcap.{module}")
    except ImportError as error:
        raise JavaMissingError(f"{metric} needs pycocoevalcap: pip install 'velm[metrics]' ({error}).") from error
    if shutil.which("java") is None:
        raise JavaMissingError(f"{metric} needs Java: there is no `java` on the PATH. Debian: default-jre-headless.")
    return imported


def _score(
    metric: str,
    module: str,
    name: str,
    hypotheses: Sequence[str],
    references: Sequence[Sequence[str]],
    tokenize: str | Tokenize,
) -> float:
    if not hypotheses or len(hypotheses) != len(references) or not all(references):
        raise ValueError(
            f"{metric} of {len(hypotheses)} hypotheses and {len(references)} lists of references: one "
            f"non-empty list per hypothesis and at least one hypothesis are required."
        )
    imported = require_java(metric, module)
    split = tokenize_by(tokenize)
    right = {i: [" ".join(split(s)) for s in captions] for i, captions in enumerate(references)}
    ours = {i: [" ".join(split(s))] for i, s in enumerate(hypotheses)}
    try:
        return float(getattr(imported, name)().compute_score(right, ours)[0])
    except (OSError, subprocess.CalledProcessError) as error:
        raise JavaMissingError(
            f"{metric} could not be computed by pycocoevalcap: {error}. SPICE downloads Stanford CoreNLP 3.6.0 on "
            f"first use (needs a network) and needs Java 8 to 11."
        ) from error
