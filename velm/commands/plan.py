"""`velm plan`: memory and time of a training step on devices that are not at hand."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from velm.commands.options import at_least_one

if TYPE_CHECKING:
    from velm.planning.step import Machine

__all__ = ["main", "table"]

GIB = 2**30


def main(argv: Sequence[str]) -> int:
    """Run `velm plan`: 0 if the config fits, else 1.

    Raises:
        ConfigError, DataError: an unknown device, or a config that cannot be built; `velm` prints the message.
    """
    args, rest = _parser().parse_known_args(argv)
    from velm.planning.devices import device
    from velm.planning.plan import make_plan
    from velm.training.run import parse_fit

    board = device(args.device)
    size = (board.memory if args.gpu_memory is None else args.gpu_memory) * GIB
    config = parse_fit(rest)
    plan = make_plan(config, gpus=args.gpus, gpu_memory=size, machine=_machine(args, board), vocab_size=args.vocab_size)
    content = plan.as_dict()
    if args.samples is not None:
        content["hours_an_epoch"] = args.samples / content["samples_a_second"] / 3600
    print(json.dumps({"device": args.device, **content}, indent=2) if args.json else table(content, args.device))
    return 0 if plan.fits else 1


def _machine(args: argparse.Namespace, board: Any) -> Machine:
    from velm.planning.step import Machine

    return Machine(
        half=board.half,
        single=board.single,
        utilisation=args.utilisation,
        link=board.link if args.link is None else args.link,
        network=args.network,
        in_machine=args.gpus_per_node,
        latency=args.latency,
        overlap=args.overlap,
        images=args.images,
    )


def table(plan: Mapping[str, Any], device: str) -> str:
    """The content of `Plan.as_dict` as text."""
    setup, limit = plan["setup"], (1 - plan["reserve"]) * plan["gpu_memory"]
    strategy = "fsdp2" if setup["sharded"] else "ddp" if setup["gpus"] > 1 else "one device"
    split = "" if setup["micro_batch"] is None else f" in micro-batches of {setup['micro_batch']:,}"
    lines = [
        f"{setup['gpus']:,} x {device}, {setup['batch']:,} samples per device{split}, "
        f"{setup['batch'] * setup['gpus']:,} per step, {strategy}, {setup['precision']}",
        "",
        *_columns("memory per device, GiB", plan["memory"], lambda number: f"{number / GIB:,.2f}"),
        f"  {'fits' if plan['fits'] else 'DOES NOT FIT'}: {limit / GIB:,.1f} GiB are usable, "
        f"{plan['reserve']:.0%} of {plan['gpu_memory'] / GIB:,.0f} GiB are reserved",
        "",
        *_columns("seconds per step", plan["seconds"], lambda number: f"{number:,.4f}"),
        f"  {plan['samples_a_second']:,.0f} samples per second"
        + (f", {plan['hours_an_epoch']:,.2f} hours per epoch" if "hours_an_epoch" in plan else ""),
        "",
        *_columns("sent per step and device, MB", plan["traffic"], lambda number: f"{number / 1e6:,.2f}"),
    ]
    lines += _advice(plan)
    assumed = plan["assumed"]
    lines += [
        f"assumed: {assumed['utilisation']:.0%} of {assumed['half'] / 1e12:,.0f} TFLOP/s in half precision and "
        f"{assumed['single'] / 1e12:,.0f} in float32;",
        f"  {assumed['link']:g} GB/s between the {assumed['in_machine']} devices of a machine, "
        f"{assumed['network']:g} GB/s per device between machines, {assumed['latency']:g} us per message;",
        f"  {assumed['overlap']:.0%} of the backward pass hides the communication of gradients; "
        f"{setup['workers'] or 1} workers per device load {assumed['images']:g} images per second each.",
        "not included: the optimizer's time, validation, checkpoints, stragglers.",
    ]
    return "\n".join(lines)


def _columns(title: str, parts: Mapping[str, float], form: Callable[[float], str]) -> list[str]:
    """A title and a line per part that is not zero."""
    shown = {name: number for name, number in parts.items() if number}
    return [title, *(f"  {name:<32}{form(number):>12}" for name, number in shown.items())] if shown else []


def _advice(plan: Mapping[str, Any]) -> list[str]:
    if plan["fits"]:
        return [""]
    parts = {name: number for name, number in plan["memory"].items() if name != "total"}
    largest = max(parts, key=lambda name: parts[name])
    lines = ["", f"Largest part: {largest}."]
    if largest == "similarities":
        lines.append("  They grow with the square of all samples of a step; a tiled loss holds none.")
    if plan["advice"] is None:
        return [
            *lines,
            "  Nothing fits, not even one sample per device: add memory or devices, or use a smaller model.",
            "",
        ]
    advice = plan["advice"]
    total = advice["memory"]["total"] / GIB
    return [
        *lines,
        f"  This fits ({total:,.1f} GiB, {advice['seconds']['total']:,.4f} s per step): {' '.join(advice['flags'])}",
        "",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm plan",
        usage="velm plan --config X.yaml [options of velm fit] [--gpus N] [--gpu_memory GIB] [--device NAME] [--json]",
        description="Predict memory and time of a training step on devices that are not at hand. Nothing is trained.",
        epilog="Takes every option of `velm fit`. Exit code: 0 if the step fits; 1 if it does not, with advice.",
        allow_abbrev=False,
    )
    count, number, fraction = at_least_one, _positive, _fraction
    parser.add_argument("--gpus", type=count, default=1, metavar="N", help="number of GPUs (default 1)")
    parser.add_argument(
        "--gpu_memory", "--gpu-memory", type=number, metavar="GIB", help="memory of one GPU (default the device's)"
    )
    parser.add_argument("--device", default="h100", metavar="NAME", help="a100, h100, l4, rtx4090, ... (default h100)")
    parser.add_argument("--samples", type=count, metavar="N", help="samples per epoch, to compute its hours")
    parser.add_argument(
        "--vocab_size", type=count, metavar="V", help="size of the vocabulary (default the tokenizer's)"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text: bytes, seconds, FLOPs")
    group = parser.add_argument_group("assumptions")
    for name, kind, default, unit, text in (
        ("utilisation", fraction, 0.4, "X", "fraction of the peak FLOP/s that is reached"),
        ("overlap", fraction, 0.8, "X", "fraction of the backward pass that hides the communication of gradients"),
        ("gpus_per_node", count, 8, "N", "GPUs per machine"),
        ("interconnect_gb_s", number, 50.0, "GB/S", "between machines, per direction and GPU"),
        ("latency_us", number, 20.0, "US", "microseconds per message, times log2 of the GPUs"),
        ("pictures_s", number, 400.0, "N", "images per second and worker"),
    ):
        dest = {"interconnect_gb_s": "network", "latency_us": "latency", "pictures_s": "images"}.get(name, name)
        names = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser_help = f"{text} (default {default:g})"
        group.add_argument(*names, dest=dest, type=kind, default=default, metavar=unit, help=parser_help)
    group.add_argument(
        "--link_gb_s", dest="link", type=number, metavar="GB/S", help="within a machine (default the device's)"
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a fraction, above 0 and at most 1")
    return value
