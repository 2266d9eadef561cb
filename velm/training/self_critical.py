"""Self-critical sequence training: the model samples captions of a batch's images, and CIDEr-D rewards them.

    images ── eval mode, no gradient ──> samples, greedy ──> CIDEr-D ──> advantages
       ├───── train mode, teacher forcing over the samples ──> log p ──> loss `scst`
       └───── train mode, the batch's own captions ──> the other losses, such as `contrastive`

The samples take the place of the batch's captions, so that micro-batches, DDP and precision work as for captioning. A
frozen image encoder gives all passes the same features, which are computed once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import lightning
import torch
from torch import Tensor

from velm.data.base import Record, first_records, image_name, text_only
from velm.data.batches.collate import pad_tokens
from velm.errors import ConfigError, DataError
from velm.generation import GenerationConfig
from velm.losses.self_critical import SelfCriticalLoss
from velm.losses.weighted import WeightedLosses
from velm.metrics.document_frequency import DocumentFrequencies, Words
from velm.metrics.tokenization import Tokenize, tokenize_by
from velm.model import VisionLanguageModel
from velm.outputs import Batch, EncodedImages, SampledCaptions
from velm.pipeline.captioner import Captioner
from velm.training.distributed.gather import Gather
from velm.training.memory.feature_cache import is_frozen
from velm.util import evaluating

__all__ = ["CaptionRewards", "SelfCritic", "advantages", "build_critic", "require_self_critical", "split_losses"]

END = "\n"
"""The word after the last one of a complete caption; no tokenization has a word of white space."""
CACHED = 65_536
"""Images whose references stay split into words, those read last; five captions of an image take about 1 kB."""


def require_self_critical(losses: WeightedLosses, model: VisionLanguageModel) -> None:
    """Check that a model can be trained on the loss `scst`, if that is listed.

    Raises:
        ConfigError: the decoder reads a text or has a template.
    """
    name = next((name for name, loss in losses.named().items() if isinstance(loss, SelfCriticalLoss)), None)
    if name is None:
        return
    if "text" in model.reads or (model.decoder is not None and model.decoder.template is not None):
        raise ConfigError(
            f"The loss {name!r} rewards captions of images, and this decoder also reads a text or a template: train it "
            f"with captioning, or take 'text' out of model.memory and decoder.template."
        )


def split_losses(losses: WeightedLosses) -> tuple[WeightedLosses, WeightedLosses]:
    """The losses of captions that the model samples, and those of the data's captions."""
    of_samples = losses.only(lambda loss: isinstance(loss, SelfCriticalLoss))
    return of_samples, losses.only(lambda loss: not isinstance(loss, SelfCriticalLoss))


def build_critic(task: Any) -> SelfCritic | None:
    """What samples and rewards captions in the fit of a `VisionLanguageTask`; None without the loss `scst`.

    Raises:
        ConfigError: there is no data module with captions, or FSDP2 has sharded the weights.
        DataError: an image of the training split has no caption.
    """
    loss = next((loss for loss in task.losses.values() if isinstance(loss, SelfCriticalLoss)), None)
    if loss is None:
        return None
    data: Any = getattr(task.trainer, "datamodule", None)
    if not hasattr(data, "records"):
        raise ConfigError(
            "The loss 'scst' rewards captions by the references of their images, and the Trainer has no data module "
            "that has them: fit with a VisionLanguageData, as `velm fit` does."
        )
    if task.sharded:
        raise ConfigError(
            "The loss 'scst' samples captions with complete weights, and fsdp2 shards them: take "
            "--trainer.strategy=ddp."
        )
    rewards = CaptionRewards(data.records("train"), task.validation_config.tokenize)
    return SelfCritic(loss, Captioner(task.model, data.tokenizer, data.max_length), rewards)


class CaptionRewards:
    """CIDEr-D of captions, with the document frequencies of a split.

    The end of a caption counts as a word, of the references too (as in Luo's code, arXiv 2003.09971): without it,
    captions that break off ("a dog with a") score as well as complete ones.

    Args:
        records: of the split.
        tokenize: splits captions into words, see `velm.metrics.tokenization`.

    Attributes:
        references: image id -> the words of its references, split once for each of the `CACHED` images read last; not
            to be modified.

    Raises:
        DataError: an image has no caption.
    """

    def __init__(self, records: Sequence[Record], tokenize: str | Tokenize = "auto") -> None:
        self.records, self.split = records, tokenize_by(tokenize)
        first = first_records(records)
        self._order = first.argsort(kind="stable")  # records of an image are adjacent
        self._first = first[self._order]
        self.references = lru_cache(maxsize=CACHED)(self._read_references)
        self.frequencies = DocumentFrequencies(self._references_of_all())

    def _references_of_all(self) -> Iterator[list[Words]]:
        end = len(self._first)
        for position in range(end):
            if position == 0 or self._first[position] != self._first[position - 1]:
                yield self.references(int(self._first[position]))

    def words(self, caption: str, *, ended: bool = True) -> Words:
        """The words of a caption; `ended`: it was not cut at the greatest length."""
        return self.split(caption) + [END] * ended

    def _read_references(self, image_id: int) -> list[Words]:
        """The references of an image: the targets, or else the texts, of all records that show it.

        Args:
            image_id: as in `Batch.image_ids`, the index of the first of these records.
        """
        start, end = self._first.searchsorted(image_id, "left"), self._first.searchsorted(image_id, "right")
        records = [text_only(self.records, int(index)) for index in self._order[start:end]]
        captions = [caption for record in records for caption in record.targets or record.texts]
        if not captions:
            raise DataError(
                f"The image {image_name(self.records[image_id])!r} of the training split has no caption, and the loss "
                f"'scst' rewards by references: give each image one, or train with captioning."
            )
        # equal words of all references are one object
        return [[sys.intern(str(word)) for word in self.words(caption)] for caption in captions]

    def __call__(self, captions: Sequence[Sequence[Words]], image_ids: Sequence[int]) -> Tensor:
        """CIDEr-D in [0, 10], float64 (n, K), of K captions of each of n images.

        Args:
            captions: (n, K), results of `words`.
            image_ids: (n,), as in `Batch.image_ids`.
        """
        references = [self.references(image_id) for image_id in image_ids]
        pairs = [(words, right) for row, right in zip(captions, references, strict=True) for words in row]
        words, right = zip(*pairs, strict=True)
        scores = self.frequencies.scores(words, right, d=True)
        return torch.tensor(scores, dtype=torch.float64).reshape(len(captions), -1)


def advantages(rewards: Tensor, greedy: Tensor | None = None) -> Tensor:
    """Reward minus baseline, float (n, K); zero where all captions of an image have the same reward.

    Args:
        rewards: float (n, K), of K samples of each image.
        greedy: float (n, 1), of its greedy caption (Rennie et al., arXiv 1612.00563, eq. 7-9); None: the baseline is
            the mean of the other samples (Luo, arXiv 2003.09971), K at least 2.
    """
    if greedy is not None:
        return rewards - greedy
    return (rewards[:, :, None] - rewards[:, None, :]).sum(2) / (rewards.shape[1] - 1)


@dataclass(frozen=True)
class SelfCritic:
    """Samples captions of a batch's images, and rewards them.

    The samples come from torch's generator, which `seed_step` seeds: a resumed run draws the same ones.

    Args:
        loss: its options; it logs the mean rewards.
        captioner: of the model that is trained.
        rewards: of captions.
    """

    loss: SelfCriticalLoss
    captioner: Captioner
    rewards: CaptionRewards

    def losses(self, batch: Batch, task: Any, losses: WeightedLosses) -> dict[str, Tensor]:
        """Each of `losses`, unweighted, {name: float ()}: of sampled captions, and of the batch's own."""
        of_samples, of_data = split_losses(losses)
        if not of_samples:  # its weight is 0
            return task.compute_losses(batch, of_data)[1]
        sampled = self(batch, task)
        _, parts = task.compute_losses(sampled, of_samples)
        if of_data:
            batch = replace(batch, images=sampled.images, encoded=sampled.encoded)
            parts |= task.compute_losses(batch, of_data)[1]
        return {name: parts[name] for name in losses}

    def __call__(self, batch: Batch, module: lightning.LightningModule) -> Batch:
        """The batch with `loss.samples` sampled captions of each image in place of its captions.

        Args:
            batch: of this rank; images that samples share are captioned once.
            module: attached to the trainer that knows the ranks.
        """
        ids = _image_ids(batch)
        batch, sampled, greedy = self._write(batch)
        rewards = self._reward(sampled, ids)
        of_greedy = None if greedy is None else self._reward(greedy, ids)
        gained = advantages(rewards, of_greedy)
        reward = float(rewards.mean())
        baseline = reward if of_greedy is None else float(of_greedy.mean())
        self.loss.mean_rewards = {"reward": reward, "baseline": baseline}
        batch = self._teacher_forced(batch, ids, sampled)
        scale = Gather(module, batch).fraction(1)  # 1 / captions of a rank, on average
        factors = (gained.flatten() * scale).to(batch.image_ids.device, torch.float32)
        suppressed = tuple(self.captioner.token_ids()["suppress"])
        batch.sampled = SampledCaptions(factors, suppressed)
        return batch

    @torch.no_grad()
    def _write(self, batch: Batch) -> tuple[Batch, list[list[list[int]]], list[list[list[int]]] | None]:
        """Sampled captions of each image, and its greedy one if that is the baseline: lists of token ids.

        The batch comes back with the features in place of images, if they are those of the training forward too.
        """
        model = self.captioner.model
        options = {"temperature": self.loss.temperature, "num_return": self.loss.samples}
        configs = [self.captioner.config(**options)]
        if self.loss.baseline == "greedy":
            configs.append(self.captioner.config())
        same = is_frozen(model.image_encoder)  # in the modes of training
        with evaluating(model):
            images = model.encode_images_of(batch)
            memory = model.memory(images, None)
            written = [self._generate(*memory, config) for config in configs]
        if same and images is not None:
            batch = replace(batch, images=None, encoded=EncodedImages.of(images))
        # weights cast without gradient must not be read by the training forward: pytorch/pytorch#65766
        torch.clear_autocast_cache()
        return batch, written[0], written[1] if len(written) > 1 else None

    def _generate(self, memory: Tensor, mask: Tensor | None, config: GenerationConfig) -> list[list[list[int]]]:
        """Captions of each memory as token ids, without bos, with eos unless cut, without padding."""
        tokens, eos = self.captioner.generate(memory, mask, config).tokens.tolist(), self.captioner.tokenizer.eos_id
        return [[row[: row.index(eos) + 1] if eos in row else row for row in rows] for rows in tokens]

    def _reward(self, captions: list[list[list[int]]], ids: list[int]) -> Tensor:
        tokenizer = self.captioner.tokenizer
        words = [
            [self.rewards.words(tokenizer.decode(row), ended=tokenizer.eos_id in row) for row in rows]
            for rows in captions
        ]
        return self.rewards(words, ids)

    def _teacher_forced(self, batch: Batch, ids: list[int], captions: list[list[list[int]]]) -> Batch:
        """A batch whose rows are the sampled captions, (image 0, sample 0), (image 0, sample 1), ..."""
        tokenizer, count, device = self.captioner.tokenizer, self.loss.samples, batch.image_ids.device
        rows = [[tokenizer.bos_id, *caption] for of_image in captions for caption in of_image]
        tokens, mask = pad_tokens(rows, tokenizer.pad_id)
        return Batch(
            images=batch.images, encoded=batch.encoded, tokens=tokens.to(device), mask=mask.to(device),
            image_ids=torch.tensor(ids, device=device).repeat_interleave(count),
            image_rows=torch.arange(len(ids), device=device).repeat_interleave(count), sharing=count,
            stand_in=batch.stand_in,
        )  # fmt: skip


def _image_ids(batch: Batch) -> list[int]:
    """The id of each image of a batch, in the order of its images."""
    if batch.image_rows is None:
        return batch.image_ids.tolist()
    pairs = dict(zip(batch.image_rows.tolist(), batch.image_ids.tolist(), strict=True))
    return [pairs[row] for row in range(len(pairs))]
