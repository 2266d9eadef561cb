"""Attention maps: the decoder's attention over the image for each word of a text.

Computed under teacher forcing: alpha of an RNN's additive attention (Xu et al. 2015, arXiv 1502.03044, figure 3), the
last block's cross-attention of a Transformer, averaged over heads, a language model's attention to the image in its
prefix (`velm.decoders.recorded_view`). Attention is not attribution: which pixels decide is
in `velm.explain.saliency`.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from velm.data.text.base import Tokenizer
from velm.outputs import EncoderOutput
from velm.pipeline import Pipeline
from velm.prompt import Prompt
from velm.segmentation import words_on_screen

UNKNOWN = "⟨unk⟩"


@dataclass(frozen=True)
class WordMaps:
    """One attention map per word.

    Attributes:
        words: W words of a text, in order.
        maps: float (W, H', W'), the attention on each position of the image, row by row from the top left corner;
            a map sums to 1, or to less if the decoder attends over a text too.
    """

    words: tuple[str, ...]
    maps: Tensor


@torch.inference_mode()
def word_maps(
    pipeline: Pipeline,
    image: EncoderOutput | None,
    texts: Sequence[str],
    source: EncoderOutput | None = None,
    prompt: Prompt | None = None,
) -> list[WordMaps | None]:
    """The attention map of each word of B texts, one text per image.

    Args:
        image: B encoded images (`pipeline.encode_images`).
        source, prompt: what the decoder reads besides, `pipeline.read_texts` of B texts.

    Returns:
        B items; None without a map: the decoder returns no attention, or the image encoder has no grid.

    Raises:
        PipelineError: the model has no decoder.
    """
    pipeline.require_decoder()
    decoder, sources = pipeline.model.decoder, pipeline.model.memory_sources
    assert decoder is not None
    if image is None or image.grid is None or "image" not in sources or not texts:
        return [None] * len(texts)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the texts were tokenized before, with a warning
        tokens, _ = pipeline.tokenize([pipeline.prompter.lead + text for text in texts])
    prompt = pipeline.instruction(len(texts)) if prompt is None else prompt
    attention = decoder.attend(tokens[:, :-1], *pipeline.model.encoder_memory(image, source), prompt)
    if attention is None:
        return [None] * len(texts)
    positions = image.features.shape[1]
    attention = attention[..., :positions] if sources[0] == "image" else attention[..., -positions:]
    grids = attention.float().unflatten(-1, image.grid).cpu()
    return [_by_word(pipeline.tokenizer, ids, grid) for ids, grid in zip(tokens[:, 1:].tolist(), grids, strict=True)]


def _by_word(tokenizer: Tokenizer, ids: Sequence[int], grids: Tensor) -> WordMaps:
    """The mean over the tokens of each word; ids (T,) without bos, grids float (T, H', W')."""
    rows: list[list[int]] = []
    words: list[str] = []
    known: list[int] = []
    before: list[str] = []
    for row, token in enumerate(ids):
        if token in (tokenizer.eos_id, tokenizer.pad_id):
            break
        if token == tokenizer.unk_id:
            words.append(UNKNOWN)
            rows.append([row])
            continue
        known.append(token)
        after = words_on_screen(tokenizer.decode(known))
        if len(after) > len(before):
            words.append("".join(after[len(before) :]))
            rows.append([row])
        elif after and words[-1] != UNKNOWN:
            words[-1] = after[-1]
            rows[-1].append(row)
        before = after
    maps = [grids[each].mean(dim=0) for each in rows]
    return WordMaps(tuple(words), torch.stack(maps) if maps else grids[:0])
