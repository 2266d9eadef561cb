"""Cost of a CoCa step against batch, image, caption, vocabulary and processes, for VELM and open_clip.

    python -m benchmarks.growth --output docs/growth.png

The model is that of `coca_step`; one quantity varies at a time. Each point is measured in its own process, as the
median of its steps. All captions of a point have the same length, which open_clip pads to 77 tokens. Across processes
(gloo, DDP, on the cores of this machine) the model is small, with 16 samples per process; seconds per step and bytes
sent per process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

AXES: dict[str, tuple[int, ...]] = {
    "batch": (8, 24, 48),
    "side": (96, 224, 352),
    "length": (8, 32, 64),
    "vocabulary": (8_192, 49_408, 98_304),
}
LABELS = {
    "batch": "samples of the batch",
    "side": "side of the image, pixels",
    "length": "tokens of a caption",
    "vocabulary": "words of the vocabulary",
}
USUAL = {"batch": 32, "side": 224, "length": 16, "vocabulary": 49_408}
SYSTEMS = ("velm", "open_clip")
PROCESSES = (1, 2, 4)


def point(system: str, batch: int, side: int, length: int, vocabulary: int, threads: int) -> dict[str, float]:
    """Seconds and extra memory of a step of these sizes, measured in this process."""
    import torch

    from benchmarks import inputs, ours
    from benchmarks.harness.child import measure
    from benchmarks.harness.workload import Run, Settings, Workload
    from benchmarks.peers import contrastive
    from benchmarks.steps import Steps, run_of

    settings = Settings(threads=threads)
    inputs.BOS, inputs.EOS = vocabulary - 2, vocabulary - 1

    def make(number: int) -> inputs.Feed:
        found = inputs.feed(number, batch, side=side)
        words = torch.randint(256, vocabulary - 2, found.tokens.shape, generator=torch.Generator().manual_seed(number))
        words[:, 0], words[:, length - 1], words[:, length:] = vocabulary - 2, vocabulary - 1, inputs.PAD
        found.tokens, found.lengths = words, torch.full_like(found.lengths, length)
        return found

    def build(settings: Settings) -> Run:
        if system == "velm":
            trained: Steps = ours.trained(ours.coca_config(vocabulary=vocabulary), settings)
        else:
            trained = contrastive.OpenClipCoCa(contrastive.open_clip_coca(vocabulary=vocabulary, side=side), settings)
        return run_of(trained, make, count=3)

    workload = Workload("growth", "", "samples", {system: build}, {}, lambda settings: [])
    found = measure(workload, system, settings)
    return {"seconds": found["seconds"], "extra_mb": found["extra_mb"]}


def apart(options: Mapping[str, Any]) -> dict[str, float]:
    """`point` in its own process."""
    command = [sys.executable, "-m", "benchmarks.growth", "--point", json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def grown(threads: int) -> dict[str, list[dict[str, Any]]]:
    """For each axis its rows: value, system, seconds, extra_mb."""
    found: dict[str, list[dict[str, Any]]] = {}
    for axis, values in AXES.items():
        found[axis] = []
        for value in values:
            for system in SYSTEMS:
                sizes = USUAL | {axis: value}
                row = {"value": value, "system": system, **apart({"system": system, "threads": threads, **sizes})}
                found[axis].append(row)
                print(
                    f"{axis:>10} {value:>7,} {system:>10} {row['seconds']:8.2f} s {row['extra_mb']:8,.0f} MB",
                    flush=True,
                )
    return found


def devices() -> list[dict[str, float]]:
    """Seconds and bytes of a step by number of processes, and the number of processes per core."""
    from benchmarks.scaling import measured

    rows = []
    for processes in PROCESSES:
        result = measured(processes, "ddp")
        sent = float(sum(result["counted"].values())) if "counted" in result else 0.0
        rows.append({"value": processes, "seconds": result["step"], "megabytes": sent / 1e6})
        print(f"{'processes':>10} {processes:>7} {rows[-1]['seconds']:19.2f} s {rows[-1]['megabytes']:8.2f} MB sent")
    return rows


def draw(found: Mapping[str, Any], path: Path) -> None:
    """One panel per axis: seconds as lines, memory below."""
    from matplotlib.figure import Figure

    axes = [axis for axis in AXES if axis in found]
    figure = Figure(figsize=(3 * (len(axes) + 1), 5.6), layout="constrained")
    panels = figure.subplots(2, len(axes) + 1, squeeze=False)
    colours = {"velm": "#2a7f62", "open_clip": "#c0392b"}
    for column, axis in enumerate(axes):
        for row, (key, unit) in enumerate((("seconds", "seconds a step"), ("extra_mb", "extra memory, MB"))):
            panel = panels[row][column]
            for system in SYSTEMS:
                points = [(each["value"], each[key]) for each in found[axis] if each["system"] == system]
                panel.plot(*zip(*points, strict=True), marker="o", color=colours[system], label=system)
            panel.set_ylim(bottom=0)
            panel.set_ylabel(unit if column == 0 else "")
            panel.set_xlabel(LABELS[axis] if row else "")
    for row, (key, unit) in enumerate((("seconds", "seconds a step"), ("megabytes", "MB in collectives a step"))):
        panel = panels[row][-1]
        panel.plot(*zip(*((e["value"], e[key]) for e in found["processes"]), strict=True), marker="o", color="#2a7f62")
        panel.set_ylim(bottom=0)
        panel.set_xlabel("processes, two cores" if row else "")
        panel.set_title(unit, fontsize=9)
    panels[0][0].legend(frameon=False)
    figure.savefig(path, metadata={"Date": None})


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help=".svg or .png file to write")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--point", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.point is not None:
        print(json.dumps(point(**json.loads(options.point))))
        return
    found: dict[str, Any] = {**grown(options.threads), "processes": devices()}
    if options.output is not None:
        draw(found, options.output)


if __name__ == "__main__":
    main()
