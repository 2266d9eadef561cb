"""One door to every check: the kind is seen from what the factory builds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from velm.data.base import Dataset
from velm.data.text.base import Tokenizer
from velm.decoders.base import Decoder
from velm.encoders.base import ImageEncoder, TextEncoder
from velm.losses.base import Loss
from velm.testing.data import check_dataset, check_tokenizer
from velm.testing.decoders import check_decoder
from velm.testing.encoders import check_image_encoder, check_text_encoder
from velm.testing.laws import Subject
from velm.testing.losses import check_loss
from velm.testing.report import Report

__all__ = ["BASES", "CHECKS", "assert_contract", "check"]

#: The check of each kind, by the registry's names of kinds.
CHECKS: dict[str, Callable[..., Report]] = {
    "image_encoders": check_image_encoder,
    "text_encoders": check_text_encoder,
    "decoders": check_decoder,
    "losses": check_loss,
    "datasets": check_dataset,
    "tokenizers": check_tokenizer,
}
#: The contract of each kind.
BASES: dict[str, type] = {
    "image_encoders": ImageEncoder,
    "text_encoders": TextEncoder,
    "decoders": Decoder,
    "losses": Loss,
    "datasets": Dataset,
    "tokenizers": Tokenizer,
}


def check(part: Any, **options: Any) -> Report:
    """Look at every law of whatever `part` builds.

    Args:
        part: a callable without arguments that builds a fresh instance, or an instance.
        **options: what the part was built with, as the check of its kind takes it (vocab_size, pad_id,
            memory_dim, image_size).
    """
    subject = Subject.of(part, "part")
    if subject.instance is None:
        return subject.report
    for kind, base in BASES.items():
        if isinstance(subject.instance, base):
            return CHECKS[kind](_reusing(subject, part), **options)
    names = ", ".join(base.__name__ for base in BASES.values())
    message = f"{type(subject.instance).__name__} is none of {names}; derive it from one of them."
    subject.report.judge("wrong type", lambda: message)
    return subject.report


def _reusing(subject: Subject, part: Any) -> Any:
    """The factory again, whose first product is the instance that is already built."""
    if not subject.fresh:
        return part
    built = [subject.instance]
    return lambda: built.pop() if built else part()


def assert_contract(part: Any, **options: Any) -> Report:
    """`check`, as one line of a test.

    Raises:
        AssertionError: laws are broken; the message lists every fault by its name.
    """
    report = check(part, **options)
    if not report.ok:
        faults = "\n".join(f"  {fault}" for fault in report.faults)
        raise AssertionError(f"{report.subject} breaks {len(report.faults)} of VELM's laws:\n{faults}")
    return report
