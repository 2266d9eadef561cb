"""`velm sweep`: search the best options of `velm fit`, each trial a run of its own."""

from __future__ import annotations

import argparse
import json
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from velm.commands.options import at_least_one, folder_path
from velm.errors import ConfigError

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run `velm sweep`: 0 if a trial has completed, 1 if none has, 130 after Ctrl-C.

    Raises:
        VelmError: the study, the config or the folder cannot be used; nothing was started.
    """
    args, rest = _parser().parse_known_args(argv)
    if args.report is not None:
        return _report(_folder(args) if args.report is True else args.report, as_json=args.json)
    from velm.sweep.check import check_base, check_parameters
    from velm.sweep.storage import begin
    from velm.sweep.study import read_study
    from velm.sweep.sweep import Sweep, lock_folder

    if args.study is None:
        raise ConfigError("`velm sweep` needs --study study.yaml, or --report FOLDER for a sweep that there is.")
    study, options, folder = read_study(args.study), _fit_options(rest), _folder(args)
    with lock_folder(folder), _sigterm_as_interrupt():
        config = check_base(options, study.metric)
        study = check_parameters(study, options, config, args.study)
        record = begin(folder, study, config)
        sweep = Sweep(folder, study, record, options, args.trials, args.jobs, cores=_cores(), gpus=_gpus())
        try:
            sweep.run()
        except KeyboardInterrupt:
            _report(folder, as_json=args.json)
            return 130
    return _report(folder, as_json=args.json)


def _report(folder: Path, *, as_json: bool) -> int:
    """Print the results of a sweep; write best.yaml and report.html."""
    from velm.sweep.page import write_page
    from velm.sweep.results import results_of, table, write_best
    from velm.sweep.storage import open_record

    results = results_of(folder, open_record(folder))
    page, best = write_page(folder, results), write_best(folder, results)
    if as_json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    else:
        print(table(results))
        print(f"\nThe sweep is in {folder}/: {page.name}{'' if best is None else f', {best.name}'}, trial_000, ...")
        if best is not None:
            print(f"Next:  velm evaluate {results['best']['folder']}/best.ckpt\n       velm fit --config {best}")
    return 0 if results["best"] is not None else 1


def _folder(args: argparse.Namespace) -> Path:
    if args.output is not None:
        return Path(args.output)
    if args.study is None:
        raise ConfigError("--report needs the folder of a sweep: velm sweep --report FOLDER.")
    return Path("runs/sweep") / Path(args.study).stem


def _fit_options(words: Sequence[str]) -> list[str]:
    """The arguments of `velm fit`; KEY=VALUE without dashes is --KEY=VALUE."""
    options: list[str] = []
    for word in words:
        takes_word = bool(options) and options[-1].startswith("-") and "=" not in options[-1]
        options.append(word if word.startswith("-") or takes_word or "=" not in word else f"--{word}")
    return options


def _cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    return given.split(",") if given else [str(number) for number in range(torch.cuda.device_count())]


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM, which a cluster sends before it takes a machine, end the sweep like Ctrl-C."""

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm sweep",
        usage="velm sweep --config X.yaml --study study.yaml [--trials N] [--jobs N] [options of velm fit]\n"
        "       velm sweep --report FOLDER [--json]",
        description="Search the best options of `velm fit` by optuna. Each trial is a run of its own; the same command "
        "continues a sweep that was stopped or killed.",
        epilog="Takes every option of `velm fit`, as --KEY=VALUE or KEY=VALUE. Exit code: 0 if a trial has completed, "
        "1 if none has, 130 after Ctrl-C or SIGTERM.",
        allow_abbrev=False,
    )
    parser.add_argument("--study", metavar="FILE", help="what is searched, see docs/sweep.md")
    parser.add_argument(
        "--trials", type=at_least_one, default=20, metavar="N", help="in all, earlier starts included (default 20)"
    )
    parser.add_argument("--jobs", type=at_least_one, default=1, metavar="N", help="trials at a time (default 1)")
    parser.add_argument(
        "--output", type=folder_path, metavar="FOLDER", help="of the sweep (default runs/sweep/<name of the study>)"
    )
    parser.add_argument(
        "--report", type=folder_path, nargs="?", const=True, metavar="FOLDER", help="print the results of a sweep"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    return parser
