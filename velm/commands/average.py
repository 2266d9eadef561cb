"""`velm average`: one checkpoint whose weights are the mean of those of others."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from velm.commands.dataset import add_max_bad, dataset_changes, max_bad_of
from velm.commands.options import add_computing, add_prompts, folder_path, prompts_of
from velm.data.opening import PREFIX, open_dataset
from velm.errors import ConfigError

if TYPE_CHECKING:
    from velm.averaging.held_out import HeldOut, Scores
    from velm.checkpoint import Checkpoint

__all__ = ["main"]

ALSO = "--also.dataset"
Changes = list[tuple[str, Any]]


def main(argv: Sequence[str]) -> int:
    """Run `velm average`; prints what was tried and writes the average, of --wise and --greedy also a .json.

    Returns:
        0.

    Raises:
        CheckpointError, ConfigError, DataError: nothing can be averaged; `velm` prints the message.
    """
    args, changes, also = _parse(argv)
    from velm.averaging.average import average, notes, uniform
    from velm.averaging.wise import alphas_of
    from velm.checkpoint import merge, write_checkpoint
    from velm.registry import load_plugins
    from velm.sources import open_source

    args.alphas = None if args.wise is None else alphas_of(args.wise)
    load_plugins(args.plugins.split(",") if args.plugins else ())
    checkpoints = [merge(open_source(path)) for path in args.checkpoints]  # factors of adapters have no mean
    if args.wise is not None:
        result, chosen = _wise(args, checkpoints, _scores(args, checkpoints[-1], changes, also))
    elif args.greedy:
        result, chosen = _greedy(args, checkpoints, _scores(args, checkpoints[-1], changes, also))
    else:
        result, chosen = average(checkpoints, args.weights or uniform(len(checkpoints))), checkpoints
    for note in notes(chosen, str(args.output)):
        print(f"velm average: {note}", file=sys.stderr)
    write_checkpoint(result, args.output)
    parents = ", ".join(f"{each['weight']:.3g} {each['checkpoint']}" for each in result.origin["average"])
    print(f"{args.output} is the average of {parents}")
    return 0


def _wise(
    args: argparse.Namespace, checkpoints: Sequence[Checkpoint], scores: Scores
) -> tuple[Checkpoint, Sequence[Checkpoint]]:
    """The best average between two checkpoints; prints and writes the curve."""
    from velm.averaging.average import average
    from velm.averaging.held_out import value_of
    from velm.averaging.wise import Point, best_point, wise_curve
    from velm.report.plot import write_plot

    zero_shot, fine_tuned = checkpoints
    curve: list[Point[dict[str, dict[str, float]]]] = []
    names = list(scores.data)
    columns = [*names, "mean"] if len(names) > 1 else names
    for point in wise_curve(zero_shot, fine_tuned, args.alphas, scores.measure):
        if not curve:
            print(f"{scores.metric} by alpha, the weight of {checkpoints[1].path}")
            print("alpha  " + "  ".join(f"{name:>8}" for name in columns))
        curve.append(point)
        values = [value_of(point.metrics[name], scores.metric) for name in names]
        values += [scores.value(point.metrics)] if len(names) > 1 else []
        print(f"{point.alpha:5.3g}  " + "  ".join(f"{value:8.4f}" for value in values), flush=True)
    best = best_point(curve, scores.score)
    rows = [{"alpha": each.alpha, "value": scores.value(each.metrics), "metrics": each.metrics} for each in curve]
    content = {"metric": scores.metric, "best": best.alpha, "curve": rows}
    _write_json(args.output, checkpoints, content)
    plot = args.output.with_suffix(".svg")
    lines = {name: [(p.alpha, value_of(p.metrics[name], scores.metric)) for p in curve] for name in names}
    first, second = (f"{each.path.parent.name}/{each.path.stem}".lstrip("/") for each in checkpoints)
    labels = (f"alpha {curve[0].alpha:g}: {first}", f"{curve[-1].alpha:g}: {second}")
    write_plot(plot, scores.metric, {f"{args.split_of[name]} of {name}": line for name, line in lines.items()}, labels)
    print(f"\nThe best alpha is {best.alpha:g}. The curve is in {args.output.with_suffix('.json')} and {plot}")
    return average(checkpoints, [1 - best.alpha, best.alpha]), checkpoints


def _greedy(
    args: argparse.Namespace, checkpoints: Sequence[Checkpoint], scores: Scores
) -> tuple[Checkpoint, Sequence[Checkpoint]]:
    """The greedy soup; prints and writes what was tried."""
    from velm.averaging.average import average, uniform
    from velm.averaging.soup import greedy_soup

    tried = greedy_soup(checkpoints, lambda checkpoint: scores.score(scores.measure(checkpoint)))
    sign = -1 if scores.metric.endswith("rank") else 1
    rows = [
        {"checkpoint": str(each.checkpoint.path), "own": sign * each.own, "soup": sign * each.soup, "used": each.used}
        for each in tried
    ]
    print(f"{scores.metric} of a checkpoint, and of the soup with it")
    print("     own      soup  used")
    for row in rows:
        print(f"{row['own']:8.4f}  {row['soup']:8.4f}  {'yes' if row['used'] else 'no':<4}  {row['checkpoint']}")
    _write_json(args.output, checkpoints, {"metric": scores.metric, "tried": rows})
    used = [each.checkpoint for each in tried if each.used]
    print(f"\n{len(used)} of {len(tried)} are in the soup. The table is in {args.output.with_suffix('.json')}")
    return average(used, uniform(len(used))), used


def _scores(args: argparse.Namespace, checkpoint: Checkpoint, changes: Changes, also: Changes) -> Scores:
    """What measures the averages: on the data of the last checkpoint, as changed, and on other data if there is any."""
    from velm.averaging.held_out import Scores

    sets = {"data": (changes, PREFIX, args.split)}
    if also or args.also_split is not None:
        sets["also"] = (also, ALSO, args.also_split or args.split)
    args.split_of = {name: split for name, (_, _, split) in sets.items()}
    data = {name: _held_out(args, checkpoint, *each) for name, each in sets.items()}
    options = {"device": args.device, "precision": args.precision, "image_size": args.image_size}
    return Scores(data, args.metric, batch_size=args.batch_size, **options)


def _held_out(args: argparse.Namespace, checkpoint: Checkpoint, changes: Changes, prefix: str, split: str) -> HeldOut:
    from velm.averaging.held_out import HeldOut
    from velm.evaluation.extras import Extras

    dataset = open_dataset(str(checkpoint.path), checkpoint.data, changes, prefix)
    dataset.max_bad = max_bad_of(args.max_bad, checkpoint.data)
    return HeldOut(dataset.split(split), Extras(**prompts_of(args)), dataset.max_bad)


def _write_json(output: Path, checkpoints: Sequence[Checkpoint], content: Mapping[str, Any]) -> None:
    content = {"checkpoints": [str(each.path) for each in checkpoints], **content}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _parse(argv: Sequence[str]) -> tuple[argparse.Namespace, Changes, Changes]:
    """The options, and the changes to the two datasets.

    Raises:
        ConfigError: options that do not go together.
    """
    rest, changes = dataset_changes(argv)
    rest, also = dataset_changes(rest, ALSO)
    args = _parser().parse_args(rest)
    count = len(args.checkpoints)
    if count < 2:
        raise ConfigError(f"An average is of two checkpoints or more; got {args.checkpoints[0]} only.")
    if args.wise is not None and count != 2:
        raise ConfigError(
            f"--wise is a curve between two checkpoints, the first model and its fine-tuned copy; got {count}. For "
            f"more, use --greedy or --weights."
        )
    if args.output.resolve() in [Path(path).expanduser().resolve() for path in args.checkpoints]:
        raise ConfigError(f"--output {args.output} is one of the checkpoints: name another file.")
    if args.wise is None and not args.greedy and (changes or also or args.metric or args.also_split):
        raise ConfigError(
            "Data and --metric choose the average by a held-out split, so they need --wise 0:1:0.1 or --greedy."
        )
    return args, changes, also


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm average",
        description="The mean of the weights of checkpoints of one model: by the given --weights (default: equal ones);"
        " the best point between a model and its fine-tuned copy (--wise, WiSE-FT); or a soup of the checkpoints that "
        "improve it (--greedy).",
        epilog=f"The held-out data is that of the last checkpoint's training; another: {PREFIX} '{{name: csv, path: "
        f"captions.csv}}', another option of it: {PREFIX}.path=captions.csv. A second one, whose metric is averaged "
        f"with that of the first: {ALSO}, in the same ways, and --also.split.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoints", metavar="CHECKPOINT", nargs="+", help="two or more of one model")
    parser.add_argument("--output", type=folder_path, required=True, metavar="FILE", help="the .ckpt to write")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--weights", type=float, nargs="+", metavar="X", help="of the checkpoints, with the sum 1")
    how.add_argument(
        "--wise", metavar="START:END:STEP", help="measure (1 - alpha) * first + alpha * second, e.g. 0:1:0.1"
    )
    how.add_argument(
        "--greedy", action="store_true", help="add a checkpoint after another, the best first, if it helps"
    )
    parser.add_argument("--split", default="val", help="held-out split of --wise and --greedy (default val)")
    parser.add_argument("--also.split", dest="also_split", metavar="NAME", help="split of the second dataset")
    parser.add_argument(
        "--metric",
        metavar="NAME",
        help="that chooses: a key of metrics.json, or the mean of both directions as recall@1 (default recall@1; "
        "caption/cider of a model without alignment)",
    )
    add_prompts(parser)
    add_max_bad(parser)
    add_computing(parser)
    return parser
