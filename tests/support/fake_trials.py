"""Trials of a sweep without processes: they write a validation whenever the sweep looks at them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from velm.registry.scalars import plain, read_value
from velm.sweep.storage import begin
from velm.sweep.study import Study, read_study
from velm.sweep.sweep import Sweep

Outcome = tuple[Sequence[float], int]
"""The metric of each validation, and the exit code."""


class FakeTrial:
    """A process that writes one validation per poll, and ends with a code after the last or with 143 on SIGTERM."""

    def __init__(self, folder: Path, outcome: Outcome) -> None:
        self.file, (self.values, self.end) = folder / "metrics.csv", outcome
        self.written = 0
        self.code: int | None = None

    def poll(self) -> int | None:
        if self.code is None and self.written < len(self.values):
            self.written += 1
            rows = [f"{step},{step},{value}" for step, value in enumerate(self.values[: self.written])]
            self.file.write_text("\n".join(["epoch,step,val/score", *rows]), encoding="utf-8")
        elif self.code is None:
            self.code = self.end
        return self.code

    def terminate(self) -> None:
        self.code = 143

    def kill(self) -> None:
        self.code = -9


class FakeTrials:
    """Starts `FakeTrial`s; a `Sweep`'s argument `start`.

    Args:
        outcome: from the parameters of a trial to what its run does.

    Attributes:
        started: (number, parameters) of each start.
    """

    def __init__(self, outcome: Callable[[dict[str, Any]], Outcome]) -> None:
        self.outcome = outcome
        self.started: list[tuple[int, dict[str, Any]]] = []
        self.environments: list[Mapping[str, str]] = []

    def __call__(self, options: Sequence[str], folder: Path, env: Mapping[str, str]) -> FakeTrial:
        words = [word for option in options for word in option.split("=", 1)]
        parameters = {name[2:]: read_value(text) for name, text in zip(words[::2], words[1::2], strict=True)}
        self.started.append((int(folder.name[-3:]), parameters))
        self.environments.append(env)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.txt").write_text("first\nthe last line\n\n", encoding="utf-8")
        config = {"model": parameters, "trainer": {"default_root_dir": str(folder)}, "ckpt_path": f"{folder}/last.ckpt"}
        (folder / "config.yaml").write_text(yaml.safe_dump(plain(config)), encoding="utf-8")
        return FakeTrial(folder, self.outcome(parameters))


def study_of(folder: Path, text: str) -> Study:
    """The study of a file with this text."""
    (folder / "study.yaml").write_text(text, encoding="utf-8")
    return read_study(folder / "study.yaml")


def make_sweep(folder: Path, study: Study, start: FakeTrials, **options: Any) -> Sweep:
    """A sweep of fake trials, new or continued, that does not wait between two looks."""
    accept = {"check": lambda args: None, **options}
    return Sweep(folder, study, begin(folder, study, {}), [], start=start, poll=0.0, **accept)
