"""Memory and time of a config's training step on a cluster, and what to change if it does not fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from velm import registry
from velm.data.text.base import Tokenizer
from velm.data.text.bpe import ByteTokenizer
from velm.errors import ConfigError, DataError
from velm.losses.self_critical import SelfCriticalLoss
from velm.losses.weighted import build_losses
from velm.planning.advice import Advice, advise
from velm.planning.measure import measure, probe
from velm.planning.step import Costs, Machine, Setup, collectives, flops, memory, seconds
from velm.training.build import build_data, build_task
from velm.training.task import VisionLanguageTask

RESERVE = 0.1
"""Fraction of a device's memory kept for its context, scratch buffers of libraries and fragmentation."""


@dataclass(frozen=True)
class Plan:
    """Costs of a setup, and advice.

    Attributes:
        setup: devices, batch and parallelism, as configured.
        costs: of the model.
        machine: assumptions about devices and links.
        gpu_memory: bytes of a device.
        advice: a setup that fits; None if none does.
    """

    setup: Setup
    costs: Costs
    machine: Machine
    gpu_memory: float
    advice: Advice | None

    @property
    def fits(self) -> bool:
        return memory(self.costs, self.setup)["total"] <= (1 - RESERVE) * self.gpu_memory

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON types; in bytes, seconds and FLOPs."""
        advice = None
        if self.advice is not None and not self.fits:
            advice = {"flags": list(self.advice.flags), **self._of(self.advice.costs, self.advice.setup)}
        return {
            "setup": asdict(self.setup),
            **self._of(self.costs, self.setup),
            "fits": self.fits,
            "gpu_memory": self.gpu_memory,
            "reserve": RESERVE,
            "advice": advice,
            "assumed": asdict(self.machine),
        }

    def _of(self, costs: Costs, setup: Setup) -> dict[str, Any]:
        time = seconds(costs, setup, self.machine)
        return {
            "memory": memory(costs, setup),
            "flops": flops(costs, setup),
            "traffic": {f"{c.what}, {c.kind}": round(c.wire(setup.gpus)) for c in collectives(costs, setup)},
            "seconds": time,
            "samples_a_second": setup.batch * setup.gpus / time["total"],
        }


def make_plan(
    config: Mapping[str, Any], *, gpus: int, gpu_memory: float, machine: Machine, vocab_size: int | None = None
) -> Plan:
    """Measure the costs of a config and look for a setup that fits.

    Args:
        config: of `velm.training.run.parse_fit`.
        gpus: W >= 1, data-parallel devices.
        gpu_memory: bytes of a device.
        vocab_size: V; None: see `vocabulary_of`.

    Raises:
        ConfigError: a part cannot be built.
        DataError: the vocabulary is learned from data that cannot be read.
    """
    vocabulary = vocabulary_of(config["data"]) if vocab_size is None else vocab_size
    setup = setup_of(config, gpus)
    costs = costs_of(config, vocabulary, setup)

    def checkpointed() -> Costs | None:
        if config["model"]["checkpoint_blocks"]:
            return None
        model = {**config["model"], "checkpoint_blocks": True}
        try:
            return costs_of({**config, "model": model}, vocabulary, setup)
        except ConfigError:  # the model has no blocks
            return None

    advice = advise(costs, setup, (1 - RESERVE) * gpu_memory, checkpointed)
    return Plan(setup, costs, machine, gpu_memory, advice)


def setup_of(config: Mapping[str, Any], gpus: int) -> Setup:
    """The setup of a config on `gpus` devices.

    `micro_batch_size` counts texts; a sample of the setup is an image with its captions, those that `scst` samples too.
    """
    data, trainer = config["data"], config["trainer"]
    micro_batch = config["model"]["micro_batch_size"]
    batch = data["batch_size"] if data["max_tokens"] is None else max(1, data["max_tokens"] // data["max_length"])
    return Setup(
        gpus=gpus,
        batch=batch,
        micro_batch=None if micro_batch is None else math.ceil(micro_batch / _rows(config, gpus)),
        sharded=trainer["strategy"] == "fsdp2",
        workers=data["num_workers"],
        precision=str(trainer["precision"] or "32-true"),
    )


def _rows(config: Mapping[str, Any], devices: int) -> int:
    """Texts of a sample."""
    losses = build_losses(config["model"]["losses"] or {}).in_steps(devices)
    sampled = [loss.samples for loss in losses.values() if isinstance(loss, SelfCriticalLoss)]
    return int(sampled[0] if sampled else config["data"]["captions_per_image"])


def costs_of(
    config: Mapping[str, Any],
    vocab_size: int,
    setup: Setup,
    *,
    length: int | None = None,
    has_images: bool = True,
) -> Costs:
    """Measure the costs of a config's model.

    Args:
        config: of `velm.training.run.parse_fit`.
        vocab_size: V.
        setup: of the config; the costs of the alignment losses are exact at its batch, and one device does not compute
            losses of weight 0.
        length: tokens per text, bos and eos included; None: `data.max_length`.

    Raises:
        ConfigError: a part cannot be built.
        Exception: the error of a training step.
    """
    model, data = config["model"], config["data"]
    tokenizer: Tokenizer = ByteTokenizer()
    has_target = model["decoder"] is not None and "text" in (model["memory"] or ())

    def build() -> VisionLanguageTask:
        task = build_task({**model, "compile": False}, vocab_size=vocab_size, pad_id=tokenizer.pad_id)
        task.losses = task.losses.in_steps(setup.gpus)
        return task

    return measure(
        build,
        lambda samples: probe(
            samples, tokenizer=tokenizer, length=length or data["max_length"],
            image_size=data["image_size"] if has_images else None,
            per_image=data["captions_per_image"], has_target=has_target, has_prompt=data.get("template") is not None,
        ),
        setup.precision, setup.batch * data["captions_per_image"] * setup.gpus,
    )  # fmt: skip


def vocabulary_of(data: Mapping[str, Any]) -> int:
    """V: the option `vocab_size` or `max_size` of the tokenizer; without them as learned from the training split.

    Raises:
        DataError: the split cannot be read.
    """
    _, options = registry.split_config(data["tokenizer"], "tokenizer")
    for key in ("vocab_size", "max_size"):
        if isinstance(options.get(key), int):
            return int(options[key])
    try:
        return int(build_data(data).vocab_size)
    except DataError as error:
        raise DataError(
            f"{error} To plan without the data, give the size of the vocabulary: --vocab_size 10000."
        ) from None
