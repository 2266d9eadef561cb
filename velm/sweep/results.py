"""The results of a sweep as rows, as a table, and the config of its best trial."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velm.sweep.study import option_text, short_names, shown
from velm.sweep.trials import trial_folder

if TYPE_CHECKING:
    import optuna

__all__ = ["results_of", "table", "write_best"]

STATES = {"COMPLETE": "complete", "PRUNED": "pruned", "FAIL": "failed", "RUNNING": "unfinished"}
BEST = "best.yaml"


def results_of(folder: Path, record: optuna.Study) -> dict[str, Any]:
    """The results as JSON types.

    Returns:
        {'folder', 'metric', 'direction', 'best', 'importance', 'trials'}: `trials` lists {'number', 'state', 'value',
        'validations', 'seconds', 'parameters', 'folder', 'cause', 'log'} by number; the value of a trial is the best
        of its validations. `best` is one of them, or None. `importance` is the share of each parameter in what sets
        the best trials apart (PED-ANOVA, Watanabe et al. 2023, arXiv 2304.10255), {} for fewer than 4 trials.
    """
    maximize = record.direction.name == "MAXIMIZE"
    rows = []
    for trial in record.get_trials(deepcopy=False):
        if trial.state.name not in STATES:
            continue
        values = list(trial.intermediate_values.values())
        rows.append(
            {
                "number": trial.number,
                "state": STATES[trial.state.name],
                "value": (max if maximize else min)(values) if values else None,
                "validations": len(values),
                "seconds": None if trial.duration is None else trial.duration.total_seconds(),
                "parameters": trial.params,
                "folder": str(trial_folder(folder, trial.number)),
                "cause": trial.user_attrs.get("cause", ""),
                "log": trial.user_attrs.get("log", []),
            }
        )
    complete = [row for row in rows if row["state"] == "complete"]
    best = (max if maximize else min)(complete, key=lambda row: row["value"], default=None)
    return {
        "folder": str(folder),
        "metric": record.user_attrs["study"]["metric"],
        "direction": "maximize" if maximize else "minimize",
        "best": best,
        "importance": _importance(record) if len(complete) >= 4 else {},
        "trials": rows,
    }


def _importance(record: optuna.Study) -> dict[str, float]:
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # experimental; several trials with the best value
        try:
            return get_param_importances(record, evaluator=PedAnovaImportanceEvaluator())
        except (RuntimeError, ValueError):  # all trials have one value
            return {}


def table(results: Mapping[str, Any]) -> str:
    """The trials, the best first, as text."""
    rows = ordered(results)
    names = short_names(dict.fromkeys(name for row in rows for name in row["parameters"]))
    head = ["trial", "state", results["metric"], "minutes", *names.values(), ""]
    lines = [head]
    for row in rows:
        value = "" if row["value"] is None else f"{row['value']:.4f}"
        minutes = "" if row["seconds"] is None else f"{row['seconds'] / 60:.1f}"
        parameters = [_clipped(shown(row["parameters"][name])) if name in row["parameters"] else "" for name in names]
        lines.append([str(row["number"]), row["state"], value, minutes, *parameters, _clipped(row["cause"])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    shares = [f"{names[name]} {share:.0%}" for name, share in results["importance"].items()]
    if shares:
        text += ["", f"importance: {', '.join(shares)}"]
    return "\n".join(text)


def ordered(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The trials: complete ones first, the better ones before."""
    sign = -1 if results["direction"] == "maximize" else 1
    states = list(STATES.values())
    return sorted(
        results["trials"], key=lambda row: (states.index(row["state"]), sign * (row["value"] or 0), row["number"])
    )


def write_best(folder: Path, results: Mapping[str, Any]) -> Path | None:
    """Write the config of the best trial as best.yaml, for `velm fit --config`; None: there is none."""
    import yaml

    best = results["best"]
    source = None if best is None else Path(best["folder"]) / "config.yaml"
    if source is None or not source.is_file():
        return None
    config = yaml.safe_load(source.read_text(encoding="utf-8"))
    config["trainer"]["default_root_dir"] = config["ckpt_path"] = None  # the trial's folder, and where it was continued
    values = ", ".join(f"{name}={option_text(value)}" for name, value in best["parameters"].items())
    head = (
        f"# The config of trial {best['number']} of the sweep in {folder}: {results['metric']} {best['value']:.6g}\n"
        f"#   {values}\n#   run       velm fit --config {folder / BEST}\n"
    )
    path = folder / BEST
    path.write_text(head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _clipped(text: str, width: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."
