"""The tokenizer contract: text to token ids and back.

Special ids are kept outside the wrapped model, or its matching of special tokens is switched off: a caption that
contains '<eos>' is ordinary text.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

from velm.errors import ConfigError

__all__ = ["SPECIALS", "Tokenizer", "truncate"]

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")


class Tokenizer(ABC):
    """Text to ids, bos ... eos, and back.

    Subclasses implement `to_ids`, `to_text`, `vocab_size`, `state` and `from_state`; one that learns its vocabulary
    also implements `train` and `trained`. The four special ids must be distinct; override them for a pretrained
    vocabulary.

    Attributes:
        special_texts: what is a special token inside a template, and so may not be in a text that fills it.
        start_text: the text of the special token that begins a text, for a template; None: there is none.
        bos_text, eos_text: the texts of bos and eos in a template; None: they have none.
    """

    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_id: int = 3
    special_texts: tuple[str, ...] = ()
    start_text: str | None = None
    bos_text: str | None = None
    eos_text: str | None = None

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, special ids included."""

    @property
    def trained(self) -> bool:
        """Whether `encode` can be called; always True for a tokenizer that learns nothing."""
        return True

    def train(self, texts: Iterable[str]) -> None:  # noqa: B027 - optional to override
        """Learn the vocabulary from `texts`. The default does nothing."""

    def encode(self, text: str) -> list[int]:
        """Ids of a text, bos and eos included, never truncated.

        Raises:
            RuntimeError: the vocabulary is not trained.
        """
        self._require_trained()
        return [self.bos_id, *self.to_ids(text), self.eos_id]

    def length(self, text: str) -> int:
        """`len(encode(text))`."""
        return len(self.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids before the first eos; special ids are skipped."""
        self._require_trained()
        special = {self.pad_id, self.bos_id, self.unk_id}
        content = []
        for token in map(int, ids):
            if token == self.eos_id:
                break
            if token not in special:
                content.append(token)
        return self.to_text(content)

    def to_ids_of_parts(self, parts: Sequence[str | None]) -> list[list[int]]:
        """Ids of one text that is given in parts, by part; None is a place where it is cut, and has none.

        A token that reaches over the seam of two parts belongs to the later one. Here each part is tokenized alone,
        which is the same where no token reaches over a seam; special tokens of `special_texts` count as such.
        """
        return [[] if part is None else self.to_ids(part) for part in parts]

    def render_chat(self, messages: Sequence[dict[str, str]], *, prompt: bool) -> str:
        """The text of a chat, by the tokenizer's chat template.

        Args:
            messages: {'role': 'user' or 'assistant', 'content': text}.
            prompt: end with what introduces an answer.

        Raises:
            ConfigError: the tokenizer has no chat template.
        """
        raise ConfigError(
            "decoder.template is 'chat', and the tokenizer has no chat template; those of instruction-tuned models "
            "have one, e.g. data.tokenizer.name=hf/HuggingFaceTB/SmolLM2-135M-Instruct. Or write the template as a "
            "text: 'Question: {text} Answer:'."
        )

    def vocabulary(self) -> dict[str, int]:
        """The ids of the tokens by their text, without the special ones; empty if a tokenizer cannot list them."""
        return {}

    @abstractmethod
    def to_ids(self, text: str) -> list[int]:
        """Ids of a text without bos and eos."""

    @abstractmethod
    def to_text(self, ids: list[int]) -> str:
        """Text of `ids`, which hold no special ids."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """JSON-serialisable state for `from_state`; stored in the checkpoint."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Tokenizer:
        """Restore a tokenizer from its `state()`."""

    def _require_trained(self) -> None:
        if not self.trained:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} has no vocabulary yet. Call train(texts) with the training split's sentences, "
                f"or {name}.from_state(...) with the state from a checkpoint."
            )


def truncate(ids: list[int], max_length: int | None) -> list[int]:
    """The first ids of `bos ... eos`, at most `max_length`, with eos at the end."""
    if max_length is None or len(ids) <= max_length:
        return ids
    return [*ids[: max_length - 1], ids[-1]]
