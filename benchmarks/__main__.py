"""Measure VELM and its peers on the same work, in one run.

    pip install '.[bench]'
    python -m benchmarks --output benchmark_results
    python -m benchmarks clip_step coca_step --output benchmark_results --repeats 7

Each workload first proves that the systems do the same work. They are then measured in alternation, each measurement
in its own process; a measurement that other processes disturb is repeated. Writes results.json, results.md and
results.svg.
"""

from __future__ import annotations

import argparse
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from benchmarks.harness.report import Outcome, calm_note, markdown, write
from benchmarks.harness.turns import Failed, in_a_process, take_turns
from benchmarks.harness.workload import OURS, Agreement, Settings, Workload
from benchmarks.workloads import all_workloads, chosen

PACKAGES = ("torch", "torchvision", "lightning", "transformers", "open_clip_torch", "timm")


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    if options.list:
        print("\n".join(f"{name:<20} {workload.title}" for name, workload in all_workloads().items()))
        return 0
    try:
        workloads = chosen(options.names)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    settings = Settings(options.precision, options.threads, options.device, options.compile)
    outcomes = []
    for workload in workloads:
        print(f"{workload.name}: {workload.title}", flush=True)
        outcomes.append(run(workload, settings, options.repeats))
        write(outcomes, options.output, describe(settings))  # keep the results measured so far
        print(markdown(outcomes[-1:], "").split("\n\n", 2)[2], flush=True)
    note = calm_note(outcomes)
    print(*filter(None, [note, f"Written to {options.output}: results.json, results.md, results.svg"]), sep="\n")
    return 1 if any(outcome.failed is not None for outcome in outcomes) else 0


def run(workload: Workload, settings: Settings, repeats: int | None) -> Outcome:
    """Run the proof, the measurements and the profile of each workload; report failures and continue with the next."""
    try:
        proof = [Agreement(*line) for line in in_a_process("prove", workload, OURS, settings)]
        measured = take_turns(
            workload,
            lambda system: in_a_process("measure", workload, system, settings),
            repeats or workload.repeats,
            say=lambda line: print(line, flush=True),
        )
        shares = in_a_process("profile", workload, workload.profiled, settings) if workload.profiled else {}
    except Failed as error:
        return Outcome(workload, failed=str(error))
    return Outcome(workload, proof, measured, shares)


def describe(settings: Settings) -> str:
    """Machine, installed versions and settings."""
    return (
        f"{_device(settings)}, {settings.threads} threads, "
        f"{'bfloat16' if settings.precision == 'bf16' else 'float32'}"
        f"{', torch.compile on' if settings.compile else ''}. Python {platform.python_version()}, "
        + ", ".join(f"{name} {found}" for name in PACKAGES if (found := _version(name)))
        + "."
    )


def _device(settings: Settings) -> str:
    if settings.device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="name", help="workloads; default: all")
    parser.add_argument("--output", type=Path, default=Path("benchmark_results"), help="folder for the results")
    parser.add_argument("--repeats", type=int, help="processes per system; default: set by each workload")
    parser.add_argument(
        "--precision", choices=["bf16", "32"], default="bf16", help="precision of training steps and decoding"
    )
    parser.add_argument("--threads", type=int, default=2, help="torch threads per process")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="device of the steps")
    parser.add_argument("--compile", action="store_true", help="use torch.compile for the models of both sides")
    parser.add_argument("--list", action="store_true", help="list the workloads and exit")
    return parser


if __name__ == "__main__":
    sys.exit(main())
