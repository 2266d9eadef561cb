"""`Loss`, the contract of a loss: model output and batch in, a scalar out."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from velm.errors import MissingOutputError
from velm.outputs import Batch, TeacherEmbeddings, VisionLanguageOutput, aligns

__all__ = ["Loss", "full_precision"]

_PART_OF = {"image_embeds": "an image_encoder", "text_embeds": "a text_encoder", "decoder": "a decoder"}


class Loss(nn.Module, ABC):
    """A scalar to minimise.

    A subclass takes keyword-only arguments with type hints, owns its learnable scalars (a temperature, a bias), and is
    a plain function of the whole batch. With several devices the training task gathers the embeddings, with gradient:
    `image_embeds`, `text_embeds` and `image_ids` cover all ranks; a loss need not know about distribution.

    Attributes:
        requires: the outputs that the loss reads, among `image_embeds`, `text_embeds` and `decoder`.
            On several devices a loss of `decoder` alone sees the samples of one rank; the mean over the ranks weighs
            each by its number of samples unless the loss is `additive`.
        hard_negatives: K, captions per pair that are false of its image and whose embeddings the loss reads from
            `output.embeddings.hard_negatives`, where the batch has them; 0: it reads none.
        additive: the loss of a batch is the sum over its micro-batches, given the `target_count` of the batch; with
            `micro_batch_size` such a loss sees micro-batches only.
        teacher: the pipeline whose embeddings of the batch the loss reads from `batch.teacher`: a checkpoint or another
            source of `velm.load`; None: it reads none.
        shares: the loss distributes its own work. `forward` then takes a third argument, `group`, the process group of
            the ranks, and embeddings and image ids are this rank's. It returns the loss of the whole batch on every
            rank; the gradient of its embeddings is that of the sum over ranks, as a gather with gradient gives it, and
            the gradient of its parameters that of one rank.
    """

    requires: frozenset[str] = frozenset()
    teacher: str | None = None
    hard_negatives: int = 0
    additive: bool = False
    shares: bool = False

    @property
    def aligns(self) -> bool:
        """Whether this is an alignment loss: it requires an image or a text embedding."""
        return aligns(self.requires)

    @abstractmethod
    def forward(self, output: VisionLanguageOutput, batch: Batch) -> Tensor:
        """The loss of a batch, float ()."""

    def logged(self) -> dict[str, Tensor | float]:
        """Scalars to log, by name (the current temperature)."""
        return {}

    def check_teacher(self, teacher: TeacherEmbeddings, embed_dim: int) -> None:
        """Raise ConfigError if the loss cannot use this teacher.

        Args:
            teacher: its embeddings of any samples.
            embed_dim: E of the student.
        """

    def check(self, output: VisionLanguageOutput) -> None:
        """Raise unless the model computed everything in `requires`.

        Raises:
            MissingOutputError: names what is missing and the part that the model config needs.
        """
        missing = sorted(name for name in self.requires if not output.has(name))
        if missing:
            cure = " and ".join(_PART_OF[name] for name in missing)
            raise MissingOutputError(
                f"{type(self).__name__} needs {', '.join(missing)}, which this model does not compute. "
                f"Give the model {cure}, or take the loss out of model.losses."
            )


def full_precision(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 to float32, for softmaxes over a batch; other dtypes unchanged."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
