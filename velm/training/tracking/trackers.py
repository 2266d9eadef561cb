"""What VELM sends to a logger beside metrics: the config, the caption panel, alarms and, if asked for, checkpoints.

One class for each kind of logger that can show them. None of W&B and MLflow is imported here: the logger has done it.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from torch import Tensor

from velm import _compat
from velm.util import describe_error, flat_options

__all__ = ["Panel", "PanelRow", "Tracker", "tracker_of"]

MLFLOW_MISTAKES = ("INVALID_PARAMETER_VALUE", "PERMISSION_DENIED", "RESOURCE_DOES_NOT_EXIST", "UNAUTHENTICATED")
"""Codes of MLflow's answers that are no outage."""


@dataclass(frozen=True)
class PanelRow:
    """A caption of a validation.

    Attributes:
        image_id: of the record.
        caption: the generated caption.
        reference: a correct one, or ''.
        image: uint8 (3, H, W), or None.
    """

    image_id: str
    caption: str
    reference: str
    image: Tensor | None

    def pixels(self) -> Any:
        """uint8 (H, W, 3)."""
        return None if self.image is None else self.image.permute(1, 2, 0).numpy()


Panel = Sequence[PanelRow]


class Tracker:
    """Shows in a logger what VELM knows; this one, of loggers that VELM does not know, shows the config only.

    Args:
        logger: the logger; its experiment is open when a method is called.

    Attributes:
        names_open_runs: the logger's `name` or `version` needs an open experiment.
    """

    names_open_runs = False

    def __init__(self, logger: Any) -> None:
        self.logger = logger
        self.checkpoints: dict[str, str] = {}

    def metric_names(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics under names that the logger accepts."""
        return dict(metrics)

    def log_config(self, config: Mapping[str, Any], text: str) -> None:
        """Show the config of the run; `text` is the same as YAML."""
        self.logger.log_hyperparams(dict(config))

    def log_panel(self, panel: Panel, step: int) -> None:
        """Show captions of a validation with their images."""

    def log_alarm(self, name: str, message: str, step: int, *, active: bool) -> None:
        """Show that an alarm has started, or that it is over."""

    def place(self) -> str | None:
        """The server and the project of the run, as far as the logger's options say; None: runs have no identity."""
        return None

    def run_id(self) -> str | None:
        """The identity of the open run; None if it is not open or has none."""
        return None

    def continue_run(self, run_id: str) -> None:
        """Go on with an earlier run, unless the options name one; before the experiment is opened."""
        if self.place() is not None and _compat.logger_run(self.logger) is None:
            _compat.set_logger_run(self.logger, run_id)

    def go_on(self) -> None:
        """Called when a run is open, new or continued."""

    def is_mistake(self, error: Exception) -> bool:
        """Whether the experiment cannot be opened because of an option or a missing login, and not of an outage."""
        return isinstance(error, TypeError | ValueError)

    def go_offline(self, error: Exception) -> bool:
        """Whether the logger now records to a local folder, since the experiment could not be opened at the server."""
        return False

    def after_save(self, alias: str, path: str) -> None:
        """A checkpoint was saved: hand it over if the logger's `log_model` asks for it."""
        self.checkpoints[alias] = path
        if _compat.log_model_of(self.logger) == "all":
            self._upload(alias)

    def finish(self, status: str) -> None:
        """The end of the run; `status` is 'success' or 'failed'."""
        if _compat.log_model_of(self.logger) is True and status == "success":
            for alias in sorted(self.checkpoints, reverse=True):  # last, then best
                self._upload(alias)

    def _upload(self, alias: str) -> None:
        if Path(self.checkpoints[alias]).is_file():
            self.log_checkpoint(self.checkpoints[alias], alias)

    def log_checkpoint(self, path: str, alias: str) -> None:
        """Hand a checkpoint over as an artifact."""


class TensorBoardTracker(Tracker):
    """Config, panel and alarms as texts and images."""

    def log_config(self, config: Mapping[str, Any], text: str) -> None:
        self.logger.experiment.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()), 0)

    def log_panel(self, panel: Panel, step: int) -> None:
        for row in panel:
            if row.image is not None:
                self.logger.experiment.add_image(f"panel/{row.image_id}", row.image, step)
        text = "  \n".join(f"**{row.image_id}** {row.caption}" for row in panel)
        self.logger.experiment.add_text("panel", text, step)

    def log_alarm(self, name: str, message: str, step: int, *, active: bool) -> None:
        self.logger.experiment.add_text(f"alarms/{name}", message, step)

    def place(self) -> str | None:
        return _compat.tensorboard_folder(self.logger)

    def run_id(self) -> str | None:
        version = self.logger.version
        return version if isinstance(version, str) else f"version_{version}"


class WandbTracker(Tracker):
    """The panel as a media panel with captions, alarms as curves of 0 and 1 and as alerts of the run."""

    names_open_runs = True

    def log_panel(self, panel: Panel, step: int) -> None:
        if any(row.image is None for row in panel):
            rows = [[row.image_id, row.caption, row.reference] for row in panel]
            self.logger.log_text("panel", columns=["image_id", "caption", "reference"], data=rows, step=step)
        else:
            captions = [f"{row.caption}\n({row.image_id}: {row.reference})" for row in panel]
            self.logger.log_image("panel", [row.pixels() for row in panel], step=step, caption=captions)

    def log_alarm(self, name: str, message: str, step: int, *, active: bool) -> None:
        self.logger.log_metrics({f"alarms/{name}": float(active)}, step)
        self.logger.experiment.alert(title=f"{name}: {'alarm' if active else 'well again'}", text=message)

    def place(self) -> str | None:
        options = _compat.wandb_options(self.logger)
        return f"{options.get('entity') or ''}/{options.get('project') or ''}"

    def run_id(self) -> str | None:
        return str(self.logger.experiment.id)

    def is_mistake(self, error: Exception) -> bool:
        from wandb.errors import AuthenticationError, UsageError

        return super().is_mistake(error) or isinstance(error, AuthenticationError | UsageError)

    def go_offline(self, error: Exception) -> bool:
        options = _compat.wandb_options(self.logger)
        if options.get("mode") == "offline":
            return False
        options["mode"] = "offline"
        warnings.warn(
            f"W&B cannot be reached ({describe_error(error)}): the run is recorded in a local folder. Send it later: "
            f"wandb sync",
            stacklevel=2,
        )
        return True

    def finish(self, status: str) -> None:
        """Without it a second run of this process would go on with the first one's."""
        super().finish(status)
        self.logger.experiment.finish(exit_code=0 if status == "success" else 1)

    def log_checkpoint(self, path: str, alias: str) -> None:
        import wandb

        run = self.logger.experiment
        artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata={"original_filename": Path(path).name})
        artifact.add_file(path, name="model.ckpt", policy=self.logger.add_file_policy)
        run.log_artifact(artifact, aliases=["latest", alias])


class MlflowTracker(Tracker):
    """The panel as a page for each validation, alarms as curves of 0 and 1 and as tags of the run."""

    names_open_runs = True

    def metric_names(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """'recall@1' as 'recall_at_1': MLflow has no '@' in names."""
        return {name.replace("@", "_at_"): value for name, value in metrics.items()}

    def log_config(self, config: Mapping[str, Any], text: str) -> None:
        """As parameters and, complete, as config.yaml; a parameter that a resumed run changes keeps its first value."""
        client, run_id = self.logger.experiment, self.logger.run_id
        client.log_text(run_id, text, "config.yaml")
        known = client.get_run(run_id).data.params
        options = {re.sub(r"[^A-Za-z0-9_. /-]", "_", name): value for name, value in flat_options(config)}  # MLflow's
        self.logger.log_hyperparams({name: value for name, value in options.items() if name not in known})

    def log_panel(self, panel: Panel, step: int) -> None:
        self.logger.experiment.log_text(self.logger.run_id, _html(panel), f"panel/step_{step:07d}.html")

    def log_alarm(self, name: str, message: str, step: int, *, active: bool) -> None:
        self.logger.log_metrics({f"alarms/{name}": float(active)}, step)
        self.logger.experiment.set_tag(self.logger.run_id, f"alarms/{name}", f"step {step}: {message}"[:5000])

    def place(self) -> str | None:
        return _compat.mlflow_uri(self.logger)

    def run_id(self) -> str | None:
        return str(self.logger.run_id)

    def is_mistake(self, error: Exception) -> bool:
        return super().is_mistake(error) or getattr(error, "error_code", None) in MLFLOW_MISTAKES

    def go_on(self) -> None:
        self.logger.experiment.update_run(self.logger.run_id, status="RUNNING")

    def log_checkpoint(self, path: str, alias: str) -> None:
        self.logger.experiment.log_artifact(self.logger.run_id, path, alias)


KINDS: dict[type[Logger], type[Tracker]] = {
    TensorBoardLogger: TensorBoardTracker,
    WandbLogger: WandbTracker,
    MLFlowLogger: MlflowTracker,
}


def tracker_of(logger: Any) -> Tracker:
    """The tracker of a logger's kind."""
    return next((kind for cls, kind in KINDS.items() if isinstance(logger, cls)), Tracker)(logger)


def _html(panel: Panel) -> str:
    """A page of images with their captions and references; nothing outside it is loaded."""
    cells = []
    for row in panel:
        image = ""
        if row.image is not None:
            jpeg = io.BytesIO()
            Image.fromarray(row.pixels()).save(jpeg, "JPEG", quality=85)
            image = f'<img src="data:image/jpeg;base64,{base64.b64encode(jpeg.getvalue()).decode()}">'
        texts = (
            f"<b>{escape(row.caption)}</b><br><i>{escape(row.reference)}</i><br><small>{escape(row.image_id)}</small>"
        )
        cells.append(f"<figure>{image}<figcaption>{texts}</figcaption></figure>")
    style = "body{font:14px system-ui;color-scheme:light dark}figure{display:inline-block;width:140px;margin:8px}"
    return f'<!doctype html><meta charset="utf-8"><style>{style}</style>{"".join(cells)}'
