"""What a contract check found: one result a law, each fault with a stable name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

__all__ = ["LAWS", "Fault", "Report", "Result"]

#: The name of every fault, and the law that it breaks.
LAWS = {
    "cannot be built": "the factory builds an instance",
    "wrong type": "the class and what it returns are of the types that the contract names",
    "untyped option": "constructor arguments have type hints, and there is no bare **kwargs",
    "raised": "an ordinary batch goes through",
    "wrong shape": "outputs have the shapes that the contract names",
    "lies about .dim": ".dim is the width of features and pooled",
    "not finite": "outputs hold neither nan nor inf",
    "changes its input": "the tensors handed in are left as they were",
    "not deterministic in eval": "in eval mode the same input gives the same output",
    "no gradient": "every trainable parameter receives a gradient",
    "not additive": "of a loss that says additive: pieces that are told the whole's target_count add up to the whole",
    "batch of one": "a row alone gives what it gives in a batch",
    "padding leak": "padding never changes a result",
    "fixed image size": "a picture of another size, wider than high, gives another grid",
    "looks ahead": "position t depends on tokens 0 ... t only",
    "stepping differs from forward": "stepping token by token equals forward",
    "select": "state.select(rows) continues exactly those rows",
    "words": "decode(words=read_words(tokens)) gives what decode gives, sentence by sentence",
    "attention": "attention weights have their shape and sum to 1",
    "order matters": "shuffling the samples of a batch changes nothing",
    "not a scalar": "a loss is one finite number",
    "state not restored": "a second instance with the first one's state gives the same outputs",
    "dtype changed": "double in gives double out, and bfloat16 autocast goes through",
    "special ids": "pad, bos, eos and unk are distinct ids below vocab_size",
    "not bos ... eos": "encode gives plain ints from bos to eos, without padding",
    "decode": "decoding drops the special tokens, and encoding the result again gives the same ids",
    "records": "a split is a non-empty sequence of records, each with an image's id and its texts",
    "unknown split": "a split that does not exist is a MissingSplitError listing those there are",
    "splits overlap": "no image is in two splits",
    "not repeatable": "reading the same record twice, or from a pickled copy, gives the same record",
}


@dataclass(frozen=True)
class Fault:
    """A broken law: its stable name, and what came, what was expected, what to do."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


@dataclass(frozen=True)
class Result:
    """One law looked at; `status` is 'ok', 'fault' or 'skipped' (then `message` says why)."""

    name: str
    status: str
    message: str = ""

    def __str__(self) -> str:
        if self.status == "fault":
            return f"FAULT    {self.name}: {self.message}"
        return f"{self.status:8} {LAWS[self.name]}" + (f" ({self.message})" if self.message else "")


@dataclass
class Report:
    """Every law that was looked at, in order. Iterating gives the faults; so does `report.faults`."""

    subject: str
    results: list[Result] = field(default_factory=list)

    @property
    def faults(self) -> list[Fault]:
        return [Fault(r.name, r.message) for r in self.results if r.status == "fault"]

    @property
    def ok(self) -> bool:
        return not self.faults

    def __iter__(self) -> Iterator[Fault]:
        return iter(self.faults)

    def __str__(self) -> str:
        return "\n".join([self.subject, *(f"  {result}" for result in self.results)])

    def judge(self, name: str, law: Callable[[], str | None], needs: Sequence[str] = ()) -> bool:
        """Look at one law: `law` returns what is wrong, or None; an exception is a fault of that name too.

        A law in whose `needs` one did not hold is skipped, so that one mistake is one fault. Random numbers
        are seeded within, and the caller's generator is left as it was.
        """
        held = {r.name for r in self.results if r.status == "ok"}
        missing = [need for need in needs if need not in held]
        if missing:
            self.skip(name, f"cannot be judged while '{missing[0]}' is open")
            return False
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                message = law()
        except Exception as error:
            cause = str(error).strip().splitlines() or [""]
            message = f"it raised {type(error).__name__}: {cause[0].rstrip('.')}. Expected: {LAWS[name]}."
        self.results.append(Result(name, "ok") if message is None else Result(name, "fault", message))
        return message is None

    def skip(self, name: str, reason: str) -> None:
        self.results.append(Result(name, "skipped", reason))
