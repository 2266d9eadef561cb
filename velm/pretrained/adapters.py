"""LoRA and DoRA by peft: low-rank updates of a part's linear layers, whose own weights stay frozen.

    W x   becomes   W x + lora_alpha / r * B A x

    name.weight  ── LoRA(...).inject(part) ──>  name.base_layer.weight, name.lora_A.default.weight, name.lora_B...
                 <──── merge_adapters(part) ───

A part of another library says by `library_parts` which of its children are the library's; the others are VELM's own and
train as before, as do those whose name contains one of `new_weights`.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from velm import _compat
from velm.errors import CheckpointError, MissingPackageError
from velm.util import did_you_mean

__all__ = ["LoRA", "adapted_layers", "merge_adapters", "remove_adapters"]

Model = TypeVar("Model", bound=nn.Module)
ALL_LINEAR = "all-linear"
DEFAULT_TARGETS = (
    ("query", "key_value"),  # VELM's own attention, whose keys and values are one matrix
    ("q_proj", "v_proj"),  # CLIP, SigLIP, BART
    ("query", "value"),  # BERT, ViT
    ("c_attn",),  # GPT-2
    ("qkv", "attn.proj"),  # timm
    ("qkv",),
    ("q_lin", "v_lin"),  # DistilBERT
    ("q", "v"),  # T5
)
"""Names of layers that are adapted by default; the first row of which a part has every name."""
NOT_CALLED = ("patches", "output_projection")
"""Children of VELM's own parts whose weights are read without a call of the layer."""


class LoRA:
    """Low-rank adaptation (Hu et al. 2021, arXiv 2106.09685); names and defaults of the options are peft's.

    Args:
        r: rank of the update.
        lora_alpha: the update is scaled by lora_alpha / r.
        lora_dropout: probability of dropping an input of the update.
        target_modules: names of layers, or ends of their dotted names; 'all-linear'; or one regular expression for
            whole dotted names. null: queries and values (in VELM's own attention queries, keys and values).
        exclude_modules: names, or a regular expression, of layers that are not adapted.
        use_dora: learn the length of each row of the updated weight apart from its direction (Liu et al. 2024, arXiv
            2402.09353).
        use_rslora: scale by lora_alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732).
        init_lora_weights: true (B is zero), gaussian (A is normal), orthogonal, or pissa and olora, which take the
            first update from the base weights and change these.
        rank_pattern: ranks of layers that differ from `r`, by name or regular expression.
        alpha_pattern: likewise of `lora_alpha`.
        modules_to_save: names of modules of the part that are trained whole, beside the adapters.

    Raises:
        ValueError: an option is out of its range.
    """

    def __init__(
        self,
        *,
        r: int = 8,
        lora_alpha: float = 8,
        lora_dropout: float = 0.0,
        target_modules: list[str] | str | None = None,
        exclude_modules: list[str] | str | None = None,
        use_dora: bool = False,
        use_rslora: bool = False,
        init_lora_weights: bool | Literal["gaussian", "orthogonal", "pissa", "olora"] = True,
        rank_pattern: dict[str, int] | None = None,
        alpha_pattern: dict[str, float] | None = None,
        modules_to_save: list[str] | None = None,
    ) -> None:
        if r < 1:
            raise ValueError(f"r is the rank of the update, at least 1; got {r}.")
        if not 0 <= lora_dropout < 1:
            raise ValueError(f"lora_dropout is a probability below 1; got {lora_dropout}.")
        self.target_modules, self.exclude_modules = target_modules, exclude_modules
        self.modules_to_save = modules_to_save or []
        self.init_lora_weights, self.use_dora = init_lora_weights, use_dora
        self.patterns: dict[str, dict[str, Any]] = {
            "rank_pattern": dict(rank_pattern or {}),
            "alpha_pattern": dict(alpha_pattern or {}),
        }
        self.options = {"r": r, "lora_alpha": lora_alpha, "lora_dropout": lora_dropout, "use_rslora": use_rslora}

    def inject(self, part: nn.Module, *, initialise: bool = True) -> list[str]:
        """Replace layers of a part by adapted ones, in place, and freeze the weights that it has.

        Args:
            part: an encoder or a decoder; weights that are VELM's own beside a library's keep their `requires_grad`.
            initialise: False: cheap initial values, for adapters that are loaded afterwards.

        Returns:
            the names of the adapted layers.

        Raises:
            MissingPackageError: peft is not installed.
            ValueError: a target matches nothing, or a layer that cannot be adapted.
        """
        peft = _import_peft()
        targets = self._targets(part)
        trained = [p for name, p in part.named_parameters() if p.requires_grad and _is_added(part, name)]
        trained += self._trained_whole(part)
        if self.use_dora:
            _require_directions(part, targets)
        config = peft.LoraConfig(
            target_modules="|".join(map(re.escape, targets)),  # a list would match ends of other names too
            use_dora=self.use_dora,
            init_lora_weights=self.init_lora_weights if initialise else True,
            **self.options,
            **self.patterns,
        )
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # how peft reads GPT-2's transposed weights
                peft.inject_adapter_in_model(config, part)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ValueError(f"peft {peft.__version__} refuses: {error}") from error
        for parameter in trained:
            parameter.requires_grad_(True)
        return targets

    def _targets(self, part: nn.Module) -> list[str]:
        modules = {name: module for name, module in part.named_modules() if name}
        refusals = {name: _refusal(part, name, module) for name, module in modules.items()}
        usable = [name for name, refusal in refusals.items() if refusal is None and not self._is_whole(name)]
        linear = [name for name in usable if not isinstance(modules[name], nn.Conv2d)]
        wanted = self.target_modules
        if wanted is None:
            rows = ([n for n in usable if _matches(row, n)] for row in DEFAULT_TARGETS if _has_all(row, usable))
            names = next(rows, [])
        elif isinstance(wanted, str) and wanted.lower() == ALL_LINEAR:
            names = linear
        else:
            names = [name for name in modules if _matches(wanted, name) and not self._is_whole(name)]
            for pattern in [wanted] if isinstance(wanted, str) else [[end] for end in wanted]:
                _require_match("target_modules", pattern, modules, usable)
        names = [name for name in names if not (self.exclude_modules and _matches(self.exclude_modules, name))]
        if not names:
            given = "the default target_modules match" if wanted is None else f"target_modules: {wanted} matches"
            without = f" beside exclude_modules: {self.exclude_modules}" if self.exclude_modules else ""
            raise ValueError(f"{given} no layer of it{without}.{_candidates(usable, bool(linear))}")
        refused = next((name for name in names if refusals[name] is not None), None)
        if refused is not None:
            raise ValueError(
                f"{refused} cannot be adapted: {refusals[refused]}. Take it out of target_modules, or add it to "
                f"exclude_modules.{_candidates(usable)}"
            )
        for option, patterns in self.patterns.items():
            for key in patterns:
                _require_match(option, rf"(.*\.)?({key})", names, names, shown=key)
        return names

    def _is_whole(self, name: str) -> bool:
        """Whether a module is, or lies in, one of `modules_to_save`."""
        return any(re.match(rf"(.*\.)?{re.escape(module)}(\..*)?$", name) for module in self.modules_to_save)

    def _trained_whole(self, part: nn.Module) -> list[nn.Parameter]:
        for module in self.modules_to_save:
            if not any(re.match(rf"(.*\.)?{re.escape(module)}$", name) for name, _ in part.named_modules()):
                children = ", ".join(name for name, _ in part.named_children())
                raise ValueError(
                    f"modules_to_save names {module!r}, which it has not. It has: {children}, and those inside."
                )
        return [p for name, p in part.named_parameters() if self._is_whole(name.rpartition(".")[0])]


def adapted_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Name and module of every adapted layer."""
    for name, layer in module.named_modules():
        if hasattr(layer, "base_layer") and hasattr(layer, "lora_A"):
            yield name, layer


@torch.no_grad()
def merge_adapters(module: Model) -> Model:
    """Add the updates to the base weights, in place and in float32 at least, and remove the adapters.

    Raises:
        CheckpointError: a merged weight is NaN or inf.
    """
    for name, layer in adapted_layers(module):
        base = layer.base_layer
        dtype = base.weight.dtype
        if dtype.itemsize < 4:
            layer.float()  # in half precision a small update would be rounded away
        try:
            layer.merge(safe_merge=True)
        except ValueError as error:
            raise CheckpointError(f"The adapter of {name} cannot be merged: its values are NaN or inf.") from error
        base.to(dtype)
    return remove_adapters(module)


def remove_adapters(module: Model) -> Model:
    """Put the base layers back in place of the adapted ones; without `merge_adapters`, the updates are lost."""
    for name, layer in list(adapted_layers(module)):
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.base_layer)
    for part in module.modules():
        if hasattr(part, "peft_config"):
            del part.peft_config
    return module


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as cause:
        raise MissingPackageError("model.adapt needs peft, which is not installed: pip install 'velm[lora]'") from cause
    return peft


def _is_added(part: nn.Module, name: str) -> bool:
    """Whether a parameter or module is VELM's own or new, in a part whose other weights are a library's."""
    library = getattr(part, "library_parts", None)
    if library is None:
        return False
    return name.partition(".")[0] not in library or any(word in name for word in getattr(part, "new_weights", ()))


def _refusal(part: nn.Module, name: str, module: nn.Module) -> str | None:
    """Why a module cannot be adapted; None: it can."""
    parent = part.get_submodule(name.rpartition(".")[0])
    embeddings = {id(child.weight) for child in part.modules() if isinstance(child, nn.Embedding)}
    used = getattr(part, "used_parameters", None)
    if isinstance(module, nn.MultiheadAttention) or isinstance(parent, nn.MultiheadAttention):
        return "torch's fused attention reads the weights of its projections without calling them"
    if isinstance(module, nn.Embedding) or id(getattr(module, "weight", None)) in embeddings:
        return "it is an embedding or tied to one; name it in modules_to_save to train it whole"
    if name in NOT_CALLED:
        return f"the weights of {name} are read without calling it"
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.dilation == (1, 1) and module.padding_mode == "zeros"
        if not plain or type(module) is not nn.Conv2d:
            return "peft merges ordinary convolutions only: of one group, without dilation, padded with zeros"
    elif not isinstance(module, nn.Linear) and type(module).__name__ != "Conv1D":  # of transformers, in GPT-2
        return f"it is a {type(module).__name__}, and peft adapts linear layers and 2-d convolutions"
    if _is_added(part, name):
        return "its weights are new and trained whole"
    return None if used is None or f"{name}.weight" in used else "the features do not depend on it"


def _require_directions(part: nn.Module, targets: Sequence[str]) -> None:
    """Raise if a weight has a row of zeros, of which DoRA would make NaN: it divides by the row's length."""
    for name in targets:
        layer: Any = part.get_submodule(name)
        weight: Tensor = layer.weight.detach()
        if weight.is_meta or _compat.is_fake(weight):
            continue
        rows = weight.T if type(layer).__name__ == "Conv1D" else weight.flatten(1)
        zeros = int((rows.abs().amax(dim=1) == 0).sum())
        if zeros:
            raise ValueError(
                f"DoRA cannot adapt {name}: {zeros} of its {len(rows)} rows are zero and have no direction. Add it to "
                f"exclude_modules, or take name: lora."
            )


def _matches(patterns: Sequence[str] | str, name: str) -> bool:
    """peft's rule: a text is a regular expression for the whole name, a list holds names or ends of names."""
    if isinstance(patterns, str):
        return re.fullmatch(patterns, name) is not None
    return any(name == end or name.endswith(f".{end}") for end in patterns)


def _require_match(
    option: str, pattern: list[str] | str, names: Iterable[str], usable: Sequence[str], shown: str | None = None
) -> None:
    """Raise unless a name matches the pattern of an option."""
    if not any(_matches(pattern, name) for name in names):
        shown = (pattern if isinstance(pattern, str) else pattern[0]) if shown is None else shown
        guess = did_you_mean(shown, {name.rpartition(".")[2] for name in usable})
        raise ValueError(f"{option} names {shown!r}, which matches no layer.{guess}{_candidates(usable)}")


def _has_all(row: Sequence[str], names: Sequence[str]) -> bool:
    return all(any(_matches([end], name) for name in names) for end in row)


def _candidates(names: Sequence[str], linear: bool = True) -> str:
    """' Layers that can be adapted: query, ...': the names inside blocks, once each, and whether some are linear."""
    ends = list(dict.fromkeys(re.sub(r"^.*?[._]\d+\.", "", name) for name in names))
    if not ends:
        return " It has no layer that can be adapted."
    shown = ", ".join(ends[:12]) + (", ..." if len(ends) > 12 else "")
    return f" Layers that can be adapted: {shown}{f', or {ALL_LINEAR}' if linear else ''}."
