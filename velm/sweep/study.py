"""study.yaml: what is searched, by which sampler, and when a trial is given up; every key and value is checked.

metric: val/score
direction: maximize
sampler: {name: tpe, seed: 0}
pruner: {name: median, warmup: 2}
parameters:
  model.optimizer.lr: {low: 1e-4, high: 3e-3, log: true}
  model.decoder.depth: {values: [1, 2, 4]}
  model.image_encoder: {values: [{name: cnn}, {name: vit}]}
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from velm.errors import ConfigError, MissingPackageError
from velm.registry.scalars import as_flow, load_yaml, plain
from velm.util import did_you_mean

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = [
    "PRUNERS",
    "SAMPLERS",
    "Study",
    "option_text",
    "read_study",
    "require_optuna",
    "short_names",
    "shown",
    "trial_options",
    "values_to_check",
]

KEYS = ("metric", "direction", "sampler", "pruner", "parameters")
DIRECTIONS = ("maximize", "minimize")
SAMPLERS: dict[str, dict[str, int]] = {
    "tpe": {"seed": 0, "startup": 10},
    "random": {"seed": 0},
    "grid": {},
}
"""Options and defaults; `startup`: trials with random values before the sampler learns from them."""
PRUNERS: dict[str, dict[str, int]] = {
    "none": {},
    "median": {"startup": 5, "warmup": 1, "every": 1},
    "hyperband": {"min": 1, "max": 0, "factor": 3},
}
"""Options and defaults, counted in validations except `startup`, in finished trials; `max: 0` is optuna's 'auto'."""
LEAST = {"min": 1, "every": 1, "factor": 2}
RANGE = ("low", "high", "step", "log")


@dataclass(frozen=True)
class Study:
    """A study file.

    Attributes:
        metric: a column of metrics.csv, measured by every validation.
        direction: 'maximize' or 'minimize'.
        sampler, pruner: {'name': ..., options}, complete.
        parameters: optuna's distribution of each, by the option of `velm fit`. Choices that are mappings or lists are
            YAML on one line.
    """

    metric: str
    direction: Literal["maximize", "minimize"]
    sampler: dict[str, Any]
    pruner: dict[str, Any]
    parameters: dict[str, BaseDistribution]

    @property
    def best(self) -> Any:
        """`max` or `min`: the better of values of the metric."""
        return max if self.direction == "maximize" else min

    def grid(self) -> list[dict[str, Any]]:
        """Every combination of the values, for the sampler 'grid'."""
        points: list[dict[str, Any]] = [{}]
        for name, distribution in self.parameters.items():
            points = [{**point, name: value} for point in points for value in values_to_check(distribution)]
        return points


def read_study(path: str | Path) -> Study:
    """Read a study file.

    Raises:
        ConfigError: it cannot be read, or a key or value in it has no meaning; the message names the file and the key.
        MissingPackageError: optuna is not installed.
    """
    require_optuna()
    content = _mapping(_load(path), f"{path}", KEYS)
    parameters = content.get("parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        raise ConfigError(
            f"{path} has no parameters. They are options of `velm fit` with a range or values, such as "
            f"parameters: {{model.optimizer.lr: {{low: 1e-4, high: 3e-3, log: true}}}}."
        )
    direction = content.get("direction", "maximize")
    if direction not in DIRECTIONS:
        raise ConfigError(f"{path}: direction is {' or '.join(DIRECTIONS)}; got {direction!r}.")
    metric = content.get("metric", "val/score")
    if not isinstance(metric, str) or not metric.startswith("val/"):
        raise ConfigError(f"{path}: metric is a metric of the validation, such as val/score; got {metric!r}.")
    study = Study(
        metric=metric,
        direction=direction,
        sampler=_choice(content.get("sampler", "tpe"), f"{path}: sampler", SAMPLERS),
        pruner=_choice(content.get("pruner", "none"), f"{path}: pruner", PRUNERS),
        parameters={str(name): _distribution(value, f"{path}: {name}") for name, value in parameters.items()},
    )
    ranges = [name for name, value in study.parameters.items() if not hasattr(value, "choices")]
    if study.sampler["name"] == "grid" and ranges:
        raise ConfigError(f"{path}: the sampler 'grid' takes parameters with values, and {ranges[0]} has a range.")
    return study


def require_optuna() -> None:
    """
    Raises:
        MissingPackageError: optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingPackageError("`velm sweep` needs the package optuna: pip install 'velm[sweep]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def option_text(value: Any) -> str:
    """The text of a parameter's value in an option of `velm fit`."""
    return value if isinstance(value, str) else as_flow(value)


def trial_options(parameters: Mapping[str, Any]) -> list[str]:
    """The options of `velm fit` that set these parameters; a whole part comes before an option inside it."""
    names = sorted(parameters, key=lambda name: name.count("."))
    return [f"--{name}={option_text(parameters[name])}" for name in names]


def shown(value: Any) -> str:
    """A parameter's value for tables: four digits, no quotation marks."""
    return f"{value:.4g}" if isinstance(value, float) else option_text(value).replace('"', "")


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The end of each name that no other name has: {'model.optimizer.lr': 'lr'}."""
    parts = {name: name.split(".") for name in names}

    def end(name: str) -> str:
        for length in range(1, len(parts[name])):
            tail = parts[name][-length:]
            if sum(other[-length:] == tail for other in parts.values()) == 1:
                return ".".join(tail)
        return name

    return {name: end(name) for name in parts}


def values_to_check(distribution: BaseDistribution) -> list[Any]:
    """All choices, or the ends of a range and a value between them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    third = (distribution.high - distribution.low) / 3
    step = distribution.step
    inside = distribution.low + (third if step is None else step * round(third / step))
    return [distribution.low, inside, distribution.high]


def _load(path: str | Path) -> Any:
    import yaml

    try:
        return load_yaml(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigError(f"The study {path} cannot be read: {cause}.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"The study {path} is no YAML: {' '.join(str(error).split())}.") from error


def _mapping(value: Any, place: str, keys: Iterable[str]) -> dict[str, Any]:
    """The value as a mapping with some of the keys and no other.

    Raises:
        ConfigError: it is none.
    """
    listed = ", ".join(keys)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{place} is a mapping with the keys {listed}; got {value!r}.")
    for key in value:
        if key not in keys:
            raise ConfigError(f"{place} has an unknown key {key!r}.{did_you_mean(str(key), keys)} Its keys: {listed}.")
    return dict(value)


def _choice(value: Any, place: str, known: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    """A sampler or pruner, given as its name or as a mapping, with all of its options."""
    given = {"name": value} if value is None or isinstance(value, str) else value
    name = str(given.get("name")) if isinstance(given, Mapping) else ""
    if name not in known:
        guess = did_you_mean(name, known)
        raise ConfigError(f"{place} has the unknown name {name!r}.{guess} Known: {', '.join(known)}.")
    options = {**known[name], **_mapping(given, f"{place} {name!r}", ("name", *known[name]))}
    for key in known[name]:
        least = LEAST.get(key, 0)
        if not _is_number(options[key], int) or options[key] < least:
            raise ConfigError(f"{place} {name!r}: {key} is a whole number of at least {least}; got {options[key]!r}.")
    return options


def _distribution(value: Any, place: str) -> BaseDistribution:
    """optuna's distribution of a parameter."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    given = plain(_mapping(value, place, ("values", *RANGE)))
    if "values" in given:
        return CategoricalDistribution(_choices(value, place))
    low, high, step, log = (given.get(key) for key in RANGE)
    if not _is_number(low) or not _is_number(high) or not low < high:
        raise ConfigError(f"{place} needs values: [...], or numbers low < high; got low {low!r}, high {high!r}.")
    if not isinstance(log, bool | None):
        raise ConfigError(f"{place}: log is true or false; got {log!r}.")
    if step is not None and (log or not _is_number(step) or not 0 < step <= high - low):
        raise ConfigError(
            f"{place}: step is a positive number up to high - low = {high - low:g}, without log; got step {step!r}"
            f"{' with log: true' if log else ''}."
        )
    if log and low <= 0:
        raise ConfigError(f"{place}: a range with log: true is above 0; got low {low!r}.")
    if all(_is_number(number, int) for number in (low, high, 1 if step is None else step)):
        return IntDistribution(low, high, log=bool(log), step=step or 1)
    return FloatDistribution(low, high, log=bool(log), step=step)


def _choices(given: Mapping[str, Any], place: str) -> list[Any]:
    """The values of a parameter as optuna stores them."""
    values = given["values"]
    if len(given) > 1:
        raise ConfigError(f"{place} has values and {', '.join(set(given) - {'values'})}: give values, or low and high.")
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{place}: values is a list with at least one value; got {values!r}.")
    choices = [as_flow(each) if isinstance(each, Mapping | list) else plain(each) for each in values]
    twice = [value for number, value in enumerate(choices) if (type(value), value) in _typed(choices[:number])]
    if twice:
        raise ConfigError(f"{place}: values lists {twice[0]!r} twice.")
    return choices


def _typed(values: Iterable[Any]) -> list[tuple[type, Any]]:
    """With their types: True is not 1."""
    return [(type(value), value) for value in values]


def _is_number(value: Any, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)
