"""The byte-pair encoding of OpenAI's CLIP and open_clip."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

from velm.data.text.cleaning import require_cleaning
from velm.data.text.hf import HFTokenizer
from velm.errors import MissingPackageError

__all__ = ["CLIPTokenizer"]

_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
_MERGES = 49_152 - 256 - 2  # the file has more; CLIP's vocabulary ends there


class CLIPTokenizer(HFTokenizer):
    """open_clip's `SimpleTokenizer`: text is cleaned by ftfy, made lower case, and cut into 49,408 byte pairs.

    Args:
        vocabulary: the file bpe_simple_vocab_16e6.txt.gz; null: that of the installed package open_clip.
        clean: of text, before it is cut, see `velm.data.text.cleaning.clean_text`.

    Raises:
        MissingPackageError: a package is not installed.
        ValueError: there is no such file.
    """

    def __init__(self, *, vocabulary: str | None = None, clean: str = "lower") -> None:
        require_cleaning(clean)
        path = _installed() if vocabulary is None else Path(vocabulary).expanduser()
        if not path.is_file():
            raise ValueError(f"There is no vocabulary file {str(path)!r} (seen from {Path.cwd()}).")
        tokens, merges = _read(path)
        start, end = len(tokens), len(tokens) + 1
        special = {"pad": end + 1, "bos": start, "eos": end, "unk": end + 2}
        self._set("clip", _backend(tokens, merges).to_str(), special, end + 3, clean)
        self.padded_with = 0


def _installed() -> Path:
    try:
        import open_clip.tokenizer
    except ImportError as error:
        raise MissingPackageError(
            "CLIP's vocabulary is in the package open_clip: pip install 'velm[open_clip]'; or name the file "
            "bpe_simple_vocab_16e6.txt.gz: tokenizer: {name: clip, vocabulary: FILE}."
        ) from error
    return Path(open_clip.tokenizer.default_bpe())


def _read(path: Path) -> tuple[list[str], list[tuple[str, str]]]:
    """The tokens by id, without the special ones, and the pairs in the order in which they are merged."""
    from tokenizers import pre_tokenizers

    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")[1 : _MERGES + 1]
    merges = [(left, right) for left, right in map(str.split, lines)]
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]  # printable bytes first, in this order
    printable = [chr(byte) for byte in order]
    others = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - set(printable))
    letters = printable + others
    return [*letters, *(letter + "</w>" for letter in letters), *(left + right for left, right in merges)], merges


def _backend(tokens: list[str], merges: list[tuple[str, str]]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocabulary, merges, continuing_subword_prefix="", end_of_word_suffix="</w>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Replace("</w>", " ")])
    return backend
