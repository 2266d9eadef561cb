"""`check` and `assert_contract`: the contract check of any part, chosen by its base class."""

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
from velm.testing.laws import PartUnderTest
from velm.testing.losses import check_loss
from velm.testing.report import Report

#: The check of each kind of part; keys as in `velm.registry.KINDS`.
CHECKS: dict[str, Callable[..., Report]] = {
    "image_encoders": check_image_encoder,
    "text_encoders": check_text_encoder,
    "decoders": check_decoder,
    "losses": check_loss,
    "datasets": check_dataset,
    "tokenizers": check_tokenizer,
}
#: The base class of each kind of part.
BASES: dict[str, type] = {
    "image_encoders": ImageEncoder,
    "text_encoders": TextEncoder,
    "decoders": Decoder,
    "losses": Loss,
    "datasets": Dataset,
    "tokenizers": Tokenizer,
}


def check(part: Any, **options: Any) -> Report:
    """Check every law of a part's contract.

    Args:
        part: a callable without arguments that builds a fresh instance, or an instance.
        **options: what the part was built with, as the check of its kind takes it (vocab_size, pad_id,
            memory_dim, image_size).
    """
    tested = PartUnderTest.of(part, "part")
    if tested.instance is None:
        return tested.report
    for kind, base in BASES.items():
        if isinstance(tested.instance, base):
            return CHECKS[kind](_reuse_instance(tested, part), **options)
    names = ", ".join(base.__name__ for base in BASES.values())
    message = f"{type(tested.instance).__name__} is none of {names}; derive it from one of them."
    tested.report.judge("wrong type", lambda: message)
    return tested.report


def _reuse_instance(tested: PartUnderTest, part: Any) -> Any:
    """The factory, except that its first call returns the instance that is already built."""
    if not tested.has_factory:
        return part
    built = [tested.instance]
    return lambda: built.pop() if built else part()


def assert_contract(part: Any, **options: Any) -> Report:
    """`check` as an assertion, for tests.

    Raises:
        AssertionError: laws are broken; the message lists every violation by its name.
    """
    report = check(part, **options)
    if not report.ok:
        listed = "\n".join(f"  {violation}" for violation in report.violations)
        raise AssertionError(f"{report.subject} breaks {len(report.violations)} of VELM's laws:\n{listed}")
    return report
