"""`velm export`: a checkpoint as a folder to publish, for other libraries, as graphs, or as a backbone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from velm.commands.dataset import dataset_changes
from velm.commands.options import folder_path
from velm.data.opening import PREFIX

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    """Run `velm export`; prints the largest differences of golden outputs and, on data, the changes of metrics.

    Raises:
        CheckpointError, ConfigError, ExportError: nothing was written; `velm` prints the message.
    """
    rest, changes = dataset_changes(argv)
    args = _parser().parse_args(rest)
    from velm.exports import Sample, export, push_to_hub

    asked = args.data is not None or args.samples is not None or changes
    made = export(
        args.checkpoint,
        args.output,
        format=args.format,
        tolerance=args.tolerance,
        quantize=args.quantize,
        metrics=args.metrics,
        data=Sample(args.data or None, args.samples, changes, args.max_change) if asked else None,
        plugins=args.plugins.split(",") if args.plugins else (),
    )
    size = sum(file.stat().st_size for file in made.folder.rglob("*") if file.is_file())
    print(f"{args.checkpoint} is exported as {made.kind}: {made.folder}, {size / 1e6:.1f} MB")
    print("Golden inputs in a fresh process, beside the checkpoint:")
    for difference in made.differences:
        print(f"  {difference}")
    for change in made.changes:
        print(change)
    if args.push_to_hub is not None:
        print(push_to_hub(made.folder, args.push_to_hub, private=args.private))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm export",
        description="Write a checkpoint as a folder that velm.load, transformers, open_clip or onnxruntime reads, "
        "or its image encoder alone, and compare what a fresh process says of golden inputs. Beyond the tolerance "
        "nothing is written.",
        epilog=f"Another dataset for --data: {PREFIX} '{{name: csv, path: captions.csv}}'; another option of it: "
        f"{PREFIX}.path=captions.csv.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "checkpoint", metavar="CHECKPOINT", help="a .ckpt, a folder of velm export, hf/..., open_clip/... or hf://..."
    )
    parser.add_argument(
        "--format",
        default="velm",
        metavar="FORMAT",
        help="velm (the default), transformers, open_clip, onnx, torch or backbone",
    )
    parser.add_argument("--output", type=folder_path, required=True, metavar="DIR", help="a new or empty folder")
    parser.add_argument(
        "--tolerance", type=float, metavar="X", help="largest difference of an output (default 1e-5; of onnx 1e-4)"
    )
    parser.add_argument("--quantize", metavar="KIND", help="int8: weights of onnx in 8 bits, see docs/export.md")
    parser.add_argument(
        "--metrics",
        type=folder_path,
        metavar="FILE",
        help="metrics.json for the model card (default: that of `evaluation` beside the checkpoint)",
    )
    parser.add_argument(
        "--data",
        nargs="?",
        const="",
        metavar="SPLIT",
        help="compare recall@1 and CIDEr-D, too, on a split of the dataset (default test, or val without one)",
    )
    parser.add_argument("--samples", type=int, metavar="N", help="most records of --data, evenly spaced (default all)")
    parser.add_argument(
        "--max_change", type=float, default=0.02, metavar="X", help="largest fall of these metrics (default 0.02)"
    )
    parser.add_argument("--plugins", metavar="A,B.py", help="modules or .py files whose decorators register parts")
    parser.add_argument("--push_to_hub", metavar="ORG/NAME", help="publish the folder there, too")
    parser.add_argument("--private", action="store_true", default=None, help="of a new repository on the hub")
    return parser
