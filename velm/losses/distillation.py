"""Distillation: a student's embeddings follow those of a frozen teacher, pair by pair and vector by vector."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.functional import normalize

from velm.errors import ConfigError, MissingOutputError
from velm.losses.base import Loss, full_precision
from velm.losses.tiled.distillation import feature_distance, relation
from velm.losses.tiled.tiles import with_gradient
from velm.outputs import EMBEDS, Batch, TeacherEmbeddings, VisionLanguageOutput

__all__ = ["DistillationLoss"]

MAX_SCALE = 100.0


class DistillationLoss(Loss):
    """Relations and features of a teacher: `relation` R + `feature` F.

    R is the mean, over both directions, of the cross-entropy of the student's softmax over all pairs of the batch
    against the teacher's at the teacher's own scale: the distillation of open_clip's DistillClipLoss (in TinyCLIP
    affinity mimicking, Wu et al. 2023, arXiv 2309.12314). Its floor is the entropy of the teacher. F is the mean
    squared difference between the embeddings, of images plus of texts: FD of CLIP-KD (Yang et al. 2024,
    arXiv 2307.12732), whose weight is 2000.

    Image ids are not used. Two captions of an image, or an image that occurs twice, are as likely as the teacher finds
    them, which sees equal images as equal; none is a negative. The embeddings come with the batch (`Batch.teacher`), so
    the loss has no weights of the teacher.

    Args:
        teacher: the pipeline that teaches: a checkpoint, or another source of `velm.load`.
        relation: weight of R, >= 0.
        feature: weight of F, >= 0; it needs E' = E, or `teacher_dim`.
        temperature: initial 1 / scale of the student's relations, > 0.
        learnable: train that scale.
        teacher_temperature: 1 / scale of the teacher's relations, > 0; None: the scale that the teacher learned.
        teacher_dim: E', where it is not E: a linear map from E to E' is learned for images and one for texts, applied
            before F and absent from the checkpoint's model. None: no map.
        cache: a folder for the teacher's embeddings; None: ~/.cache/velm/features.
        embed_dim: E; set by the builder.

    Raises:
        ValueError: an option is out of range.
    """

    requires = EMBEDS
    shares = True

    def __init__(
        self,
        *,
        teacher: str,
        relation: float = 1.0,
        feature: float = 2000.0,
        temperature: float = 0.07,
        learnable: bool = True,
        teacher_temperature: float | None = None,
        teacher_dim: int | None = None,
        cache: str | None = None,
        embed_dim: int | None = None,
    ) -> None:
        super().__init__()
        if not (relation >= 0 and feature >= 0 and relation + feature > 0):
            raise ValueError(f"relation {relation} and feature {feature} are weights >= 0, one of them above 0.")
        if not (temperature * MAX_SCALE >= 1 - 1e-6 and (teacher_temperature is None or teacher_temperature > 0)):
            raise ValueError(
                f"temperature {temperature} is at least {1 / MAX_SCALE:g}, and teacher_temperature "
                f"{teacher_temperature} above 0: they divide the similarities."
            )
        if teacher_dim is not None and (teacher_dim < 1 or embed_dim is None or not feature):
            raise ValueError(f"teacher_dim {teacher_dim} is a width >= 1, for feature above 0 (got {feature}).")
        self.teacher, self.cache = teacher, cache
        self.relation, self.feature, self.teacher_dim = relation, feature, teacher_dim
        self.teacher_temperature = teacher_temperature
        scale = nn.Parameter(torch.tensor(-math.log(temperature)), requires_grad=learnable)
        self.log_scale = scale if relation else None
        self.maps = nn.ModuleList()
        if teacher_dim is not None and embed_dim is not None:
            self.maps.extend(nn.Linear(embed_dim, teacher_dim) for _ in range(2))

    @property
    def logit_scale(self) -> Tensor | None:
        """float (), of the student's relations; None without them."""
        return None if self.log_scale is None else full_precision(self.log_scale).exp()

    def teacher_scale(self, teacher: TeacherEmbeddings) -> float:
        """The scale of the teacher's relations.

        Raises:
            ConfigError: the teacher learned none, and there is no `teacher_temperature`.
        """
        if self.teacher_temperature is not None:
            return 1 / self.teacher_temperature
        if teacher.scale is None:
            raise ConfigError(
                "The teacher learned no scale of its similarities, as a triplet loss learns none: set "
                "teacher_temperature of the distillation loss, e.g. 0.05, or relation: 0."
            )
        return teacher.scale

    def forward(self, output: VisionLanguageOutput, batch: Batch, group: dist.ProcessGroup | None = None) -> Tensor:
        """The loss, float (), float32 at least.

        Args:
            output: with the embeddings, (B, E); with a group, (b, E) of this rank.
            batch: with the teacher's, a row for each of the embeddings.
            group: the ranks that share the batch; None: the batch is complete.

        Raises:
            MissingOutputError: an embedding is missing, or the teacher's are.
            ValueError: student and teacher differ in their rows, or in their width, without a map.
        """
        self.check(output)
        if batch.teacher is None:
            raise MissingOutputError(
                "DistillationLoss needs the teacher's embeddings in batch.teacher; `velm fit` computes them once and "
                "puts them there (velm.training.memory.teacher). Set them in a loop of your own."
            )
        image, text = full_precision(output.image_embeds), full_precision(output.text_embeds)
        dtype = torch.promote_types(image.dtype, text.dtype)
        with torch.autocast(image.device.type, enabled=False):
            targets = [normalize(each.to(dtype), dim=1) for each in (batch.teacher.image, batch.teacher.text)]
            self._check_shapes(image, text, *targets)
            return self._total(image.to(dtype), text.to(dtype), (targets[0], targets[1]), batch.teacher, group)

    def _total(
        self,
        image: Tensor,
        text: Tensor,
        targets: tuple[Tensor, Tensor],
        teacher: TeacherEmbeddings,
        group: dist.ProcessGroup | None,
    ) -> Tensor:
        total = image.new_zeros(())
        if self.log_scale is not None:
            with torch.no_grad():
                self.log_scale.clamp_(max=math.log(MAX_SCALE))
            scale = self.teacher_scale(teacher)
            compute = partial(relation, teacher=targets, teacher_scale=scale, group=group)
            total = total + self.relation * with_gradient(compute, image, text, full_precision(self.log_scale).exp())
        if self.feature:
            maps = [full_precision(parameter).to(image.dtype) for parameter in self.maps.parameters()]
            compute = partial(feature_distance, teacher=targets, group=group)
            total = total + self.feature * with_gradient(compute, image, text, *maps)
        return total

    def _check_shapes(self, image: Tensor, text: Tensor, teacher_image: Tensor, teacher_text: Tensor) -> None:
        rows = [len(each) for each in (image, text, teacher_image, teacher_text)]
        if len(set(rows)) > 1:
            raise ValueError(
                f"DistillationLoss needs one row per pair: got image_embeds {rows[0]}, text_embeds {rows[1]}, and "
                f"{rows[2]} and {rows[3]} of the teacher. Gather all across ranks, or none."
            )
        self._check_width(image.shape[1], teacher_image.shape[1])

    def check_teacher(self, teacher: TeacherEmbeddings, embed_dim: int) -> None:
        self._check_width(embed_dim, teacher.image.shape[1])
        if self.relation:
            self.teacher_scale(teacher)

    def _check_width(self, student: int, teacher: int) -> None:
        if self.feature and teacher != (self.teacher_dim or student):
            has = f"teacher_dim is {self.teacher_dim}" if self.teacher_dim else "there is no map between them"
            raise ConfigError(
                f"The teacher's embeddings have {teacher} dimensions and the student's {student}, and {has}: set "
                f"teacher_dim: {teacher} of the distillation loss to learn a linear map, or model.embed_dim: "
                f"{teacher}, or feature: 0."
            )

    def logged(self) -> dict[str, Tensor | float]:
        scale = self.logit_scale
        return {} if scale is None else {"distillation_scale": scale.detach()}
