"""The contract of a loss: what the model made of a batch in, one number out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from velm.errors import MissingOutputError
from velm.outputs import Batch, VisionLanguageOutput

__all__ = ["Loss", "full_precision"]

_ASK_FOR = {"image_embeds": "an image_encoder", "text_embeds": "a text_encoder", "decoder": "a decoder"}


class Loss(nn.Module, ABC):
    """A number to make small.

    A subclass takes keyword-only arguments with type hints, owns its learnable scalars (a temperature, a
    bias), and is a plain function of the whole batch. With several devices the training task gathers the
    embeddings, with their gradient, and hands over an output and a batch whose `image_embeds`, `text_embeds`
    and `image_ids` are everybody's: a loss never knows.

    A loss that knows how to share the work says `shares = True`. It is then handed each device's own rows and a
    `batch.group`, gives everywhere the loss of the whole batch, and to its embeddings the gradient of the sum of what
    it gives on all of them, as a gather with gradient does; scalars get that of one.

    `requires` names the fields of `VisionLanguageOutput` it cannot do without, among `image_embeds`,
    `text_embeds` and `decoder`. `additive` says that the loss of a batch is the sum of those of its pieces, as long
    as each is told the `target_count` of the whole; with `micro_batch_size` such a loss never sees the whole.
    """

    requires: frozenset[str] = frozenset()
    additive: bool = False
    shares: bool = False

    @abstractmethod
    def forward(self, output: VisionLanguageOutput, batch: Batch) -> Tensor:
        """The loss of a batch, float ()."""

    def logged(self) -> dict[str, Tensor | float]:
        """Scalars worth a line in the log, by name (the temperature as it is now)."""
        return {}

    def check(self, output: VisionLanguageOutput) -> None:
        """See that everything in `requires` is there.

        Raises:
            MissingOutputError: it is not; the message says what the model's configuration needs.
        """
        missing = sorted(name for name in self.requires if getattr(output, name) is None)
        if missing:
            cure = " and ".join(_ASK_FOR[name] for name in missing)
            raise MissingOutputError(
                f"{type(self).__name__} needs {', '.join(missing)}, which this model does not compute. "
                f"Give the model {cure}, or take the loss out of model.losses."
            )


def full_precision(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 become float32: softmaxes over a batch lose too much below; the rest stays."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
