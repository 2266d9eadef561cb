"""The record of a sweep, an optuna study in FOLDER/study.journal: it needs no server and survives a kill."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velm.errors import ConfigError
from velm.sweep.study import Study, require_optuna

if TYPE_CHECKING:
    import optuna

__all__ = ["JOURNAL", "begin", "open_record", "pruner_of", "sampler_of", "suggest"]

JOURNAL = "study.journal"
NAME = "sweep"


def begin(folder: Path, study: Study, config: Mapping[str, Any]) -> optuna.Study:
    """The record of a sweep in a folder; a new one, or that of an earlier start.

    Args:
        config: of `velm fit`, without the parameters.

    Raises:
        ConfigError: the folder holds a sweep of another metric, other parameters or another config.
    """
    import optuna

    from velm.training.recovery.changes import changed_options

    folder.mkdir(parents=True, exist_ok=True)
    record = optuna.create_study(
        study_name=NAME, storage=_storage(folder), direction=study.direction, load_if_exists=True
    )
    record.pruner = pruner_of(study.pruner)
    given = json.loads(json.dumps(_identity(study, config), default=str))
    stored = record.user_attrs.get("study")
    if stored is None:
        record.set_user_attr("study", given)
        return record
    changes = changed_options(stored, given)
    if changes:
        more = f"; and {len(changes) - 3} more" if len(changes) > 3 else ""
        raise ConfigError(
            f"{folder} holds a sweep with other options: {'; '.join(changes[:3])}{more}. Its trials cannot be compared "
            f"with new ones: give another --output, or the options that the sweep began with."
        )
    return record


def open_record(folder: Path) -> optuna.Study:
    """
    Raises:
        ConfigError: the folder holds no sweep.
    """
    require_optuna()
    import optuna

    if not (folder / JOURNAL).is_file():
        raise ConfigError(f"There is no sweep in {folder}: it has no {JOURNAL}. Give the --output of `velm sweep`.")
    return optuna.load_study(study_name=NAME, storage=_storage(folder))


def _storage(folder: Path) -> optuna.storages.JournalStorage:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    path = str(folder / JOURNAL)
    return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))  # no symlinks: Windows


def _identity(study: Study, config: Mapping[str, Any]) -> dict[str, Any]:
    """What all trials of a sweep have in common."""
    parameters = {name: str(each) for name, each in study.parameters.items()}
    shared = {name: value for name, value in config.items() if name not in ("config", "resume")}
    return {"metric": study.metric, "direction": study.direction, "parameters": parameters, "fit": shared}


def sampler_of(options: Mapping[str, Any], number: int) -> optuna.samplers.BaseSampler:
    """The sampler for the parameters of one trial.

    It is seeded by the study's seed and the trial's number: a sweep that was killed goes on like one that was not,
    where a sampler with the seed of the study would draw the first trials again.
    """
    from optuna.samplers import RandomSampler, TPESampler

    seed = random.Random(f"{options.get('seed', 0)}/{number}").getrandbits(32)
    if options["name"] == "tpe":
        return TPESampler(seed=seed, n_startup_trials=options["startup"])
    return RandomSampler(seed=seed)


def pruner_of(options: Mapping[str, Any]) -> optuna.pruners.BasePruner:
    """optuna's pruner; its steps are validations, from 1."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner

    if options["name"] == "median":
        spared = options["warmup"] + 1  # optuna prunes from this step on
        return MedianPruner(options["startup"], n_warmup_steps=spared, interval_steps=options["every"])
    if options["name"] == "hyperband":
        most = options["max"] or "auto"
        return HyperbandPruner(min_resource=options["min"], max_resource=most, reduction_factor=options["factor"])
    return NopPruner()


def suggest(trial: optuna.Trial, study: Study) -> dict[str, Any]:
    """The parameters of a trial; those that it has already are kept."""
    from optuna.distributions import CategoricalDistribution, IntDistribution

    values: dict[str, Any] = {}
    for name, each in study.parameters.items():
        if isinstance(each, CategoricalDistribution):
            values[name] = trial.suggest_categorical(name, each.choices)
        elif isinstance(each, IntDistribution):
            values[name] = trial.suggest_int(name, each.low, each.high, step=each.step, log=each.log)
        else:
            values[name] = trial.suggest_float(name, each.low, each.high, step=each.step, log=each.log)  # type: ignore
    return values
