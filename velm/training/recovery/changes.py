"""Resuming under another config: weights, moments and position are the checkpoint's, every option is the config's.

Options that differ are listed; a config that the weights do not fit is refused.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import lightning
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from velm.checkpoint import compare_weights
from velm.data.text.base import Tokenizer
from velm.errors import CheckpointError
from velm.training.optim import parameter_groups
from velm.training.recovery.resume import run_seed
from velm.util import flat_options

GROUP_OPTIONS = ("initial_lr", "weight_decay", "betas")
"""Options of a parameter group that a config sets."""
TRAINER_OPTIONS = ("max_epochs", "max_steps", "accumulate_grad_batches", "gradient_clip_val", "precision", "world_size")
WITHOUT_EFFECT = ("data.num_workers", "data.max_bad", "model.plugins", "model.pad_id", "model.vocab_size")
"""Options that change nothing of what is learned, or that follow from others."""


class ResumeOptions(Callback):
    """Gives a resumed run the options of its config, and prints which of them differ from the checkpoint's.

    Lightning restores the optimizer's rate, decay and betas with its moments. The checkpoint's state of this callback
    holds the options of the run that wrote it.
    """

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}
        self.stored: dict[str, Any] | None = None
        self.groups: list[dict[str, Any]] = []

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        if stage == "fit":
            self.options = json.loads(json.dumps(_options(trainer, pl_module), default=str))

    def state_dict(self) -> dict[str, Any]:
        return {"options": self.options}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stored = state_dict["options"]

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        names = ("name", *GROUP_OPTIONS)
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        self.groups = [{name: group[name] for name in names if name in group} for group in groups]

    def on_load_checkpoint(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Let a run that has more epochs than it is asked for end like one that has as many."""
        if trainer.state.fn == "fit" and 0 <= (trainer.max_epochs or 0) < checkpoint["epoch"]:
            trainer.fit_loop.max_epochs = checkpoint["epoch"]

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is None:
            return
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rates = [f"{given.get('name', number)} {group['initial_lr']} -> {given['initial_lr']}"
                 for number, (group, given) in enumerate(zip(groups, self.groups, strict=True))
                 if "initial_lr" in group and group["initial_lr"] != given["initial_lr"]]  # fmt: skip
        schedule = pl_module.lr_schedulers()
        if isinstance(schedule, LambdaLR):
            _set_group_options(groups, schedule, self.groups)
        if trainer.is_global_zero:
            changes = [f"learning rate of {rate}" for rate in rates[:1]]
            if self.stored is not None:
                changes = changed_options(self.stored, self.options)
            print(_describe(trainer, changes))


def asked_limits(trainer: lightning.Trainer) -> dict[str, int]:
    """The `max_epochs` and `max_steps` of a run's config that limit it."""
    limits = {"max_epochs": trainer.max_epochs, "max_steps": trainer.max_steps}
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ResumeOptions):
            limits = {name: callback.options["trainer"][name] for name in limits}
    return {name: value for name, value in limits.items() if value not in (None, -1)}


def _options(trainer: lightning.Trainer, task: Any) -> dict[str, Any]:
    """The options of a run by section, as far as they decide what is learned."""
    data = getattr(trainer, "datamodule", None)
    return {
        "seed_everything": run_seed(),
        "model": {**task.model_config, **task.training_options},
        "data": {} if data is None else data.config(),
        "trainer": {name: getattr(trainer, name) for name in TRAINER_OPTIONS},
    }


def _set_group_options(groups: list[dict[str, Any]], schedule: LambdaLR, options: list[dict[str, Any]]) -> None:
    """Give parameter groups these options, and the rate that the schedule has at its present step."""
    for group, given, factor in zip(groups, options, schedule.lr_lambdas, strict=True):
        group.update(given)
        group["lr"] = group["initial_lr"] * factor(schedule.last_epoch)
    schedule.base_lrs = [group["initial_lr"] for group in groups]
    schedule._last_lr = [group["lr"] for group in groups]


def _describe(trainer: lightning.Trainer, changes: list[str]) -> str:
    """What a resumed run takes from the checkpoint, and what from its config."""
    place = f"Resumes {trainer.ckpt_path} at step {trainer.global_step}, epoch {trainer.current_epoch + 1}"
    taken = "weights, optimizer state and position are the checkpoint's, options are those given now"
    return f"{place}: {taken}, which differ in {'; '.join(changes)}." if changes else f"{place}: {taken}, the same."


def changed_options(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """'model.optimizer.lr 0.01 -> 0.0001' for every option of `given` that has another value in `stored`."""
    before, after = ({n: _plain(v) for n, v in flat_options(each)} for each in (stored, given))
    names = [name for name in {**after, **before} if name not in WITHOUT_EFFECT]
    return [f"{name} {before.get(name)} -> {after.get(name)}" for name in names if before.get(name) != after.get(name)]


def _plain(value: Any) -> Any:
    """As a checkpoint stores it: a tuple is a list; what is empty counts as absent."""
    if isinstance(value, list | tuple | Mapping):
        return list(value) or None
    return value


def require_same_run(checkpoint: Mapping[str, Any], task: Any) -> None:
    """
    Args:
        checkpoint: what Lightning has read.
        task: attached to its trainer.

    Raises:
        CheckpointError: the checkpoint is of another vocabulary or another model, or other parts of it are trained;
            the message names `model.pretrained`.
    """
    data, path = getattr(task.trainer, "datamodule", None), str(task.trainer.ckpt_path)
    problem = None
    if data is not None and "velm" in checkpoint:
        problem = _other_vocabulary(checkpoint["velm"]["tokenizer"], data.tokenizer_name, data.tokenizer)
    if problem is None and checkpoint.get("state_dict"):  # FSDP2 has loaded it already
        problem = _other_model(checkpoint["state_dict"], task.state_dict())
    if problem is None and task.trainer.state.fn == "fit" and "base" in checkpoint.get("velm", {}):
        problem = "is a file of adapters without the optimizer's state, with which the run's last.ckpt continues"
    if problem is None and task.trainer.state.fn == "fit":
        problem = _other_optimizer(checkpoint.get("optimizer_states", ()), task)
    if problem is not None:
        raise CheckpointError(
            f"{path} {problem}. --ckpt_path and --resume continue a run with its own model and data. To start a new "
            f"run from the weights that fit: --model.pretrained={path}, without --ckpt_path and --resume. To measure "
            f"that checkpoint: velm evaluate {path}"
        )


def _other_vocabulary(stored: Mapping[str, Any], name: str, tokenizer: Tokenizer) -> str | None:
    """How the stored tokenizer, {'name', 'state'}, differs from that of the data; None if it gives the same ids."""
    if stored["name"] == name and stored["state"] == tokenizer.state():
        return None
    words = tokenizer.vocabulary()
    if stored["name"] != name or not words:
        return f"has the tokenizer {stored['name']!r}, and this config {name!r}, which gives other ids"
    old = type(tokenizer).from_state(dict(stored["state"]))
    if old.vocabulary() == words:
        return None
    return (
        f"has a vocabulary of {old.vocab_size} tokens, and this data makes one of {tokenizer.vocab_size}, with "
        f"{len(old.vocabulary().keys() & words.keys())} in common"
    )


def _other_model(stored: Mapping[str, Tensor], built: Mapping[str, Tensor]) -> str | None:
    """The first tensors that are missing, left over or of another shape; None if all fit."""
    missing, left_over, shapes = compare_weights(built, stored)
    problems = [f"{name} is not in it" for name in missing]
    problems += [f"{name} is not part of this model" for name in left_over]
    problems += [f"{name} is {there} in it and {here} here" for name, (there, here) in shapes.items()]
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return f"is of another model than this config builds: {'; '.join(problems[:3])}{more}" if problems else None


def _other_optimizer(states: Sequence[Mapping[str, Any]], task: Any) -> str | None:
    """Which tensors were trained, and which are; None if they are the same."""
    groups = [group for state in states for group in state["param_groups"]]
    stored = {group["name"]: len(group["params"]) for group in groups if "name" in group}
    groups = parameter_groups(task.parts, task.optimizer_config)
    built = {group["name"]: len(group["params"]) for group in groups}
    if not stored or stored == built:
        return None
    before, after = _counted(stored), _counted(built)
    if before == after:
        return f"has the optimizer state of {before} with other learning rates: model.optimizer.layer_decay differs"
    return (
        f"has the optimizer state of {before}, and this config trains {after}: model.freeze, model.train_last or a "
        f"part's `trainable` differs"
    )


def _counted(groups: Mapping[str, int]) -> str:
    """'32 tensors (image_encoder 20, decoder 12)'."""
    parts: Counter[str] = Counter()
    for name, count in groups.items():
        parts[name.partition("/")[0]] += count
    return f"{sum(parts.values())} tensors ({', '.join(f'{name} {count}' for name, count in parts.items())})"
