"""Cleaning of text before it is tokenized, as in open_clip: repaired encodings, HTML entities, white space, case."""

from __future__ import annotations

import html
import string
from typing import Any

from velm.errors import MissingPackageError

__all__ = ["CLEANINGS", "clean_text", "require_cleaning"]

CLEANINGS = ("whitespace", "lower", "canonicalize")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def clean_text(text: str, cleaning: str) -> str:
    """The text as open_clip's tokenizers clean it (open_clip 3.3, tokenizer.py).

    Args:
        text: any.
        cleaning: 'whitespace': ftfy repairs it, HTML entities are replaced, and a run of white space is one blank;
            'lower': then lower case; 'canonicalize': then without punctuation too (SigLIP).
    """
    text = " ".join(html.unescape(html.unescape(_ftfy().fix_text(text))).split())
    if cleaning == "canonicalize":
        text = " ".join(text.replace("_", " ").translate(_NO_PUNCTUATION).split())
    return text if cleaning == "whitespace" else text.lower()


def require_cleaning(cleaning: str | None) -> None:
    """Check a cleaning by name; None: text is not cleaned.

    Raises:
        ValueError: there is none of this name.
        MissingPackageError: ftfy is not installed.
    """
    if cleaning is None:
        return
    if cleaning not in CLEANINGS:
        raise ValueError(f"clean is one of {', '.join(CLEANINGS)}; got {cleaning!r}.")
    _ftfy()


def _ftfy() -> Any:
    try:
        import ftfy
    except ImportError as error:
        raise MissingPackageError(
            "This tokenizer cleans text by ftfy, as open_clip does: pip install 'velm[open_clip]'."
        ) from error
    return ftfy
