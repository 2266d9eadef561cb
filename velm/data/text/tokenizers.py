"""Sentences to token ids and back; a tokenizer owns its ids, and travels inside the checkpoint.

The special ids are kept outside the wrapped model, or its matching of them is switched off, so that a
caption in which somebody typed '<eos>' is text like any other.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["BPETokenizer", "ByteTokenizer", "HFTokenizer", "Tokenizer", "WordTokenizer"]

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")


class Tokenizer(ABC):
    """Text to ids, bos ... eos, and back.

    A subclass implements `to_ids`, `to_text`, `vocab_size`, `state` and `from_state`; one that learns its
    vocabulary also `train` and `trained`. The four special ids are distinct; override them where a
    pretrained vocabulary has its own.
    """

    pad_id: int = 0
    bos_id: int = 1
    eos_id: int = 2
    unk_id: int = 3

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of ids, the special ones included."""

    @property
    def trained(self) -> bool:
        """Whether `encode` can be called; True from the start where there is nothing to learn."""
        return True

    def train(self, texts: Iterable[str]) -> None:  # noqa: B027 - optional to override
        """Learn the vocabulary from sentences; does nothing where there is nothing to learn."""

    def encode(self, text: str) -> list[int]:
        """The ids of a sentence, bos ... eos, however long it is."""
        self._require_trained()
        return [self.bos_id, *self.to_ids(text), self.eos_id]

    def length(self, text: str) -> int:
        """How many ids `encode` gives, bos and eos included."""
        return len(self.encode(text))

    def decode(self, ids: Sequence[int]) -> str:
        """The sentence of some ids: everything up to the first eos, without special tokens."""
        self._require_trained()
        special = {self.pad_id, self.bos_id, self.unk_id}
        content = []
        for token in map(int, ids):
            if token == self.eos_id:
                break
            if token not in special:
                content.append(token)
        return self.to_text(content)

    @abstractmethod
    def to_ids(self, text: str) -> list[int]:
        """The ids of a sentence's content, without bos and eos."""

    @abstractmethod
    def to_text(self, ids: list[int]) -> str:
        """The text of content ids; there are no special ones among them."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Everything needed to make this tokenizer again, as plain Python that JSON can hold."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Tokenizer:
        """The tokenizer that `state` was taken from."""

    def _require_trained(self) -> None:
        if not self.trained:
            name = type(self).__name__
            raise RuntimeError(
                f"{name} has no vocabulary yet. Call train(texts) with the training split's sentences, "
                f"or {name}.from_state(...) with the state from a checkpoint."
            )


class WordTokenizer(Tokenizer):
    """Whole words, and punctuation marks one by one; a word not seen in training becomes unk.

    A word may hold apostrophes and hyphens ("dog's", "tri-colored"). Text comes back in its normal form:
    one space between words, none before a full stop, comma, colon, semicolon, question or exclamation mark.

    Args:
        lowercase: make no difference between upper and lower case.
        min_frequency: how often a word must occur in the training sentences to be kept, >= 1.
        max_size: the largest vocabulary, in ids with the four special ones; the rarest words go first.
            None keeps every word.
    """

    _WORD = r"\w+(?:['’\-]\w+)*|[^\w\s]"
    _ASCII_WORD = re.compile(_WORD, re.ASCII)  # several times as fast; of other letters `re` has another idea

    def __init__(self, *, lowercase: bool = True, min_frequency: int = 1, max_size: int | None = None) -> None:
        if min_frequency < 1:
            raise ValueError(f"min_frequency must be at least 1, got {min_frequency}.")
        if max_size is not None and max_size <= len(SPECIALS):
            raise ValueError(f"max_size must be above {len(SPECIALS)}, the special tokens, got {max_size}.")
        self.lowercase, self.min_frequency, self.max_size = lowercase, min_frequency, max_size
        self._words: list[str] = []

    @property
    def vocab_size(self) -> int:
        return len(SPECIALS) + len(self._words)

    @property
    def trained(self) -> bool:
        return bool(self._words)

    def train(self, texts: Iterable[str]) -> None:
        splitter = self._splitter()
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(self._ascii_words(text) if text.isascii() else _split(splitter, text))
        kept = sorted((w for w, n in counts.items() if n >= self.min_frequency), key=lambda w: (-counts[w], w))
        if not kept:
            raise ValueError(
                f"No word of the {len(counts)} in the training sentences occurs min_frequency = "
                f"{self.min_frequency} times. Lower min_frequency, or give more sentences."
            )
        self._build(kept if self.max_size is None else kept[: self.max_size - len(SPECIALS)])

    def normalise(self, text: str) -> str:
        """What `decode(encode(text))` gives when every word is known."""
        return _join(_split(self._splitter(), text))

    def to_ids(self, text: str) -> list[int]:
        return self._backend.encode(text).ids

    def length(self, text: str) -> int:
        self._require_trained()
        return 2 + len(self._ASCII_WORD.findall(text)) if text.isascii() else super().length(text)

    def to_text(self, ids: list[int]) -> str:
        return _join([self._words[i - len(SPECIALS)] for i in ids])

    def state(self) -> dict[str, Any]:
        options = {"lowercase": self.lowercase, "min_frequency": self.min_frequency, "max_size": self.max_size}
        return {"options": options, "words": list(self._words)}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> WordTokenizer:
        tokenizer = cls(**state["options"])
        if state["words"]:
            tokenizer._build(list(state["words"]))
        return tokenizer

    def _ascii_words(self, text: str) -> list[str]:
        return self._ASCII_WORD.findall(text.lower() if self.lowercase else text)

    def _splitter(self, model: Any = None) -> Any:
        from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers

        backend = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>") if model is None else model)
        steps = [normalizers.NFC()] + ([normalizers.Lowercase()] if self.lowercase else [])
        backend.normalizer = normalizers.Sequence(steps)
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(self._WORD), behavior="removed", invert=True)
        return backend

    def _build(self, words: list[str]) -> None:
        from tokenizers import models

        # Special tokens stand in the vocabulary only to keep their ids: the pattern never yields '<eos>' whole.
        vocab = {word: i for i, word in enumerate([*SPECIALS, *words])}
        self._words = words
        self._backend = self._splitter(models.WordLevel(vocab, unk_token="<unk>"))


def _split(backend: Any, text: str) -> list[str]:
    return [w for w, _ in backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))]


def _join(words: list[str]) -> str:
    return re.sub(r" ([.,:;?!])(?= |$)", r"\1", " ".join(words))


class BPETokenizer(Tokenizer):
    """Byte-level byte-pair encoding (Sennrich et al. 2016; bytes as in GPT-2): no text is unknown.

    Text comes back as it went in, but for case (if `lowercase`) and runs of white space.

    Args:
        vocab_size: ids to learn, with the four special ones and the 256 bytes; fewer if the training
            sentences have no more pairs.
        lowercase: make no difference between upper and lower case.
        min_frequency: how often a pair must occur to be merged, >= 1.
    """

    def __init__(self, *, vocab_size: int = 8192, lowercase: bool = True, min_frequency: int = 2) -> None:
        if vocab_size < len(SPECIALS) + 256:
            raise ValueError(
                f"vocab_size must be at least {len(SPECIALS) + 256} (256 bytes and {len(SPECIALS)} special "
                f"tokens), got {vocab_size}."
            )
        if min_frequency < 1:
            raise ValueError(f"min_frequency must be at least 1, got {min_frequency}.")
        self._options = {"vocab_size": vocab_size, "lowercase": lowercase, "min_frequency": min_frequency}
        self._backend: Any = None

    @property
    def vocab_size(self) -> int:
        """Before training, the size asked for."""
        if self._backend is None:
            return int(self._options["vocab_size"])
        return len(SPECIALS) + self._backend.get_vocab_size()

    @property
    def trained(self) -> bool:
        return self._backend is not None

    def train(self, texts: Iterable[str]) -> None:
        from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

        backend = Tokenizer(models.BPE())
        steps = [normalizers.NFC()] + ([normalizers.Lowercase()] if self._options["lowercase"] else [])
        spaces = [normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        backend.normalizer = normalizers.Sequence(steps + spaces)
        # The space in front makes the first word of a sentence the same token as elsewhere.
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=int(self._options["vocab_size"]) - len(SPECIALS),
            min_frequency=int(self._options["min_frequency"]),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        backend.train_from_iterator(texts, trainer)
        self._backend = backend

    def normalise(self, text: str) -> str:
        """What `decode(encode(text))` gives."""
        self._require_trained()
        return self._backend.normalizer.normalize_str(text)

    def to_ids(self, text: str) -> list[int]:
        return [i + len(SPECIALS) for i in self._backend.encode(text).ids]

    def to_text(self, ids: list[int]) -> str:
        return self._backend.decode([i - len(SPECIALS) for i in ids]).strip()

    def state(self) -> dict[str, Any]:
        return {"options": dict(self._options), "backend": self._backend.to_str() if self.trained else None}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> BPETokenizer:
        from tokenizers import Tokenizer

        tokenizer = cls(**state["options"])
        if state["backend"] is not None:
            tokenizer._backend = Tokenizer.from_str(state["backend"])
        return tokenizer


class ByteTokenizer(Tokenizer):
    """One id a UTF-8 byte: nothing to learn, nothing unknown, any text comes back exactly."""

    @property
    def vocab_size(self) -> int:
        return len(SPECIALS) + 256

    def to_ids(self, text: str) -> list[int]:
        return [byte + len(SPECIALS) for byte in text.encode("utf-8")]

    def to_text(self, ids: list[int]) -> str:
        return bytes(i - len(SPECIALS) for i in ids).decode("utf-8", errors="replace")

    def state(self) -> dict[str, Any]:
        return {}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ByteTokenizer:
        return cls()


class HFTokenizer(Tokenizer):
    """A tokenizer from the Hugging Face hub or a folder; its ids are kept.

    Where it has no bos or eos, cls and sep serve. A special token it lacks, or that shares its id with another
    (CLIP pads with eos, GPT-2 begins and ends with the same token), gets a new id after the last one.

    Args:
        model_name: hub id ("bert-base-uncased") or local folder; given by the name `hf/<model_name>`.
    """

    def __init__(self, *, model_name: str) -> None:
        from transformers import AutoTokenizer

        try:
            pretrained = AutoTokenizer.from_pretrained(model_name)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"No tokenizer could be loaded from {model_name!r}: it is neither a folder that holds one nor a "
                f"hub id within reach. Cause: {str(error).splitlines()[0]}"
            ) from error
        backend = getattr(pretrained, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{model_name!r} has only a slow tokenizer; VELM needs a fast one (tokenizer.json).")
        special = {
            "pad": pretrained.pad_token_id,
            "bos": _first(pretrained.bos_token_id, pretrained.cls_token_id),
            "eos": _first(pretrained.eos_token_id, pretrained.sep_token_id),
            "unk": pretrained.unk_token_id,
        }
        size = max(backend.get_vocab(with_added_tokens=True).values()) + 1
        self._set(model_name, backend.to_str(), *_distinct(special, size))

    @property
    def vocab_size(self) -> int:
        return self._size

    def to_ids(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def to_text(self, ids: list[int]) -> str:
        known = [i for i in ids if self._backend.id_to_token(i) is not None]
        return self._backend.decode(known, skip_special_tokens=False).strip()

    def state(self) -> dict[str, Any]:
        special = {"pad": self.pad_id, "bos": self.bos_id, "eos": self.eos_id, "unk": self.unk_id}
        return {"model_name": self.model_name, "backend": self._json, "special": special, "size": self._size}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> HFTokenizer:
        tokenizer = cls.__new__(cls)  # the constructor would ask the hub
        tokenizer._set(state["model_name"], state["backend"], state["special"], state["size"])
        return tokenizer

    def _set(self, model_name: str, backend: str, special: dict[str, int], size: int) -> None:
        from tokenizers import Tokenizer

        self.model_name, self._json, self._size = model_name, backend, size
        self.pad_id, self.bos_id, self.eos_id, self.unk_id = (special[k] for k in ("pad", "bos", "eos", "unk"))
        self._backend = Tokenizer.from_str(backend)
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = True  # '[SEP]' in a caption is text


def _first(*ids: int | None) -> int | None:
    return next((i for i in ids if i is not None), None)


def _distinct(special: dict[str, int | None], size: int) -> tuple[dict[str, int], int]:
    """Give each special token its own id; eos keeps the one it shares, since models were trained to end there."""
    result: dict[str, int] = {}
    for name in ("eos", "bos", "pad", "unk"):
        own = special[name]
        if own is None or own in result.values():
            own, size = size, size + 1
        result[name] = own
    return result, size
