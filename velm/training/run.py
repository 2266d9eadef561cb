"""`velm fit / validate / test / predict`: Lightning's command line with VELM's task, data and run folder."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import lightning
from jsonargparse.typing import PositiveInt
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from velm.data.faults import BadDataError
from velm.registry import SpecError
from velm.training.alarms import Alarms
from velm.training.callbacks import CaptionPanel, LastWords, ResumableCSVLogger
from velm.training.datamodule import Augmentation, VisionLanguageData
from velm.training.optim import OptimizerConfig
from velm.training.quarantine import FILE, Quarantine, write_down
from velm.training.resume import TERMINATED, Resume
from velm.training.sharding import register_strategy
from velm.training.speed import Speed
from velm.training.task import VisionLanguageTask
from velm.training.validation import ValidationConfig
from velm.training.watch import GradientWatch, WatchConfig

CLI = TypeVar("CLI", bound="VelmCLI")

MONITOR = "val/score"
"""The figure that chooses best.ckpt; `SplitScores.compute` states it."""


class SaveConfigOfFit(SaveConfigCallback):
    """`config.yaml` says how the run was trained, so `velm validate` and its like leave it alone."""

    def setup(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str) -> None:
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


class VelmCLI(LightningCLI):
    """LightningCLI whose runs live in `runs/<config's stem>/` (or `--trainer.default_root_dir`)."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        help_text = "modules or .py files whose decorators register parts"
        parser.add_argument("--plugins", type=list[str], default=[], help=help_text)
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=PositiveInt | None,
            default=1000,
            help="optimizer steps after which last.ckpt is written again inside an epoch; null: at epochs' ends only",
        )
        for part in ("model", "data"):
            parser.link_arguments("plugins", f"{part}.plugins")
        for given in ("vocab_size", "pad_id"):
            parser.link_arguments(f"data.{given}", f"model.{given}", apply_on="instantiate")

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        folder = Path(config.trainer.default_root_dir or Path("runs") / _stem(config))
        config.trainer.default_root_dir = str(folder)
        if self.subcommand == "fit":
            if config.ckpt_path is None:
                _set_aside(folder)
        elif config.ckpt_path is None:
            best = folder / "best.ckpt"
            if not best.is_file():
                raise SpecError(f"`velm {self.subcommand}` found no {best}: train first, or give --ckpt_path.")
            config.ckpt_path = str(best)

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except BadDataError as error:  # the vocabulary is made of the data, so it is opened before there is a Trainer
            if self.subcommand == "fit":
                file = Path(self.config[self.subcommand].trainer.default_root_dir) / FILE
                write_down(file, error.faults)
                raise BadDataError(f"{error} All of them: {file}", error.faults) from None
            raise

    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        config = self._get(self.config_init, "trainer")
        folder = Path(config["default_root_dir"])
        if config["logger"] is None or config["logger"] is True:
            loggers = [ResumableCSVLogger(folder), TensorBoardLogger(folder.parent, name=folder.name, version="")]
            kwargs["logger"] = loggers if self.subcommand == "fit" else False
        kwargs["callbacks"] = [*(config["callbacks"] or []), *self._callbacks(folder, config)]
        return super().instantiate_trainer(**kwargs)

    def _callbacks(self, folder: Path, config: Any) -> list[Callback]:
        if self.subcommand != "fit":
            return []
        callbacks: list[Callback] = [CaptionPanel(), LastWords(), Resume(folder), Quarantine(folder)]
        callbacks.append(Alarms(folder))
        if config["logger"] is not False:
            callbacks += [LearningRateMonitor(logging_interval="step"), GradientWatch(), Speed()]
        if config["enable_checkpointing"] is not False:
            shared: dict[str, Any] = {"dirpath": folder, "enable_version_counter": False}
            callbacks.append(ModelCheckpoint(filename="last", save_on_train_epoch_end=True, **shared))
            steps = self._get(self.config_init, "checkpoint_every_n_steps")
            if steps is not None:
                callbacks.append(ModelCheckpoint(filename="last", every_n_train_steps=steps, **shared))
            if config["limit_val_batches"] != 0:
                callbacks.append(ModelCheckpoint(filename="best", monitor=MONITOR, mode="max", **shared))
        return callbacks

    def after_predict(self) -> None:
        """`velm predict` writes one caption a picture to predictions.jsonl in the run's folder."""
        path = Path(self.trainer.default_root_dir) / "predictions.jsonl"
        batches: Any = self.trainer.predict_loop.predictions
        rows = [row for batch in batches for row in batch]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        print(f"{len(rows)} captions written to {path}")


def _stem(config: Any) -> str:
    """The name of the run: the first config file's, else 'default'."""
    files = config.get("config") or []
    return Path(str(files[0])).stem if files else "default"


@rank_zero_only
def _set_aside(folder: Path) -> None:
    """Keep an earlier run of the same name: runs/x becomes runs/x.1, x.2, ..."""
    if not any((folder / name).exists() for name in ("config.yaml", "metrics.csv", "last.ckpt")):
        return
    number = 1
    while folder.with_name(f"{folder.name}.{number}").exists():
        number += 1
    kept = folder.with_name(f"{folder.name}.{number}")
    folder.rename(kept)
    print(f"An earlier run was in {folder}: it is in {kept} now. To go on: --ckpt_path {kept}/last.ckpt")


def main(args: ArgsType = None) -> VelmCLI:
    """Parse, build, run."""
    try:
        return _cli(VelmCLI, args)
    except SIGTERMException:
        print("\nTold to stop (SIGTERM): the step under way was finished and saved. Go on: --ckpt_path <run>/last.ckpt")
        sys.exit(TERMINATED)


def _cli(cls: type[CLI], args: ArgsType) -> CLI:
    register_strategy()
    warnings.filterwarnings("ignore", message=".*LightningCLI's args parameter is intended")  # it is what we mean
    warnings.filterwarnings("ignore", message=".*It is recommended to use `self.log")  # all ranks have the same figures
    warnings.filterwarnings("ignore", message=".*LeafSpec")  # Lightning's own use of torch
    return cls(
        VisionLanguageTask,
        VisionLanguageData,
        args=args,
        seed_everything_default=0,
        trainer_defaults={"gradient_clip_val": 1.0, "log_every_n_steps": 10, "use_distributed_sampler": False},
        save_config_callback=SaveConfigOfFit,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"prog": "velm"},
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


def build_data(options: Mapping[str, Any]) -> VisionLanguageData:
    """The data module of `parse_fit`'s `data`."""
    return VisionLanguageData(**{**options, "augment": Augmentation(**options["augment"])})


def build_task(options: Mapping[str, Any], *, vocab_size: int, pad_id: int) -> VisionLanguageTask:
    """The task of `parse_fit`'s `model`, for a tokenizer of so many ids."""
    built = {
        "optimizer": OptimizerConfig(**options["optimizer"]),
        "validation": ValidationConfig(**options["validation"]),
        "watch": WatchConfig(**options["watch"]),
        "vocab_size": vocab_size,
        "pad_id": pad_id,
    }
    return VisionLanguageTask(**{**options, **built})


def count_devices(options: Mapping[str, Any]) -> int:
    """How many devices share a step under `parse_fit`'s `trainer`; launches nothing.

    Raises:
        Exception: whatever the Trainer has against it (an accelerator that is not there, ...).
    """
    names = ("accelerator", "devices", "num_nodes")
    chosen = {name: options[name] for name in names if options.get(name) is not None}
    if isinstance(options.get("strategy"), str):
        chosen["strategy"] = options["strategy"]
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.ERROR)  # which devices there are, and which are not used
    try:
        return lightning.Trainer(**chosen, logger=False, enable_checkpointing=False).world_size
    finally:
        log.setLevel(level)
