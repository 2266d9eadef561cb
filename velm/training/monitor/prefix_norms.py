"""Compares the norms of a prefix's image vectors and of word vectors before the first step."""

from __future__ import annotations

import warnings
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from velm.decoders.llm import LLMDecoder
from velm.decoders.prefix import PrefixDecoder
from velm.model import VisionLanguageModel
from velm.outputs import Batch
from velm.training.distributed import fsdp as sharding
from velm.training.monitor.loggers import log_metrics
from velm.util import evaluating

__all__ = ["PrefixNorms", "prefix_norms"]

SAMPLES = 8
APART = 10.0
"""Ratio of the two norms, either way, from which a run warns."""


class PrefixNorms(Callback):
    """Logs `watch/prefix_norm/image` and `watch/prefix_norm/word` at step 0 of a run with a prefix decoder.

    A language model that was trained on words alone reads vectors of another norm badly: much longer ones drown the
    words, and much shorter ones are not noticed.
    """

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Batch, batch_index: int) -> None:
        if trainer.global_step or batch_index or not isinstance(pl_module.model.decoder, PrefixDecoder):
            return
        if pl_module.sharded:
            sharding.unshard(pl_module.model)
        with trainer.precision_plugin.forward_context():
            image, word = prefix_norms(pl_module.model, batch)
        if pl_module.sharded:
            sharding.reshard(pl_module.model)
        log_metrics(trainer, {"watch/prefix_norm/image": image, "watch/prefix_norm/word": word}, 0)
        if trainer.is_global_zero and not word / APART < image < word * APART:
            warnings.warn(_advice(pl_module.model.decoder, image, word), stacklevel=2)


@torch.no_grad()
def prefix_norms(model: VisionLanguageModel, batch: Batch) -> tuple[float, float]:
    """Median norms of the vectors of the prefix and of the words of a batch's first samples, as the decoder reads them.

    The decoder's `embed_tokens` gives the words: Gemma's are multiplied by sqrt(width). Nothing of the model changes.
    """
    decoder = model.decoder
    assert isinstance(decoder, PrefixDecoder)
    [batch, *_] = batch.micro_batches(SAMPLES)
    with evaluating(model):  # no statistics of a batch are updated, and no random number is drawn
        with torch.compiler.set_stance("force_eager"):  # nothing is compiled for these few
            output = model(batch, {"decoder"})
            prefix, content = decoder.embed_prefix(*model.encoder_memory(output.image, output.text))
        target = (batch.tokens, batch.mask) if batch.target_tokens is None else (batch.target_tokens, batch.target_mask)
        assert target[0] is not None
        assert target[1] is not None
        words = decoder.embed_tokens(target[0], 0)[target[1]]
    return _median_norm(prefix if content is None else prefix[content]), _median_norm(words)


def _median_norm(vectors: torch.Tensor) -> float:
    return float(vectors.float().norm(dim=-1).median())


def _advice(decoder: PrefixDecoder, image: float, word: float) -> str:
    advice = (
        "Set model.decoder.prefix_norm: match, which starts them at the norm of the words and learns one factor, or "
        "the norm as a number."
        if isinstance(decoder, LLMDecoder)
        else "Train the projection of the memory at a lower or higher learning rate (model.optimizer.lr_scale)."
    )
    return (
        f"Before the first step the image vectors of the prefix have a median norm of {image:.3g}, and the word "
        f"vectors one of {word:.3g} (watch/prefix_norm): the language model may not read them for a long time. {advice}"
    )
