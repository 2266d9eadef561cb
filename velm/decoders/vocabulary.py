"""Language models of transformers with a vocabulary of their own beside the tokenizer's: BLIP's [DEC], GPT-2's only
special token.

A text begins with `start_id` in place of the tokenizer's bos, and ids that the model does not know (special tokens that
the tokenizer added) are read as `start_id`, too; where they stand, nothing depends on them.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["check_vocabulary", "own_ids"]


def check_vocabulary(model_name: str, own: int, vocab_size: int, start_id: int | None) -> None:
    """Check that a model of `own` tokens goes with a tokenizer of `vocab_size`.

    Raises:
        ValueError: it does not; or the model has no token `start_id`.
    """
    if start_id is None and own != vocab_size:
        raise ValueError(
            f"The config of {model_name} has vocab_size {own}, the tokenizer {vocab_size} tokens. Leave vocab_size out "
            f"of the config: the tokenizer's is taken."
        )
    if start_id is not None and not 0 <= start_id < own:
        raise ValueError(f"start_id {start_id} is no token of {model_name}, whose vocabulary has {own}.")
    if vocab_size > own + 4:  # pad, bos, eos, unk
        raise ValueError(
            f"The tokenizer has {vocab_size} tokens, {model_name} knows {own}: they do not belong together. Use its "
            f"own tokenizer."
        )


def own_ids(tokens: Tensor, start_id: int | None, own: int, past: int) -> Tensor:
    """Tokens int64 (B, T) by the model's ids; unchanged if `start_id` is None.

    Args:
        own: tokens that the model knows.
        past: tokens fed before; the first of all is bos.
    """
    if start_id is None:
        return tokens
    tokens = tokens.masked_fill(tokens >= own, start_id)
    if past == 0:
        tokens[:, 0] = start_id
    return tokens
