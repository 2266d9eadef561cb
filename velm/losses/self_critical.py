"""Self-critical sequence training: the log-likelihood of sampled captions, weighed by their advantage in reward."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from velm.losses.captioning import CaptioningLoss, linear_cross_entropy
from velm.outputs import IGNORE, Batch, VisionLanguageOutput

__all__ = ["SelfCriticalLoss"]

BASELINES = ("mean", "greedy")


class SelfCriticalLoss(CaptioningLoss):
    """-(reward - baseline) * log p of captions that the model has sampled, a mean over the captions (REINFORCE).

    Rennie et al., arXiv 1612.00563, eq. 7-9; Luo, arXiv 2003.09971, for the mean of the other samples as baseline. The
    training task samples the captions and rewards them with CIDEr-D (see `velm.training.self_critical`); the batch then
    has `sampled`. log p is summed over the tokens of a caption, eos included, and is that of the distribution that was
    sampled from: with the temperature, without the tokens that are never written. So the expected gradient is that of
    minus the expected reward. The decoder's penalty is not added.

    A batch of captions of the data, as in validation, has the cross-entropy of `captioning` in nats a token.

    Args:
        samples: captions that are sampled of each image; at least 2 with the baseline `mean`.
        baseline: `mean` of the rewards of the image's other samples, or reward of its `greedy` caption.
        temperature: captions are sampled from p ** (1 / temperature), normalised at each token.
        chunk_size: as of `CaptioningLoss`.

    Raises:
        ValueError: an option is out of range.
    """

    def __init__(
        self,
        *,
        samples: int = 5,
        baseline: Literal["mean", "greedy"] = "mean",
        temperature: float = 1.0,
        chunk_size: int = 512,
    ) -> None:
        super().__init__(chunk_size=chunk_size)
        if baseline not in BASELINES:
            raise ValueError(f"baseline is one of {', '.join(BASELINES)}; got {baseline!r}.")
        least = 2 if baseline == "mean" else 1
        if samples < least:
            cure = " (the mean of the other samples); take more samples, or baseline: greedy" if least == 2 else ""
            raise ValueError(f"samples {samples} is below {least}, the least with baseline: {baseline}{cure}.")
        if not temperature > 0:
            raise ValueError(f"temperature {temperature} is not above 0.")
        self.samples, self.baseline, self.temperature = samples, baseline, temperature
        self.mean_rewards: dict[str, float] = {}

    def forward(self, output: VisionLanguageOutput, batch: Batch) -> Tensor:
        sampled = batch.sampled
        if sampled is None:
            return super().forward(output, batch)
        self.check(output)
        predicted = output.labels != IGNORE
        projection = output.output_projection
        weight = projection.weight
        # nn.Linear's annotation says that there is always a bias
        bias: Tensor = torch.zeros_like(weight[:, 0]) if projection.bias is None else projection.bias / self.temperature
        suppressed = torch.tensor(sampled.suppressed, dtype=torch.int64, device=bias.device)
        return linear_cross_entropy(
            output.decoder.hidden[predicted] / self.temperature, weight, bias.index_fill(0, suppressed, -torch.inf),
            output.labels[predicted], chunk_size=self.chunk_size,
            factors=sampled.advantages[:, None].expand_as(predicted)[predicted],
        )  # fmt: skip

    def logged(self) -> dict[str, Tensor | float]:
        """`scst/reward` and `scst/baseline`: means over the captions of the rank's last step, CIDEr-D in [0, 10]."""
        return {f"scst/{name}": value for name, value in self.mean_rewards.items()}
