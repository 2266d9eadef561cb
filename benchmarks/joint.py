"""Joint training against alignment alone and captioning alone: the same steps each, several seeds, paired intervals.

    python benchmarks/joint.py --output joint                                          # configs/quickstart.yaml
    python benchmarks/joint.py --config configs/flickr8k_cnn_rnn.yaml --output joint_flickr8k --rerank 20 \\
        --evaluate "--image_size 256 --num_beams 5 --max_length 30 --length_penalty 0.7 --no_repeat_ngram 3"

Each run is `velm fit` and `velm evaluate` of its best.ckpt in processes of their own. Alignment alone has no decoder,
captioning alone has no text encoder; data, seed, optimizer, schedule and steps are those of the config. Other options
are passed to `velm fit`: --trainer.max_epochs=24. Started again, it skips finished runs and resumes the one that was
interrupted; `--table` prints the table of the seeds whose runs are there. Writes DIR/table.md and DIR/seedN/LOSSES/.

An interval is of 95%, by a bootstrap of two levels: a draw has seeds and images of the test split, drawn with
replacement, the same for both models (Efron and Tibshirani 1993). Three seeds are few: a win is said only where
the difference has the same sign with every seed, too.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from velm.comparison.evaluations import paired_draws
from velm.evaluation.bootstrap import RESAMPLES, Interval, intervals
from velm.losses.weighted import build_losses
from velm.report.curves import read_curves
from velm.training.run import parse_fit

SINGLES = {"contrastive": ("image_to_text/recall@1", "text_to_image/recall@1"),
           "captioning": ("caption/exact_match", "caption/cider", "caption/bleu4")}  # fmt: skip
JOINT = "joint"
RERANKED = "reranked/"


@dataclass(frozen=True)
class Row:
    """A metric of the joint model and of the single one, with the same seeds.

    Attributes:
        metric: of the joint model.
        single: name of the single run.
        values: (of the single one, of the joint one), per seed.
        interval: of the mean difference, joint - single.
        images: whether the images of the interval are drawn too, or the seeds alone.
    """

    metric: str
    single: str
    values: tuple[tuple[float, float], ...]
    interval: Interval
    images: bool

    @property
    def differences(self) -> list[float]:
        """Joint - single, of each seed."""
        return [joint - single for single, joint in self.values]

    @property
    def verdict(self) -> str:
        """`joint` or `single` where the interval and every seed say so, else `open`."""
        low, high = self.interval
        if low > 0 and min(self.differences) > 0:
            return JOINT
        return self.single if high < 0 and max(self.differences) < 0 else "open"


def overrides(fit: Sequence[str]) -> dict[str, list[str]]:
    """Options of `velm fit` of each run, from the joint config.

    Raises:
        SystemExit: the config does not train an alignment loss and a captioning loss.
    """
    model = parse_fit(fit)["model"]
    losses: Mapping[str, Any] = model["losses"] or {}
    aligning = {
        name: each
        for name, each in losses.items()
        if any(loss.aligns for loss in build_losses({name: each}).named().values())
    }
    captioning = {name: each for name, each in losses.items() if name not in aligning}
    if not aligning or not captioning:
        raise SystemExit(
            f"The losses of the config are {', '.join(losses) or 'none'}, and joint training has an alignment loss and "
            f"a captioning loss: --model.losses='{{contrastive: {{}}, captioning: {{}}}}'."
        )
    without_text = [] if "text" in (model["memory"] or ()) else _without("text_encoder", model)
    return {
        "contrastive": [*_without("decoder", model), f"--model.losses={json.dumps(aligning)}"],
        "captioning": [f"--model.losses={json.dumps(captioning)}", *without_text],
        JOINT: [],
    }


def _without(part: str, model: Mapping[str, Any]) -> list[str]:
    """Options of a run whose model lacks a part, which `freeze`, `train_last` and `optimizer.lr_scale` may name."""
    options = [f"--model.{part}=null"]
    scales = model["optimizer"]["lr_scale"]
    others = {name: scale for name, scale in scales.items() if name.partition(".")[0] != part}
    if others != scales:
        options.append(f"--model.optimizer.lr_scale={json.dumps(others)}")
    if part in (model["freeze"] or ()):
        options.append(f"--model.freeze={json.dumps([name for name in model['freeze'] if name != part])}")
    if part in (model["train_last"] or ()):
        left = {name: count for name, count in model["train_last"].items() if name != part}
        options.append(f"--model.train_last={json.dumps(left or None)}")
    return options


def train(folder: Path, fit: Sequence[str], evaluate: Sequence[str]) -> None:
    """Fit and evaluate a run, unless it has been; the processor seconds of each are in fit.json and evaluate.json.

    Raises:
        SystemExit: a command fails; the message has the end of its log.
    """
    best, evaluation = str(folder / "best.ckpt"), str(folder / "evaluation")
    commands = {
        "fit": ["fit", *fit, f"--trainer.default_root_dir={folder}", "--resume"],
        "evaluate": ["evaluate", best, "--output", evaluation, *evaluate],
    }
    for name, command in commands.items():
        done, log = folder.parent / f"{folder.name}_{name}.json", folder.parent / f"{folder.name}_{name}.log"
        earlier = json.loads(done.read_text()) if done.is_file() else {"finished": False, "processor_seconds": 0.0}
        if earlier["finished"]:
            continue
        print(f"{folder} {name} ...", file=sys.stderr, flush=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        before = _processor_seconds()
        code = -1
        try:
            with open(log, "a", encoding="utf-8") as file:
                code = subprocess.run([sys.executable, "-m", "velm", *command], stdout=file, stderr=file).returncode
        finally:
            seconds = earlier["processor_seconds"] + _processor_seconds() - before
            done.write_text(json.dumps({"finished": code == 0, "processor_seconds": seconds}) + "\n", encoding="utf-8")
        if code:
            raise SystemExit(f"velm {name} of {folder} ended with {code}; {log} ends:\n{log.read_text()[-1500:]}")


def _processor_seconds() -> float:
    """Of the processes that this one has started and that have ended, and of theirs."""
    times = os.times()
    return times.children_user + times.children_system


def complete(output: Path, seeds: Sequence[int]) -> list[int]:
    """The seeds whose three runs are evaluated.

    Raises:
        SystemExit: there is none.
    """
    kinds = (*SINGLES, JOINT)
    found = [
        s for s in seeds if all((_run(output, s, kind) / "evaluation" / "metrics.json").is_file() for kind in kinds)
    ]
    if not found:
        raise SystemExit(
            f"No seed of {', '.join(map(str, seeds))} in {output} has all of {', '.join(kinds)} evaluated: run this "
            f"without --table, which trains what is missing."
        )
    return found


def rows(output: Path, seeds: Sequence[int]) -> list[Row]:
    """The rows of the table.

    Raises:
        ComparisonError: an evaluation cannot be read.
    """
    found = []
    for single, names in SINGLES.items():
        metrics = {(kind, seed): _metrics(output, seed, kind) for kind in (single, JOINT) for seed in seeds}
        draws = [
            paired_draws(*(_run(output, seed, kind) / "evaluation" for kind in (single, JOINT)))[0] for seed in seeds
        ]
        for name in names:
            for metric in (name, RERANKED + name):
                if metric in metrics[JOINT, seeds[0]]:
                    values = tuple((metrics[single, seed][name], metrics[JOINT, seed][metric]) for seed in seeds)
                    drawn = metric == name and all(name in each for pair in draws for each in pair)
                    steps = [pair[1][name] - pair[0][name] for pair in draws] if drawn else [b - a for a, b in values]
                    found.append(Row(metric, single, values, interval(steps), drawn))
    return found


def interval(differences: Sequence[float | np.ndarray]) -> Interval:
    """The interval of the mean over seeds of differences, each float () or (RESAMPLES,) over draws of images."""
    table = np.stack([np.broadcast_to(each, RESAMPLES) for each in differences])
    seeds = np.random.default_rng(0).integers(len(table), size=(len(table), RESAMPLES))
    return intervals({"": np.take_along_axis(table, seeds, axis=0).mean(axis=0)})[""]


def markdown(output: Path, seeds: Sequence[int]) -> str:
    """The table of metrics and the table of costs."""
    lines = [
        f"| metric | alone | joint | joint - alone, mean of {len(seeds)} | 95% interval | of each seed | better |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows(output, seeds):
        alone, joint = np.mean(row.values, axis=0)
        low, high = row.interval
        over = "" if row.images else " (seeds alone)"
        each = ", ".join(f"{value:+.3f}" for value in row.differences)
        lines.append(
            f"| {row.metric} | {alone:.3f} | {joint:.3f} | {np.mean(row.differences):+.3f} | "
            f"{low:+.3f} to {high:+.3f}{over} | {each} | {row.verdict} |"
        )
    lines += [
        "",
        "| losses | optimizer steps | processor minutes of a fit | val/score, last | a quarter earlier |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join([*lines, *(_costs(output, seeds, kind) for kind in (*SINGLES, JOINT))]) + "\n"


def _costs(output: Path, seeds: Sequence[int], kind: str) -> str:
    """The row of a run, means over the seeds; the two scores tell whether it has converged."""
    steps, minutes, last, earlier = [], [], [], []
    for seed in seeds:
        folder = _run(output, seed, kind)
        curves = read_curves(folder / "metrics.csv")
        scores = curves["val/score"]
        steps.append(1 + max(step for step, _ in scores))
        minutes.append(json.loads((folder.parent / f"{kind}_fit.json").read_text())["processor_seconds"] / 60)
        last.append(scores[-1][1])
        earlier.append([score for step, score in scores if step + 1 <= 0.75 * steps[-1]][-1:] or [float("nan")])
    return f"| {kind} | {np.mean(steps):,.0f} | {np.mean(minutes):.1f} | {np.mean(last):.3f} | {np.mean(earlier):.3f} |"


def _run(output: Path, seed: int, kind: str) -> Path:
    return output / f"seed{seed}" / kind


def _metrics(output: Path, seed: int, kind: str) -> dict[str, float]:
    return dict(json.loads((_run(output, seed, kind) / "evaluation" / "metrics.json").read_text()))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/quickstart.yaml", help="of the joint model")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="for the runs and the table")
    parser.add_argument("--evaluate", default="", metavar="OPTIONS", help="options of velm evaluate, for all runs")
    parser.add_argument("--rerank", type=int, metavar="K", help="evaluate the joint model's reranking, too")
    parser.add_argument("--table", action="store_true", help="train nothing, print the table")
    args, fit = parser.parse_known_args(arguments)
    fit = ["--config", args.config, *fit]
    if not args.table:
        runs = overrides(fit)
        for seed in args.seeds:
            for kind, options in runs.items():
                rerank = [] if args.rerank is None or kind != JOINT else ["--rerank", str(args.rerank)]
                command = [*fit, *options, f"--seed_everything={seed}"]
                train(_run(args.output, seed, kind), command, [*shlex.split(args.evaluate), *rerank])
    table = markdown(args.output, complete(args.output, args.seeds))
    (args.output / "table.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
