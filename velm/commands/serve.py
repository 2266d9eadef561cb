"""`velm serve`: captions, embeddings, similarity and search over HTTP."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from velm.commands.options import add_device, at_least_one, load_pipeline
from velm.errors import MissingPackageError
from velm.serving.settings import Settings

if TYPE_CHECKING:
    from velm.serving.service import Loaded

__all__ = ["main", "name_of"]


def main(argv: Sequence[str]) -> int:
    """Run `velm serve` until SIGTERM or Ctrl+C; 0.

    Raises:
        MissingPackageError: the extra `serve` is not installed.
        ServingError: the port is in use, or anyone on the network could use the server.
        CheckpointError, PipelineError, SearchError: the model or the index cannot be used; `velm` prints the message.
    """
    args = _parser().parse_args(argv)
    token = os.environ.get("VELM_TOKEN") if args.token is None and not args.no_token else args.token
    limits = {name: getattr(args, name) for name in ("max_body", "max_pixels", "max_text", "max_batch", "queue")}
    settings = Settings(
        host=args.host,
        port=args.port,
        token=token,
        no_token=args.no_token,
        name=args.name or name_of(args.checkpoint),
        max_wait_ms=args.max_wait_ms,
        **limits,
    )
    try:
        from velm.serving.server import run
    except ModuleNotFoundError as error:
        raise MissingPackageError(f"velm serve needs the package {error.name}: pip install 'velm[serve]'.") from error

    run(settings, lambda: _load(args))
    return 0


def name_of(checkpoint: str) -> str:
    """The name of a model: of 'runs/quickstart/best.ckpt' it is 'quickstart', of 'hf://org/name' 'org/name'."""
    if "://" in checkpoint:
        return checkpoint.partition("://")[2]
    path = Path(checkpoint).expanduser().absolute()
    return path.parent.name if path.stem in ("best", "last") else path.stem


def _load(args: argparse.Namespace) -> Loaded:
    import torch

    from velm.search import Index, model_hash
    from velm.serving.engine import Engine
    from velm.serving.service import Loaded

    if args.threads is not None:
        torch.set_num_threads(args.threads)
    pipeline = load_pipeline(args)
    engine = Engine(pipeline)
    index = None
    if args.index is not None:
        index = Index.open(args.index)
        index.check_model(pipeline)
    engine.warm_up()
    return Loaded(engine, model_hash(pipeline) if index is None else index.model, index)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="velm serve",
        description="Answer requests over HTTP with a checkpoint: captions, embeddings, similarity and search, and a "
        "page to try them.",
        allow_abbrev=False,
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a .ckpt written by `velm fit`")
    parser.add_argument("--index", metavar="DIR", help="of images to search, as `velm index` wrote it")
    parser.add_argument("--name", metavar="TEXT", help="of the model, as answers state it (default: its run's)")
    access = parser.add_argument_group("access")
    access.add_argument("--host", default="127.0.0.1", metavar="HOST", help="to listen on (default 127.0.0.1)")
    access.add_argument("--port", type=int, default=8000, metavar="N", help="to listen on; 0 takes a free one")
    access.add_argument("--token", metavar="TEXT", help="that requests have to bear (default: VELM_TOKEN, if set)")
    access.add_argument("--no_token", action="store_true", help="serve without a token")
    limits = parser.add_argument_group("limits")
    for name, default, text in (
        ("max_body", 32 << 20, "bytes of a request"),
        ("max_pixels", 32_000_000, "width times height of an image"),
        ("max_text", 8192, "characters of a text"),
        ("max_batch", 32, "inputs that are computed at a time"),
        ("queue", 256, "inputs that wait or are computed; requests beyond are answered 503"),
    ):
        limits.add_argument(f"--{name}", type=at_least_one, default=default, metavar="N", help=f"{text} ({default})")
    limits.add_argument(
        "--max_wait_ms", type=float, default=5.0, metavar="X", help="longest wait for inputs that are being decoded (5)"
    )
    computing = parser.add_argument_group("computing")
    add_device(computing)
    computing.add_argument("--threads", type=at_least_one, metavar="N", help="of torch on the CPU (default: its own)")
    parser.set_defaults(seed=None)
    return parser
