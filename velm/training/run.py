"""`velm fit / validate / test / predict`: Lightning's command line with VELM's task, data and run folder."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, TypeVar

import lightning
from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelSummary, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from velm import _compat
from velm.allocation import keep_freed_memory
from velm.errors import BadDataError, ConfigError
from velm.precision import warn_if_emulated
from velm.registry.locate import name_places
from velm.training.balancing.watch import GradientWatch
from velm.training.data import VisionLanguageData
from velm.training.distributed.fsdp import register_strategy
from velm.training.mistakes import explain_mistake
from velm.training.monitor.alarms import Alarms
from velm.training.monitor.loggers import CaptionPanel
from velm.training.monitor.prefix_norms import PrefixNorms
from velm.training.monitor.progress import ParameterSummary, PrintResults, ProgressLine
from velm.training.monitor.throughput import Speed
from velm.training.monitor.tuning import FoundOptions
from velm.training.monitor.validate_at_end import ValidateAtEnd
from velm.training.part_options import (
    YAML_MODE,
    locate_parts,
    merge_parts,
    plain_options,
    prepare_parser,
    template_of,
)
from velm.training.recovery.adapter_files import shrink_best
from velm.training.recovery.checkpoint_io import Checkpoints, exists, is_url, join
from velm.training.recovery.nonfinite import NonFiniteGuard
from velm.training.recovery.quarantine import Quarantine, QuarantineFile
from velm.training.recovery.ranks import RankWatch, new_rendezvous_port, record_errors
from velm.training.recovery.resume import Resume, StopAllRanks, explain_failure, slurm_environments
from velm.training.recovery.run_checkpoints import BEST, named_checkpoint, run_checkpoints
from velm.training.recovery.run_folder import ClaimRunFolder, is_torchrun_restart, refuse_url, resume_path
from velm.training.source_options import add_source_options
from velm.training.task import VisionLanguageTask
from velm.training.tracking.callback import Track
from velm.training.tracking.run_loggers import run_loggers

CLI = TypeVar("CLI", bound="VelmCLI")

MONITOR = "val/score"
"""The metric that selects best.ckpt; `SplitScores.compute` defines it."""


class SaveConfigOfFit(SaveConfigCallback):
    """Writes config.yaml in the run folder when a fit begins; `velm validate`, `test` and `predict` do not.

    Lightning's callback writes it in the folder of the first logger.
    """

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        """Nothing yet: the folder may hold an earlier run until this one is built and checked."""

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            self.parser.save(self.config, str(folder / self.config_filename), skip_none=False, overwrite=True)


class VelmCLI(LightningCLI):
    """LightningCLI whose runs live in `runs/<config's stem>/` (or `--trainer.default_root_dir`)."""

    def _parse_ckpt_path(self) -> None:
        """Nothing: LightningCLI would read hyperparameters from the checkpoint, which VELM's have not."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        help_text = "modules or .py files whose decorators register parts"
        parser.add_argument("--plugins", type=list[str], default=[], help=help_text)
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=PositiveInt | None,
            default=1000,
            help="optimizer steps after which last.ckpt is written again inside an epoch; null: at epochs' ends only",
        )
        help_text = "words of captions: auto, ptb (pycocoevalcap's), zh, ja, char, 13a, jieba, ...; see docs/using.md"
        parser.add_argument("--metrics.tokenize", type=str, default="auto", help=help_text)
        parser.link_arguments("metrics.tokenize", "model.validation.tokenize")
        add_failure_options(parser)
        parser.link_arguments("model.decoder", "data.template", compute_fn=template_of)
        for part in ("model", "data"):
            parser.link_arguments("plugins", f"{part}.plugins")
        for given in ("vocab_size", "pad_id"):
            parser.link_arguments(f"data.{given}", f"model.{given}", apply_on="instantiate")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        try:
            with ExitStack() as self.held:  # the lock of the run folder
                super().__init__(*args, **kwargs)
        except (Exception, SIGTERMException) as error:
            failure = explain_failure(error, getattr(self, "trainer", None)) or explain_mistake(error)
            if failure is None:
                raise
            raise failure from error

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        self.config_folders = [os.path.dirname(str(file)) or "." for file in config.get("config") or []]
        locate_parts(config, self.config_folders)
        plain_options(config)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        refuse_url(str(config.trainer.default_root_dir))
        folder = Path(config.trainer.default_root_dir or Path("runs") / _stem(config)).expanduser()
        config.trainer.default_root_dir = str(folder)
        if config.checkpoint_dir is not None and not is_url(config.checkpoint_dir):
            config.checkpoint_dir = str(Path(config.checkpoint_dir).expanduser())
        checkpoints = str(config.checkpoint_dir or folder)
        config.ckpt_path = named_checkpoint(config.ckpt_path, checkpoints)
        self.going_on = bool(config.resume) or is_torchrun_restart()
        if self.subcommand == "fit":
            keep = self.going_on or config.ckpt_path is not None
            self.run_folder = ClaimRunFolder(folder, keep=keep, wait=self.going_on)
            self.held.callback(self.run_folder.release)
            self.run_folder.reserve()
            config.resume = False  # of this start, not of the run that config.yaml tells how to do again
            if is_torchrun_restart():
                new_rendezvous_port()
            if self.going_on:
                config.ckpt_path = resume_path(checkpoints, config.ckpt_path)
        elif config.ckpt_path is None:
            best = join(checkpoints, BEST)
            if not exists(best):
                raise ConfigError(f"`velm {self.subcommand}` found no {best}: train first, or give --ckpt_path.")
            config.ckpt_path = best

    def instantiate_classes(self) -> None:
        dataset = self.config[self.subcommand].data.dataset
        try:
            with name_places(dataset, self.config_folders, "--data.dataset"):
                super().instantiate_classes()
            if self._get(self.config_init, "ckpt_path") is not None:
                self.model.pretrained = None  # the weights are the checkpoint's
        except BadDataError as error:  # the vocabulary is made of the data, so it is opened before there is a Trainer
            if self.subcommand == "fit":
                file = QuarantineFile(self.run_folder.folder)
                file.path = self.run_folder.free_path(file.path.name)
                file.append(error.bad_samples)
                raise BadDataError(f"{error} All of them: {file.path}", error.bad_samples) from None
            raise

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        config = self._get(self.config_init, "trainer")
        folder = Path(config["default_root_dir"])
        loggers = run_loggers(folder, config["logger"], self.run_folder.keep if self.subcommand == "fit" else None)
        kwargs["logger"] = loggers
        kwargs["callbacks"] = [*_listed(config["callbacks"]), *self._callbacks(folder, config), *_printers(config)]
        given = _listed(config["plugins"])
        own_io = _has_io(given, config["strategy"])
        save = self._get(self.config_init, "save") if self.subcommand == "fit" else "full"
        place = self._get(self.config_init, "checkpoint_dir") or folder
        shrink = shrink_best(save, self.model.pretrained, self.model.model_config, str(place), own_io)
        self.checkpoints = Checkpoints(self._get(self.config_init, "save_last_k"), shrink)
        kwargs["plugins"] = [
            *given,
            *slurm_environments(given),
            *([] if own_io else [self.checkpoints]),
        ]
        trainer = super().instantiate_trainer(**kwargs)
        if self.subcommand == "fit":
            keep_freed_memory(trainer.strategy.root_device.type)
        warn_if_emulated(trainer.strategy.root_device, str(config["precision"]), "--trainer.precision=32-true")
        if isinstance(config["strategy"], str):
            _compat.set_process_group_timeout(trainer.strategy, self._get(self.config_init, "process_group_timeout"))
        return trainer

    def _callbacks(self, folder: Path, config: Any) -> list[Callback]:
        if self.subcommand != "fit":
            return []
        place = str(self._get(self.config_init, "checkpoint_dir") or folder)
        guard = NonFiniteGuard(folder, self._get(self.config_init, "max_nonfinite_steps"))
        callbacks: list[Callback] = [
            FoundOptions(),
            ValidateAtEnd(),
            Track(folder, going_on=self.going_on),
            self.run_folder,
            CaptionPanel(folder),
            PrintResults(MONITOR, folder, place),
            RankWatch(folder),
            Resume(place, same_run=self.going_on),
        ]
        callbacks += [Quarantine(folder), guard, Alarms(folder), PrefixNorms()]
        if config["logger"] is not False:
            callbacks += [LearningRateMonitor(logging_interval="step"), GradientWatch(), Speed()]
        if config["enable_checkpointing"] is not False:
            monitor = None if config["limit_val_batches"] == 0 else MONITOR
            steps = self._get(self.config_init, "checkpoint_every_n_steps")
            callbacks += run_checkpoints(place, monitor=monitor, every_n_steps=steps)
        return [*callbacks, StopAllRanks()]

    def after_fit(self) -> None:
        self.checkpoints.refuse_unsaved()

    def after_predict(self) -> None:
        """Write predictions.jsonl in the run folder: one row per image, of all ranks, in the order of the split."""
        if not self.trainer.is_global_zero:
            return
        path = Path(self.trainer.default_root_dir) / "predictions.jsonl"
        rows = list(self.model.predictions.values())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{len(rows)} captions written to {path}")


def _stem(config: Any) -> str:
    """The name of the run: the first config file's, else 'default'."""
    files = config.get("config") or []
    return Path(str(files[0])).stem if files else "default"


def add_failure_options(parser: LightningArgumentParser) -> None:
    add = parser.add_argument
    add("--resume", action="store_true", help="go on from the run's last.ckpt where there is one, else begin")
    add("--checkpoint_dir", type=str | None, default=None, help="folder or fsspec URL of checkpoints; null: the run's")
    help_text = "best.ckpt: full, or adapters, without the weights that model.pretrained holds; see docs/pretrained.md"
    add("--save", type=Literal["full", "adapters"], default="full", help=help_text)
    add("--save_last_k", type=NonNegativeInt, default=0, help="newest last.ckpt that are kept as step_<n>.ckpt too")
    help_text = "steps with a NaN or inf in loss or gradient, in a row, that end the run; null: none do"
    add("--max_nonfinite_steps", type=PositiveInt | None, default=10, help=help_text)
    help_text = "seconds that a process waits for the others before it gives them up"
    add("--process_group_timeout", type=PositiveFloat, default=1800.0, help=help_text)


def _listed(plugins: Any) -> list[Any]:
    return list(plugins) if isinstance(plugins, list | tuple) else [] if plugins is None else [plugins]


def _printers(config: Any) -> list[Callback]:
    """VELM's progress line and parameter summary, unless the user disables them or brings others."""
    given = _listed(config["callbacks"])
    bar = config["enable_progress_bar"] is not False and not any(isinstance(c, ProgressBar) for c in given)
    summary = config["enable_model_summary"] is not False and not any(isinstance(c, ModelSummary) for c in given)
    return [*([ProgressLine()] if bar else []), *([ParameterSummary()] if summary else [])]


def _has_io(plugins: Sequence[Any], strategy: Any) -> bool:
    """Whether the user brings a way of writing checkpoints, or a strategy that writes its own."""
    given = any(isinstance(plugin, CheckpointIO) for plugin in plugins)
    return given or _compat.has_own_checkpoint_io(strategy) or "deepspeed" in str(strategy).lower()


def main(args: ArgsType = None) -> VelmCLI:
    """Parse, build, run.

    Raises:
        RunFailedError: the run could not go on; nothing was wrong with what was typed.
    """
    return record_errors(_cli)(VelmCLI, args)


def _cli(cls: type[CLI], args: ArgsType) -> CLI:
    register_strategy()
    prepare_parser()
    if not isinstance(args, dict | Namespace):
        args = merge_parts(add_source_options(sys.argv[1:] if args is None else args))
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter is intended")  # it is what we mean
    warnings.filterwarnings("ignore", message=".*It is recommended to use `self.log")  # all ranks have the same figures
    warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")  # as it should be
    for name in ("pytorch", "fabric"):  # devices, tips and advertisements; warnings stay
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    mode = {"parser_mode": YAML_MODE}
    return cls(
        VisionLanguageTask,
        VisionLanguageData,
        args=args,
        seed_everything_default=0,
        trainer_defaults={"gradient_clip_val": 1.0, "log_every_n_steps": 10, "use_distributed_sampler": False},
        save_config_callback=SaveConfigOfFit,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "velm", **mode, **{name: dict(mode) for name in cls.subcommands()}},
    )


class _ParsedOnly(VelmCLI):
    """Reads files and options as `velm fit` does, and stops there: nothing is built, no folder is touched."""

    def before_instantiate_classes(self) -> None:
        pass

    def instantiate_classes(self) -> None:
        pass

    def _run_subcommand(self, subcommand: str) -> None:
        pass


def parse_fit(args: Sequence[str]) -> dict[str, Any]:
    """The config of `velm fit` with these arguments, as plain mappings: `model`, `data`, `trainer`, ...

    Raises:
        SystemExit: a key that there is not, or a value of the wrong type; the parser has printed the message.
    """
    cli = _cli(_ParsedOnly, ["fit", *args])
    config: dict[str, Any] = cli.config["fit"].as_dict()
    return config
