"""Checks that `velm fit` takes the parameters of a study, before the first trial, and the config of each trial."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from velm import registry
from velm.errors import ConfigError, VelmError
from velm.metrics.captioning import caption_metrics
from velm.metrics.retrieval import retrieval_metrics
from velm.pretrained.weights import names_weights, skip_pretrained
from velm.registry.options import validated
from velm.sweep.study import Study, trial_options, values_to_check
from velm.training.build import build_data, build_task
from velm.training.part_options import PARTS
from velm.training.run import parse_fit
from velm.util import did_you_mean

__all__ = ["check_base", "check_parameters", "check_trial", "fit_config"]

REGISTRIES = {
    "model.image_encoder": registry.image_encoders,
    "model.text_encoder": registry.text_encoders,
    "model.decoder": registry.decoders,
    "model.balance": registry.balancing_policies,
    "data.dataset": registry.datasets,
    "data.tokenizer": registry.tokenizers,
}
OWN = ("trainer.default_root_dir", "checkpoint_dir", "ckpt_path", "resume", "config")
"""Options that the sweep sets for each trial."""


def fit_config(args: Sequence[str]) -> dict[str, Any]:
    """The config of `velm fit` with these arguments.

    Raises:
        ConfigError: the parser refuses them; its message, without the list of all options.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return parse_fit(args)
    except SystemExit as error:
        text = " ".join(printed.getvalue().rpartition("error: ")[2].split())
        raise ConfigError(f"`velm fit` refuses the options: {text or 'see velm fit --help'}") from error


def check_base(args: Sequence[str], metric: str) -> dict[str, Any]:
    """The config that all trials share, after a check that its runs can be searched.

    Args:
        args: of `velm fit`.
        metric: what the study watches.

    Raises:
        VelmError: the options, the data or the model cannot be used, or no validation measures the metric.
    """
    config = fit_config(args)
    trainer = config["trainer"]
    for name in ("checkpoint_dir", "ckpt_path"):
        if config[name] is not None:
            raise ConfigError(f"{name} is {config[name]}, and each trial has its own: leave it out of the sweep.")
    if trainer["logger"] is False:
        raise ConfigError(
            f"trainer.logger is false, and a sweep reads {metric} from a run's metrics.csv: leave it out."
        )
    if trainer["limit_val_batches"] == 0:
        raise ConfigError(f"trainer.limit_val_batches is 0, so no validation measures {metric}: leave it out.")
    known = _metrics(config)
    if metric not in known and not trainer["callbacks"] and not config["plugins"]:
        raise ConfigError(
            f"No validation of this config measures {metric!r}.{did_you_mean(metric, known)} It measures: "
            f"{', '.join(known)}."
        )
    data = build_data(config["data"])
    for split in ("train", "val"):
        data.records(split)
    _check_model(config)
    return config


def check_parameters(study: Study, args: Sequence[str], config: Mapping[str, Any], place: str) -> Study:
    """The study with the full names of its options: `optimizer.lr` is `model.optimizer.lr`.

    Every value of a list and three of a range are parsed as `velm fit` parses them; not all combinations are.

    Args:
        args: of `velm fit`, without the parameters.
        config: of these arguments.
        place: of the study file, for messages.

    Raises:
        ConfigError: `velm fit` has no such option, or does not take a value.
    """
    known = list(_names(config))
    try:
        parameters = {_full_name(name, known): distribution for name, distribution in study.parameters.items()}
        values = {name: values_to_check(distribution) for name, distribution in parameters.items()}
        for row in range(max(map(len, values.values()))):
            point = {name: each[row % len(each)] for name, each in values.items()}
            check_parts(fit_config([*args, *trial_options(point)]))
    except ConfigError as error:
        raise ConfigError(f"{place}: parameters: {error}") from error
    return replace(study, parameters=parameters)


def check_trial(args: Sequence[str]) -> None:
    """Parse the options of a trial and check its model.

    Raises:
        VelmError: the run would end with this message.
    """
    _check_model(fit_config(args))


def _check_model(config: Mapping[str, Any]) -> None:
    """Check the parts of a config and build its model without memory.

    A model with pretrained weights is not built: its config may be in a file beside them.
    """
    check_parts(config)
    model = config["model"]
    parts = [model[name] for name in ("image_encoder", "text_encoder", "decoder") if model[name] is not None]
    if model["pretrained"] or model["adapt"] or any(names_weights(*registry.split_config(part)) for part in parts):
        return
    try:
        with torch.device("meta"), skip_pretrained():
            build_task(model, vocab_size=1000, pad_id=0)
    except VelmError:
        raise
    except Exception:  # a part that cannot be built without memory
        return


def check_parts(config: Mapping[str, Any]) -> None:
    """Names and options of all parts of a config of `velm fit`; nothing is built.

    Raises:
        ConfigError: a part or an option does not exist, or an option does not take its value.
    """
    registry.load_plugins(config["plugins"])
    configs = [(kind, config[name.split(".")[0]][name.split(".")[1]]) for name, kind in REGISTRIES.items()]
    losses = config["model"]["losses"] or {}
    configs += [(registry.losses, {"name": name, **(options or {})}) for name, options in losses.items()]
    for kind, part in configs:
        if part is None:
            continue
        name, options = registry.split_config(part, kind.kind)
        options = {key: value for key, value in options.items() if kind is not registry.losses or key != "weight"}
        cls = kind.get(name)
        given = {key for key, p in registry.parameters(cls).items() if p.default is p.empty and key not in options}
        validated(cls, options, dict.fromkeys(given), f"{kind.kind} {name!r}")


def _full_name(name: str, known: Sequence[str]) -> str:
    """The option of `velm fit` that a parameter means.

    Raises:
        ConfigError: there is none.
    """
    for full in (name, f"model.{name}"):
        inside = full.startswith(tuple(f"{part}." for part in PARTS))  # `check_parts` knows these options
        if (full in known or inside) and full not in OWN:
            return full
    if name in OWN:
        raise ConfigError(f"the sweep sets {name} itself, for each trial: leave it out.")
    guess = did_you_mean(name, known) or did_you_mean(f"model.{name}", known)
    raise ConfigError(
        f"{name!r} is no option of `velm fit`.{guess} `velm fit --help` lists them; options of a part are "
        f"those of `velm plugins show`, below {', '.join(PARTS)}."
    )


def _names(config: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Every key of a nested config, the inner nodes too."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _names(value, f"{prefix}{key}.")


def _metrics(config: Mapping[str, Any]) -> list[str]:
    """The metrics that a validation may measure."""
    eye = torch.eye(2)
    names = ["score", "loss", *(config["model"]["losses"] or {})]
    if config["model"]["text_encoder"] is not None or config["model"]["pretrained"]:
        names += retrieval_metrics(eye, eye, [0, 1])
    if config["model"]["decoder"] is not None or config["model"]["pretrained"]:
        captions = caption_metrics(["a dog"], [["a dog"]])
        names += [*captions, "distinct_captions", *(f"blind/{name}" for name in captions)]
    return [f"val/{name}" for name in names]
