"""SentencePiece models that transformers runs in Python, as tokenizers of the library `tokenizers`."""

from __future__ import annotations

import string
from typing import Any

__all__ = ["siglip_tokenizer"]


def siglip_tokenizer(pretrained: Any) -> Any:
    """SigLIP's tokenizer as a `tokenizers.Tokenizer`: lower case, no punctuation, then SentencePiece's unigrams.

    Args:
        pretrained: `transformers.SiglipTokenizer`, whose rules for text (`canonicalize_text`) are Python.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers.utils import sentencepiece_model_pb2_new

    proto: Any = sentencepiece_model_pb2_new
    model = proto.ModelProto()
    model.ParseFromString(pretrained.sp_model.serialized_model_proto())
    pieces = [(piece.piece, piece.score) for piece in model.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=pretrained.unk_token_id, byte_fallback=False))
    punctuation = "".join(f"\\{mark}" for mark in string.punctuation)
    steps: list[Any] = [normalizers.Lowercase()] if pretrained.do_lower_case else []
    steps += [normalizers.Replace(Regex(f"[{punctuation}]"), ""), normalizers.Replace(Regex(r"\s+"), " ")]
    steps.append(normalizers.Strip())
    if model.normalizer_spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(model.normalizer_spec.precompiled_charsmap))
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="\u2581", prepend_scheme="always", split=False)
    tokenizer.decoder = decoders.Metaspace(replacement="\u2581", prepend_scheme="always")
    special = dict.fromkeys([pretrained.unk_token, pretrained.eos_token, pretrained.pad_token])
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer
