"""`velm import`: a model of another library as a checkpoint of VELM."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from velm.commands.options import folder_path

__all__ = ["main"]


def main(argv: Sequence[str]) -> int:
    args = _parser().parse_args(argv)
    from velm.checkpoint import build_from_checkpoint, write_checkpoint
    from velm.sources import open_source

    checkpoint = open_source(args.source)
    parameters = sum(parameter.numel() for parameter in build_from_checkpoint(checkpoint).parameters())
    write_checkpoint(checkpoint, args.output)
    print(f"{args.source}, {parameters:,} parameters, is imported: {args.output}")
    print(
        f"\nNext:  velm evaluate {args.output} --data.dataset '{{name: csv, path: captions.csv}}' --output evaluation"
    )
    print(f"       velm fit --model.pretrained {args.output} ...")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm import",
        description="Write a model of transformers or open_clip as a checkpoint with its tokenizer and image transform,"
        " for every command of VELM, without the network and the library it came from.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="hf/<hub id or folder>, open_clip/<architecture>@<tag or file>, or open_clip/<folder>",
    )
    parser.add_argument("--output", type=folder_path, required=True, metavar="FILE", help="the checkpoint, model.ckpt")
    return parser
