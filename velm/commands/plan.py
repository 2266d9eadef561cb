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
    """Run `velm plan`: 0 the config fits, 1 it does not.

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
    made = make_plan(
        config, gpus=args.gpus, gpu_memory=size, machine=_machine(args, board), vocab_size=args.vocab_size
    )  # fmt: skip
    told = made.as_dict()
    if args.samples is not None:
        told["hours_an_epoch"] = args.samples / told["samples_a_second"] / 3600
    print(json.dumps({"device": args.device, **told}, indent=2) if args.json else table(told, args.device))
    return 0 if made.fits else 1


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


def table(told: Mapping[str, Any], device: str) -> str:
    """What `Plan.as_dict` holds, for people."""
    setup, limit = told["setup"], (1 - told["reserve"]) * told["gpu_memory"]
    strategy = "fsdp2" if setup["sharded"] else "ddp" if setup["gpus"] > 1 else "one device"
    pieces = "" if setup["piece"] is None else f" in pieces of {setup['piece']:,}"
    lines = [
        f"{setup['gpus']:,} x {device}, {setup['batch']:,} samples a device{pieces}, "
        f"{setup['batch'] * setup['gpus']:,} a step, {strategy}, {setup['precision']}",
        "",
        *_columns("memory of a device, GiB", told["memory"], lambda number: f"{number / GIB:,.2f}"),
        f"  {'fits' if told['fits'] else 'DOES NOT FIT'}: {limit / GIB:,.1f} GiB may be used, "
        f"{told['reserve']:.0%} of {told['gpu_memory'] / GIB:,.0f} GiB are left alone",
        "",
        *_columns("seconds of a step", told["seconds"], lambda number: f"{number:,.4f}"),
        f"  {told['samples_a_second']:,.0f} samples a second"
        + (f", {told['hours_an_epoch']:,.2f} hours an epoch" if "hours_an_epoch" in told else ""),
        "",
        *_columns("a device sends in a step, MB", told["traffic"], lambda number: f"{number / 1e6:,.2f}"),
    ]
    lines += _told_advice(told)
    assumed = told["assumed"]
    lines += [
        f"assumed: {assumed['utilisation']:.0%} of {assumed['half'] / 1e12:,.0f} TFLOP/s in half precision and "
        f"{assumed['single'] / 1e12:,.0f} in float32;",
        f"  {assumed['link']:g} GB/s between the {assumed['in_machine']} devices of a machine, "
        f"{assumed['network']:g} GB/s a device between machines, {assumed['latency']:g} us a message;",
        f"  gradients travel behind {assumed['overlap']:.0%} of the backward pass; "
        f"{setup['workers'] or 1} workers a device read {assumed['images']:g} images a second each.",
        "not in it: the optimizer's own time, validation, checkpoints, stragglers.",
    ]
    return "\n".join(lines)


def _columns(title: str, parts: Mapping[str, float], write: Callable[[float], str]) -> list[str]:
    """A title and a line for each part that is not zero."""
    shown = {name: number for name, number in parts.items() if number}
    return [title, *(f"  {name:<32}{write(number):>12}" for name, number in shown.items())] if shown else []


def _told_advice(told: Mapping[str, Any]) -> list[str]:
    if told["fits"]:
        return [""]
    grown = {name: number for name, number in told["memory"].items() if name != "total"}
    largest = max(grown, key=lambda name: grown[name])
    lines = ["", f"{largest} take most of it."]
    if largest == "similarities":
        lines.append(
            "  They grow with the square of all samples of a step: a loss in tiles, where there is one, holds none."
        )
    if told["advice"] is None:
        return [
            *lines,
            "  Nothing fits, one sample a device included: more memory, more devices, or a smaller model.",
            "",
        ]
    advice = told["advice"]
    total = advice["memory"]["total"] / GIB
    return [
        *lines,
        f"  This fits ({total:,.1f} GiB, {advice['seconds']['total']:,.4f} s a step): {' '.join(advice['flags'])}",
        "",
    ]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm plan",
        usage="velm plan --config X.yaml [options of velm fit] [--gpus N] [--gpu_memory GIB] [--device NAME] [--json]",
        description="Memory and time of a training step on devices that are not at hand. Nothing is trained.",
        epilog="Every option of `velm fit` is taken as `velm fit` takes it. The exit code is 0 where the step fits and "
        "1 where it does not; then the output says what to set.",
        allow_abbrev=False,
    )
    count, number, share = at_least_one, _positive, _share
    parser.add_argument("--gpus", type=count, default=1, metavar="N", help="that share a step (default 1)")
    parser.add_argument(
        "--gpu_memory", "--gpu-memory", type=number, metavar="GIB", help="of one (default the device's)"
    )
    parser.add_argument("--device", default="h100", metavar="NAME", help="a100, h100, l4, rtx4090, ... (default h100)")
    parser.add_argument("--samples", type=count, metavar="N", help="of an epoch, for its hours")
    parser.add_argument("--vocab_size", type=count, metavar="V", help="(default the tokenizer's, learnt if need be)")
    parser.add_argument("--json", action="store_true", help="JSON instead of text: bytes, seconds, FLOPs")
    group = parser.add_argument_group("assumptions")
    for name, kind, default, unit, text in (
        ("utilisation", share, 0.4, "X", "share of the FLOP/s of the data sheet that is reached"),
        ("overlap", share, 0.8, "X", "share of the backward pass behind which gradients travel"),
        ("gpus_per_node", count, 8, "N", "devices of a machine"),
        ("interconnect_gb_s", number, 50.0, "GB/S", "between machines, each way and device"),
        ("latency_us", number, 20.0, "US", "microseconds of a message, times log2 of the devices"),
        ("pictures_s", number, 400.0, "N", "images that a worker reads a second"),
    ):
        dest = {"interconnect_gb_s": "network", "latency_us": "latency", "pictures_s": "images"}.get(name, name)
        names = dict.fromkeys((f"--{name}", f"--{name.replace('_', '-')}"))
        parser_help = f"{text} (default {default:g})"
        group.add_argument(*names, dest=dest, type=kind, default=default, metavar=unit, help=parser_help)
    group.add_argument(
        "--link_gb_s", dest="link", type=number, metavar="GB/S", help="inside one (default the device's)"
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share, above 0 and at most 1")
    return value
