"""The findings of a contract check: one per law; a broken law is an error under its stable name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from velm.findings import Finding, table

#: The name of every violation, and the law that it breaks.
LAWS = {
    "cannot be built": "the factory builds an instance",
    "wrong type": "the class and what it returns are of the types that the contract names",
    "untyped option": "constructor arguments have type hints, and there is no bare **kwargs",
    "raised": "an ordinary batch goes through",
    "wrong shape": "outputs have the shapes that the contract names",
    "wrong .dim": ".dim is the width of features and pooled",
    "not finite": "outputs hold neither nan nor inf",
    "changes its input": "the input tensors are not modified",
    "not deterministic in eval": "in eval mode the same input gives the same output",
    "no gradient": "every trainable parameter receives a gradient",
    "not additive": "of a loss with additive = True: the losses of micro-batches given the whole target_count add up",
    "batch of one": "a row alone gives the same as in a batch",
    "padding leak": "padding never changes a result",
    "fixed image size": "images of another size are encoded, or a ValueError names the right size",
    "looks ahead": "position t depends on tokens 0 ... t only",
    "stepping differs from forward": "stepping token by token equals forward",
    "select": "state.select(rows) continues exactly those rows",
    "words": "decode(words=read_words(tokens)) equals decode without words",
    "attention": "attention weights have their shape and sum to 1",
    "order matters": "shuffling the samples of a batch changes nothing",
    "not a scalar": "a loss is one finite number",
    "state not restored": "a second instance with the first one's state gives the same outputs",
    "dtype changed": "double in gives double out, and bfloat16 autocast goes through",
    "special ids": "pad, bos, eos and unk are distinct ids below vocab_size",
    "not bos ... eos": "encode gives plain ints from bos to eos, without padding",
    "decode": "decoding drops the special tokens, and encoding the result again gives the same ids",
    "records": "a split is a non-empty sequence of records, each with an image's id and its texts",
    "unknown split": "a split that does not exist is a MissingSplitError that lists the existing ones",
    "splits overlap": "no image is in two splits",
    "not repeatable": "reading the same record twice, or from a pickled copy, gives the same record",
}


class Note(str):
    """A remark of a law that holds: the finding is 'info', and the part passes."""


@dataclass
class Report:
    """The findings of every law that was checked, in order. Iterating gives the violations.

    Attributes:
        subject: kind and class of the part, the first line of the text form.
        findings: one per law; `check` is a name of `LAWS`.
    """

    subject: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def violations(self) -> list[Finding]:
        """The broken laws."""
        return [finding for finding in self.findings if finding.severity == "error"]

    @property
    def ok(self) -> bool:
        """Whether no law is broken."""
        return not self.violations

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.violations)

    def __str__(self) -> str:
        return f"{self.subject}\n{table(self.findings)}"

    def judge(self, name: str, law: Callable[[], str | None], needs: Sequence[str] = ()) -> bool:
        """Check one law and record the finding; whether it holds.

        A law is skipped if one of `needs` does not hold, so that one mistake is one violation. Random numbers are
        seeded, and the caller's random state is restored.

        Args:
            law: returns the violation, a `Note`, or None; an exception is a violation.
        """
        held = {f.check for f in self.findings if f.severity in ("ok", "info")}
        missing = [need for need in needs if need not in held]
        if missing:
            self.skip(name, f"not checked while '{missing[0]}' is violated")
            return False
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                message = law()
        except Exception as error:
            cause = str(error).strip().splitlines() or [""]
            message = f"it raised {type(error).__name__}: {cause[0].rstrip('.')}. Expected: {LAWS[name]}."
        if message is None:
            self.findings.append(Finding(name, "ok", LAWS[name]))
        else:
            self.findings.append(Finding(name, "info" if isinstance(message, Note) else "error", str(message)))
        return self.findings[-1].severity != "error"

    def skip(self, name: str, reason: str) -> None:
        """Record that a law was not checked, and why."""
        self.findings.append(Finding(name, "skipped", reason))
