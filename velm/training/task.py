"""The Lightning module: a model, its losses with their weights, an optimizer."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from velm.checkpoint import logit_scale_of, pack
from velm.errors import ConfigError
from velm.losses.weighted import build_losses
from velm.model import build_model
from velm.outputs import Batch
from velm.pipeline import Pipeline
from velm.training.balancing.policies import build_policy
from velm.training.balancing.projection import GradientProjection
from velm.training.balancing.watch import WatchConfig
from velm.training.distributed import fsdp as sharding
from velm.training.distributed.gather import gather_global
from velm.training.memory import blocks
from velm.training.memory.compile import compile_tower
from velm.training.memory.feature_cache import prepare_features, require_frozen
from velm.training.memory.micro_batch import losses_in_pieces, warn_of_pieces
from velm.training.optim import OptimizerConfig, build_optimizer, build_schedule, warm_ema
from velm.training.recovery.nonfinite import Averaging
from velm.training.recovery.resume import seed_step
from velm.training.validation import SplitScores, ValidationConfig

PARTS = ("image_encoder", "text_encoder", "decoder")


class VisionLanguageTask(lightning.LightningModule):
    """Trains what the losses name: alignment, captioning, or both at once.

    Args:
        image_encoder: spec of an image encoder, e.g. {name: cnn, dim: 128}.
        text_encoder: spec of a text encoder.
        decoder: spec of a decoder; left out for alignment only.
        losses: {name: {weight: 1.0, options}}; their weighted sum is minimised.
        balance: spec of what else weighs them: fixed (nothing), uncertainty or projection.
        embed_dim: width of the joint space.
        embed_dropout: probability of zeroing a number of an encoder's pooled vector on its way there.
        memory: what the decoder attends over: [image], [text] or [image, text].
        optimizer: learning rate, decay, warm-up.
        micro_batch_size: samples of a device's batch whose activations exist at the same time; the gradient is that of
            the whole batch (see `velm.training.memory.micro_batch`). None: all of them, which is faster where they fit.
        checkpoint_blocks: keep only what goes into the towers' repeated blocks, and compute them again on the way back.
        compile: hand the towers to torch.compile; sentences of any length are one graph.
        freeze: parts that are not trained: image_encoder, text_encoder, decoder.
        ema: decay a step of an exponential moving average of the weights (smaller at first, see `warm_ema`), which
            is then what is validated and saved; None for none.
        validation: what is measured at every validation.
        watch: how often the losses' gradients are looked at, and what raises an alarm.
        plugins: modules or .py files whose decorators register parts.
        vocab_size: V; the data module hands it over.
        pad_id: the padding token; the data module hands it over.
    """

    def __init__(
        self,
        *,
        image_encoder: dict[str, Any] | str | None = None,
        text_encoder: dict[str, Any] | str | None = None,
        decoder: dict[str, Any] | str | None = None,
        losses: dict[str, dict[str, Any] | None] | None = None,
        balance: dict[str, Any] | str = "fixed",
        embed_dim: int = 256,
        embed_dropout: float = 0.0,
        memory: list[str] | None = None,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 - never mutated
        micro_batch_size: PositiveInt | None = None,
        checkpoint_blocks: bool = False,
        compile: bool = False,
        freeze: list[str] | None = None,
        ema: float | None = None,
        validation: ValidationConfig = ValidationConfig(),  # noqa: B008 - never mutated
        watch: WatchConfig = WatchConfig(),  # noqa: B008 - never mutated
        plugins: list[str] | None = None,
        vocab_size: int | None = None,
        pad_id: int = 0,
    ) -> None:
        super().__init__()
        weighted = {name: dict(options or {}) for name, options in (losses or {}).items()}
        if not weighted:
            raise ConfigError("`losses:` lists none; e.g. {contrastive: {}, captioning: {weight: 2.0}}.")
        self.spec: dict[str, Any] = {
            "image_encoder": image_encoder,
            "text_encoder": text_encoder,
            "decoder": decoder,
            "losses": weighted,
            "embed_dim": embed_dim,
            "embed_dropout": embed_dropout,
            "memory": list(memory or ["image"]),
            "plugins": list(plugins or []),
            "vocab_size": vocab_size,
            "pad_id": pad_id,
        }
        self.optimizer_config = optimizer
        self.validation_config, self.watch_config = validation, watch
        self.model = build_model(self.spec)
        self.losses = build_losses(weighted)
        self.balance = build_policy(balance, self.losses.weights)
        self.weighted_losses: dict[str, Tensor] = {}
        self.micro_batch_size = micro_batch_size
        self.needs = self.losses.requires
        self.frozen = tuple(freeze or ())
        self._freeze()
        self.sharded = False
        self.compiled = compile
        towers = {name: part for name in PARTS if (part := getattr(self.model, name)) is not None}
        if checkpoint_blocks:
            blocks.checkpoint_blocks(towers)
        if compile:
            for tower in towers.values():
                compile_tower(tower)
        self.ema = ema
        self.scores: dict[str, SplitScores] = {}

    def _freeze(self) -> None:
        for part in self.frozen:
            module = getattr(self.model, part, None) if part in PARTS else None
            if module is None:
                there = [name for name in PARTS if getattr(self.model, name) is not None]
                raise ConfigError(f"freeze names {part!r}; the model's parts are {', '.join(there)}.")
            module.requires_grad_(False).eval()  # Lightning trains modules in the mode it finds them in

    def train(self, mode: bool = True) -> VisionLanguageTask:
        """As ever, but frozen parts stay in eval mode: their dropout and batch statistics are off."""
        super().train(mode)
        for part in self.frozen:
            getattr(self.model, part).eval()
        return self

    def configure_model(self) -> None:
        """Cut the weights into shards, where the strategy is FSDP2."""
        if self.device_mesh is None or self.sharded:
            return
        if self.ema is not None:
            raise ConfigError("model.ema averages whole weights, and fsdp2 shards them: set it to null, or use ddp.")
        sharding.shard(self.model, self.device_mesh["data_parallel"])
        self.sharded = True

    def setup(self, stage: str) -> None:
        """Hold data and model against each other before anything is trained."""
        if stage == "predict" and self.model.decoder is None:
            raise ConfigError(
                "`velm predict` captions the test split, and this model has no decoder. For recall: velm evaluate."
            )
        data = getattr(self.trainer, "datamodule", None)
        if data is not None:
            self.check_data(data)

    def check_data(self, data: Any) -> None:
        """See that the data module's sentences are what the model reads and writes.

        Raises:
            ConfigError: the text is in the memory and there is nothing else to write, the decoder is too short, or
                `cache_features` is set and the image encoder is not frozen.
        """
        if getattr(data, "cache_features", False):
            require_frozen(self.model.image_encoder)
        if "decoder" in self.needs and "text" in self.model.memory_sources and not data.has_target:
            raise ConfigError(
                "The decoder attends over the text (memory: [..., text]), so it cannot be asked to write that same "
                "text: name the column of the sentence to write, e.g. `data.dataset.target_column: de`, "
                "or leave text out of `memory:`."
            )
        limit = getattr(self.model.decoder, "max_length", None)
        if limit is not None and data.max_length > limit:
            raise ConfigError(
                f"data.max_length is {data.max_length} tokens, but the decoder holds {limit}: "
                f"lower data.max_length or raise model.decoder.max_length."
            )

    def on_fit_start(self) -> None:
        """The weights are as they will be used: a checkpoint's, if there is one."""
        prepare_features(self)
        warn_of_pieces(self, self.trainer.accumulate_grad_batches)

    def on_train_batch_start(self, batch: Batch, batch_index: int) -> None:
        seed_step(self.current_epoch, batch_index, self.global_rank)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        _, parts = self._losses(batch)
        self.weighted_losses = {name: self.losses.weights[name] * part for name, part in parts.items()}
        total = self.balance(self.weighted_losses)
        values = {f"train/{name}": value.detach() for name, value in {"loss": total, **parts}.items()}
        self.log_dict(values, prog_bar=True, batch_size=len(batch))
        for loss in self.losses.values():
            scalars = {f"train/{name}": value for name, value in loss.logged().items()}  # type: ignore[operator]
            self.log_dict(scalars, batch_size=len(batch))
        return total

    def _losses(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if self.micro_batch_size is not None and len(batch) > self.micro_batch_size:
            return losses_in_pieces(self, batch, self.micro_batch_size)
        output, batch = gather_global(self, self.model(batch, self.needs), batch, share=self.losses.share)
        return self.losses(output, batch)

    def on_after_backward(self) -> None:
        self.weighted_losses = {}  # lets go of the graph
        if self.sharded:
            sharding.average_gradients(torch.nn.ModuleList([self.losses, self.balance]))

    def on_validation_epoch_start(self) -> None:
        self._begin("val")

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        if len(batch):  # else none of its images could be read
            self.scores["val"].update(batch)

    def on_validation_epoch_end(self) -> None:
        self._end("val")

    def on_test_epoch_start(self) -> None:
        self._begin("test")

    def test_step(self, batch: Batch, batch_index: int) -> None:
        if len(batch):
            self.scores["test"].update(batch)

    def on_test_epoch_end(self) -> None:
        self._end("test")

    def predict_step(self, batch: Batch, batch_index: int) -> list[dict[str, str]]:
        """Captions of the batch's images: {'image_id': ..., 'caption': ...}."""
        return self._begin("test").captions_of(batch) if len(batch) else []

    def _begin(self, split: str) -> SplitScores:
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        pipeline = Pipeline(
            model=self.model,
            tokenizer=data.tokenizer,
            transform=data.eval_transform,
            max_length=data.max_length,
            device=self.device,
        )
        if self.sharded:
            sharding.put_together(self.model, together=True)
        ranks = {"rank": self.global_rank, "world_size": self.trainer.world_size}
        self.scores[split] = SplitScores(pipeline, data.records(split), self.losses, self.validation_config, **ranks)
        return self.scores[split]

    def _end(self, split: str) -> None:
        figures = self.scores[split].compute()
        if self.sharded:
            sharding.put_together(self.model, together=False)
        if self.trainer.sanity_checking:
            return
        self.log(f"{split}/score", float(figures.pop("score")), prog_bar=True)
        self.log_dict({f"{split}/{name}": float(value) for name, value in figures.items()})

    def configure_callbacks(self) -> list[lightning.Callback]:
        projection = [GradientProjection()] if self.balance.projects else []
        return projection + ([] if self.ema is None else [Averaging(multi_avg_fn=warm_ema(self.ema))])

    def configure_optimizers(self) -> Any:
        parts = dict(self.model.named_children())
        parts["losses"] = self.losses
        if any(True for _ in self.balance.parameters()):
            parts["balance"] = self.balance
        optimizer = build_optimizer(parts, self.optimizer_config, fused=self.trainer.precision != "16-mixed")
        total = int(self.trainer.estimated_stepping_batches)
        schedule = build_schedule(optimizer, self.optimizer_config, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning refuses to clip for a fused optimizer under any mixed precision; bf16 has no scaler in the way."""
        norm = gradient_clip_algorithm in (None, "norm")
        if self.sharded and gradient_clip_val and norm:
            sharding.clip_sharded(list(self.parameters()), gradient_clip_val)
            return
        if self.trainer.precision == "bf16-mixed" and gradient_clip_val and norm:
            torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the checkpoint self-contained; see `velm.checkpoint`."""
        data = getattr(self.trainer, "datamodule", None)
        if data is None:
            return
        checkpoint["velm"] = pack(
            model=self.model,
            config=self.spec,
            tokenizer=data.tokenizer,
            tokenizer_name=data.tokenizer_name,
            transform=data.eval_transform.config(),
            max_length=data.max_length,
            data=data.config(),
            target=data.has_target,
            plugins=list(dict.fromkeys([*self.spec["plugins"], *data.plugins])),
            logit_scale=logit_scale_of(self.losses, checkpoint["state_dict"]),  # with `ema`, of the average
        )
