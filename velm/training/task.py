"""The Lightning module: a model, its losses with their weights, an optimizer."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from typing import Any

import lightning
import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from velm.checkpoint import logits_of, pack
from velm.errors import ConfigError
from velm.losses.weighted import WeightedLosses, build_losses
from velm.metrics.tokenization import tokenize_by
from velm.model import build_model
from velm.model.model import Projection
from velm.outputs import Batch
from velm.registry.scalars import Value
from velm.training.adapters import LiveAdapters, require_trained, set_modes
from velm.training.balancing.gradients import GradientProjection
from velm.training.balancing.policies import build_policy
from velm.training.blind import is_blind_measured
from velm.training.config import OptimizerConfig, ValidationConfig, WatchConfig
from velm.training.distributed import fsdp as sharding
from velm.training.distributed.gather import Gather
from velm.training.evaluation_steps import EvaluationSteps
from velm.training.fine_tuning.patch_dropout_tail import PatchDropoutTail, require_patch_dropout
from velm.training.fine_tuning.train_last import eval_frozen_layers, freeze_all_but_last
from velm.training.hard_negatives import announce_hard_negatives
from velm.training.matching_data import require_matching_data
from velm.training.memory.compile import compile_tower
from velm.training.memory.feature_cache import prepare_features
from velm.training.memory.micro_batch import micro_batch_losses, warn_about_negatives, warn_about_norms
from velm.training.memory.recompute import checkpoint_blocks
from velm.training.memory.teacher import announce_teacher, prepare_teacher
from velm.training.optim import build_optimizer, build_schedule, warm_ema
from velm.training.pretrained import start_from
from velm.training.recovery.changes import ResumeOptions, require_same_run
from velm.training.recovery.nonfinite import Averaging
from velm.training.recovery.resume import seed_step
from velm.training.self_critical import SelfCritic, build_critic, require_self_critical

TOWERS = ("image_encoder", "text_encoder", "decoder")


class VisionLanguageTask(EvaluationSteps):
    """Trains a model on the losses of its config: alignment, captioning, or both.

    Args:
        image_encoder: part config of an image encoder, e.g. {name: cnn, dim: 128}.
        text_encoder: part config of a text encoder.
        decoder: part config of a decoder; none for alignment only.
        losses: {name: {weight: 1.0, options}}; their weighted sum is minimised.
        balance: part config of the balancing policy: fixed (none), uncertainty or projection.
        embed_dim: width E of the joint space.
        image_projection, text_projection: see `velm.model.model.build_projection`.
        embed_dropout: dropout probability on an encoder's pooled vector before its projection.
        memory: what the decoder attends over: [image], [text] or [image, text].
        optimizer: learning rate, decay, warm-up.
        micro_batch_size: samples of a device's batch whose activations exist at the same time; the gradient is that of
            the whole batch (see `velm.training.memory.micro_batch`). None: all of them, which is faster if they fit.
        checkpoint_blocks: keep only the inputs of the towers' repeated blocks and recompute the blocks in the backward
            pass.
        compile: compile the towers by torch.compile, with one graph for texts of any length.
        freeze: parts that are not trained: image_encoder, text_encoder, decoder.
        train_last: of a part, {image_encoder: 2}, only so many of its last blocks are trained, and what follows them
            (see `velm.training.fine_tuning.train_last`).
        patch_dropout_tail: fraction of all steps, the last ones, without the `patch_dropout` of the image encoder.
        adapt: adapters by part, {image_encoder: {name: lora, r: 8}}; the part's own weights are frozen (see
            `velm.pretrained.adapters`).
        ema: decay per step of an exponential moving average of the weights (smaller at first, see `warm_ema`), which
            is validated and saved in place of the weights; None: no average.
        validation: how much a validation measures.
        watch: how often the losses' gradients are compared, and the thresholds of the alarms.
        pretrained: a checkpoint, `runs/a/best.ckpt`, from whose weights a new run starts, as far as they fit (see
            `velm.training.pretrained`); a resumed run ignores it.
        plugins: modules or .py files whose decorators register parts.
        vocab_size: V; set by the data module.
        pad_id: id of the padding token; set by the data module.

    Raises:
        ConfigError: there is no loss, or parts, losses and options do not fit together.
    """

    def __init__(
        self,
        *,
        image_encoder: dict[str, Value] | str | None = None,
        text_encoder: dict[str, Value] | str | None = None,
        decoder: dict[str, Value] | str | None = None,
        losses: dict[str, dict[str, Value] | None] | None = None,
        balance: dict[str, Value] | str = "fixed",
        embed_dim: int = 256,
        image_projection: Projection = "linear",
        text_projection: Projection = "linear",
        embed_dropout: float = 0.0,
        memory: list[str] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - never mutated
        micro_batch_size: PositiveInt | None = None,
        checkpoint_blocks: bool = False,
        compile: bool = False,
        freeze: list[str] | None = None,
        train_last: dict[str, int] | None = None,
        patch_dropout_tail: float = 0.0,
        adapt: dict[str, dict[str, Value] | str] | None = None,
        ema: float | None = None,
        validation: ValidationConfig = ValidationConfig(),  # noqa: B008 - never mutated
        watch: WatchConfig = WatchConfig(),  # noqa: B008 - never mutated
        pretrained: str | None = None,
        plugins: list[str] | None = None,
        vocab_size: int | None = None,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        losses = {name: dict(options or {}) for name, options in (losses or {}).items()}
        if not losses:
            raise ConfigError("`losses:` lists none; e.g. {contrastive: {}, captioning: {weight: 2.0}}.")
        self.model_config: dict[str, Any] = {
            "image_encoder": image_encoder, "text_encoder": text_encoder, "decoder": decoder, "losses": losses,
            "embed_dim": embed_dim, "embed_dropout": embed_dropout, "image_projection": image_projection,
            "text_projection": text_projection, "memory": list(memory or ["image"]),
            "plugins": list(plugins or []), "vocab_size": vocab_size, "pad_id": pad_id,
            **({"adapt": adapt} if adapt else {}),
        }  # fmt: skip
        require_trained(adapt, freeze=freeze or (), train_last=train_last or ())
        tokenize_by(validation.tokenize)  # an unknown name is an error now, not at the first validation
        self.optimizer_config, self.validation_config, self.watch_config = optimizer, validation, watch
        self.model = build_model(self.model_config)
        is_blind_measured(self.model, validation.blind)  # an impossible option is an error now
        self.losses = build_losses(losses, embed_dim=embed_dim)
        self.balance = build_policy(balance, self.losses.weights)
        self.micro_batch_size, self.ema, self.pretrained = micro_batch_size, ema, pretrained
        self.training_options = {
            "optimizer": asdict(optimizer), "balance": balance, "ema": ema, "freeze": freeze, "train_last": train_last,
            "patch_dropout_tail": patch_dropout_tail or None,
        }  # fmt: skip
        self.frozen, self.train_last = tuple(freeze or ()), dict(train_last or {})
        self.compiled, self.sharded = compile, False
        self.patch_dropout_tail = patch_dropout_tail
        self.weighted_losses: dict[str, Tensor] = {}
        self.found_lr: float | None = None
        self.critic: SelfCritic | None = None
        require_self_critical(self.losses, self.model)
        require_patch_dropout(self.model, patch_dropout_tail)
        self._prepare_towers(checkpoint_blocks)

    def _prepare_towers(self, checkpoint: bool) -> None:
        """Freeze, checkpoint and compile the towers, as the options say."""
        towers = {name: tower for name in TOWERS if (tower := getattr(self.model, name)) is not None}
        for name in self.frozen:
            if name not in towers:
                raise ConfigError(f"freeze names {name!r}; the model's parts are {', '.join(towers)}.")
            towers[name].requires_grad_(False)
        freeze_all_but_last(towers, self.train_last, self.frozen)
        self._eval_frozen()  # Lightning trains modules in the mode it finds them in
        if checkpoint:
            checkpoint_blocks(towers)
        if self.compiled:
            for tower in towers.values():
                compile_tower(tower)

    @property
    def lr(self) -> float:
        """The peak learning rate, by the name under which Lightning's LearningRateFinder sets it."""
        return self.optimizer_config.lr

    @lr.setter
    def lr(self, value: float) -> None:
        self.found_lr = value
        self.optimizer_config = replace(self.optimizer_config, lr=value)

    @property
    def parts(self) -> dict[str, torch.nn.Module]:
        """The parts by the names of `optimizer.lr_scale`: the model's children, `losses` and, if learned, `balance`."""
        learned = any(True for _ in self.balance.parameters())
        named = {**dict(self.model.named_children()), "losses": self.losses}
        return {**named, "balance": self.balance} if learned else named

    def train(self, mode: bool = True) -> VisionLanguageTask:
        """Set the mode of all modules except frozen parts and layers, which stay in eval mode."""
        super().train(mode)
        self._eval_frozen()
        return self

    def _eval_frozen(self) -> None:
        for name in self.frozen:
            getattr(self.model, name).eval()
        for name, count in self.train_last.items():
            eval_frozen_layers(getattr(self.model, name), count)
        set_modes(self.model_config.get("adapt"), self.model)

    def configure_model(self) -> None:
        """Shard the weights if the strategy is FSDP2."""
        if self.device_mesh is None or self.sharded:
            return
        if self.ema is not None:
            raise ConfigError("model.ema averages complete weights, and fsdp2 shards them: set it to null, or use ddp.")
        sharding.shard(self.model, self.device_mesh["data_parallel"])
        self.sharded = True

    def setup(self, stage: str) -> None:
        """Check that data and model fit together."""
        if stage == "predict" and self.model.decoder is None:
            raise ConfigError(
                "`velm predict` captions the test split, and this model has no decoder. For recall: velm evaluate."
            )
        data = getattr(self.trainer, "datamodule", None)
        if self.pretrained is not None and stage == "fit":
            start_from(self.pretrained, self)
        if data is not None:
            require_matching_data(self.model, self.needs, data)
            announce_teacher(self.losses, data)
            if stage == "fit":
                announce_hard_negatives(self.losses, data)

    def on_fit_start(self) -> None:
        """Runs after a checkpoint's weights are loaded, so features are cached with the weights that will be used."""
        prepare_features(self.trainer, self.model, self.model_config["image_encoder"], self.needs)
        prepare_teacher(self.trainer, self.losses, self.model_config["embed_dim"])
        warn_about_negatives(self.losses, self.trainer.accumulate_grad_batches)
        warn_about_norms(self.model, self.micro_batch_size)
        self.critic = build_critic(self)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        seed_step(self.current_epoch, batch_index, self.global_rank)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        losses = self.losses.in_steps(self.trainer.world_size)
        parts = (
            self.compute_losses(batch, losses)[1] if self.critic is None else self.critic.losses(batch, self, losses)
        )
        self.weighted_losses = {name: self.losses.weights[name] * part for name, part in parts.items()}
        total = self.balance(self.weighted_losses)
        values = {f"train/{name}": value.detach() for name, value in {"loss": total, **parts}.items()}
        self.log_dict(values, batch_size=len(batch))
        for loss in self.losses.values():
            scalars = {f"train/{name}": value for name, value in loss.logged().items()}  # type: ignore[operator]
            self.log_dict(scalars, batch_size=len(batch))
        return total

    def compute_losses(self, batch: Batch, some: WeightedLosses | None = None) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted sum of `some` losses or all over all ranks, float (), and each unweighted, {name: float ()}."""
        losses, gather = self.losses if some is None else some, Gather(self, batch)
        if self.micro_batch_size is not None and max(gather.rows) > self.micro_batch_size:
            return micro_batch_losses(self.model, losses, batch, self.micro_batch_size, gather)
        share, fraction = losses.share, gather.fraction(batch.samples)
        output, batch = gather.all(self.model(batch, losses.requires), batch, share=share)
        return losses(output, batch, gather.group if share else None, fraction)

    def on_after_backward(self) -> None:
        self.weighted_losses = {}  # frees the graph
        if self.sharded:
            sharding.average_gradients(torch.nn.ModuleList([self.losses, self.balance]))

    def configure_callbacks(self) -> list[lightning.Callback]:
        averaging = [] if self.ema is None else [Averaging(multi_avg_fn=warm_ema(self.ema))]
        adapters = [LiveAdapters()] if "adapt" in self.model_config else []
        tail = [PatchDropoutTail(self.patch_dropout_tail)] if self.patch_dropout_tail else []
        balance = [GradientProjection()] if self.balance.projects else []
        return [*balance, *averaging, *adapters, *tail, ResumeOptions()]

    def configure_optimizers(self) -> Any:
        optimizer = build_optimizer(self.parts, self.optimizer_config, fused=self.trainer.precision != "16-mixed")
        total = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(optimizer, self.optimizer_config, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Clip by the joint norm of all gradients.

        Lightning refuses to clip for a fused optimizer in mixed precision; with bf16 there is no scaler to unscale.
        """
        norm = gradient_clip_algorithm in (None, "norm")
        if self.sharded and gradient_clip_val and norm:
            sharding.clip_sharded_gradients(list(self.parameters()), gradient_clip_val)
        elif self.trainer.precision == "bf16-mixed" and gradient_clip_val and norm:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another vocabulary or another model."""
        require_same_run(checkpoint, self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what `velm.load` needs to the checkpoint; see `velm.checkpoint`."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        checkpoint["velm"] = pack(
            model=self.model,
            config=self.model_config,
            tokenizer=data.tokenizer,
            tokenizer_name=data.tokenizer_name,
            transform=data.eval_transform.config(),
            max_length=data.max_length,
            data={**data.config(), "folder": os.getcwd()},  # where its relative paths start
            target=data.has_target,
            plugins=list(dict.fromkeys([*self.model_config["plugins"], *data.plugins])),
            tokenization=self.validation_config.tokenize,
            **logits_of(self.losses, checkpoint["state_dict"]),  # with `ema`, of the average
        )
