"""`velm COMMAND ...`: imports a command's module only when the command is run."""

from __future__ import annotations

import importlib
import io
import os
import sys

from velm.errors import VelmError
from velm.util import did_you_mean

COMMANDS = {
    "fit": ("velm.training.run", "train a model from a YAML config"),
    "validate": ("velm.training.run", "measure a checkpoint on the validation split"),
    "test": ("velm.training.run", "measure a checkpoint on the test split"),
    "predict": ("velm.training.run", "caption the test split"),
    "caption": ("velm.commands.caption", "describe images with a checkpoint"),
    "embed": ("velm.commands.embed", "write the embeddings of images as Parquet"),
    "evaluate": ("velm.commands.evaluate", "recall, BLEU, ROUGE-L, CIDEr-D of a checkpoint"),
    "sweep": ("velm.commands.sweep", "search the best options of fit, each trial a run of its own"),
    "compare": ("velm.commands.compare", "runs side by side: configs, metrics, curves"),
    "average": ("velm.commands.average", "average the weights of checkpoints, as chosen on held-out data"),
    "explain": ("velm.commands.explain", "what each word attends to, and which regions match a text"),
    "serve": ("velm.commands.serve", "answer requests over HTTP: captions, embeddings, similarity, search"),
    "index": ("velm.commands.index", "write an index of images, or make it follow their folder"),
    "search": ("velm.commands.search", "find images of an index by a text, an image, or both"),
    "duplicates": ("velm.commands.duplicates", "groups of images of an index that look the same"),
    "doctor": ("velm.commands.doctor", "check data and config before training"),
    "plan": ("velm.commands.plan", "predict memory and time of a step on other devices"),
    "selfcheck": ("velm.commands.selfcheck", "check laws of training for a config, on this machine"),
    "import": ("velm.commands.import_model", "make a checkpoint of a model of transformers or open_clip"),
    "export": ("velm.commands.export", "write a checkpoint for the hub, transformers or open_clip"),
    "merge": ("velm.commands.merge", "merge adapters into the weights of a checkpoint"),
    "pack": ("velm.commands.pack", "write a dataset as tar shards"),
    "plugins": ("velm.commands.plugins", "list, show and check encoders, decoders, losses, datasets, tokenizers, ..."),
}
TRAINER = "velm.training.run"


def usage() -> str:
    """The text of `velm --help`."""
    lines = [f"  {name:<10} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: velm COMMAND ...",
            "",
            "Vision-enhanced language modelling: plug in encoders, align, caption.",
            "",
            *lines,
            "",
            "  velm fit --config configs/quickstart.yaml    learn to describe drawn scenes in minutes",
            "  velm COMMAND --help                          its options",
            "  velm --version",
        ]
    )


def main(args: list[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 a check or the run failed, 2 the input was wrong."""
    args = sys.argv[1:] if args is None else args
    _print_all_characters()
    if not args or args[0] in ("-h", "--help"):
        print(usage())
        return 0
    if args[0] == "--version":
        from velm.version import __version__

        print(f"velm {__version__}")
        return 0
    if args[0] not in COMMANDS:
        print(_unknown(args[0]), file=sys.stderr)
        return 2
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # a long table takes a quarter less memory and time
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # my_pkg.encoders:MyEncoder without packaging
    module = importlib.import_module(COMMANDS[args[0]][0])
    try:
        if COMMANDS[args[0]][0] == TRAINER:
            module.main(args)
            return 0
        code = int(module.main(args[1:]) or 0)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of a pipe (`velm plugins | head`) has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except VelmError as error:
        if error.exit_code == 2 and os.environ.get("VELM_TRACEBACK"):
            raise
        print(f"velm {args[0]}: {error}", file=sys.stderr)
        return error.exit_code


def _print_all_characters() -> None:
    """A character that the console's encoding lacks (Chinese on cp1252) is printed as '?'; it would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def _unknown(command: str) -> str:
    guess = did_you_mean(command, COMMANDS)
    return f"velm: unknown command {command!r}.{guess} Commands: {', '.join(COMMANDS)}."


if __name__ == "__main__":
    sys.exit(main())
