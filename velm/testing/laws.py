"""Laws of every module: finite, deterministic, differentiable, independent of the batch, restorable, dtype-preserving.

A *probe* runs a module on a fixed small batch: `probe(module, rows, dtype)` -> outputs by name, where `rows`
selects samples and `dtype` is that of the floating-point inputs.
"""

from __future__ import annotations

import copy
import inspect
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from velm.testing.report import Report

Outputs = dict[str, Tensor]
Probe = Callable[..., Outputs]
ALL = slice(None)
TOLERANCE = 1e-4  # relative to the largest value; float32 kernels differ between batch sizes


@dataclass
class PartUnderTest:
    """A part and the findings about it.

    Attributes:
        build: builds a fresh instance, or copies the given one.
        has_factory: whether `build` calls the part's constructor.
        report: the findings.
        instance: what is checked; None if building it failed.
    """

    build: Callable[[], Any]
    has_factory: bool
    report: Report
    instance: Any = None

    @classmethod
    def of(cls, part: Any, kind: str) -> PartUnderTest:
        """Build the first instance from a callable without arguments, or by copying an instance."""
        name = getattr(part, "__qualname__", type(part).__qualname__)
        if isinstance(part, nn.Module) or not callable(part):
            tested = cls(lambda: copy.deepcopy(part), False, Report(f"{kind} {name}"))
        else:
            tested = cls(part, True, Report(f"{kind} {name}"))
        if tested.report.judge("cannot be built", tested._build_one):
            built = type(tested.instance)
            tested.report.subject = f"{kind} {built.__module__}:{built.__qualname__}"
        return tested

    def _build_one(self) -> None:
        self.instance = self.build()

    def judge_type(self, base: type) -> bool:
        """Check the constructor's type hints and the base class; whether the instance is one of `base`."""
        if self.instance is None:
            return False
        cls = type(self.instance)
        self.report.judge("untyped option", lambda: typed_constructor(cls))
        message = (
            f"{cls.__name__} is no subclass of {base.__module__}.{base.__name__}; derive it from that class, "
            "whose docstring is the contract."
        )
        return self.report.judge("wrong type", lambda: None if isinstance(self.instance, base) else message)


def typed_constructor(kind: type) -> str | None:
    """Every constructor argument has a type hint, by which YAML is validated."""
    if kind.__init__ in (nn.Module.__init__, object.__init__):  # type: ignore[misc]
        return None
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]  # type: ignore[misc]
    for parameter in parameters:
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            return (
                f"{kind.__name__}(...) takes {parameter}, which swallows misspelt options. "
                "Expected: every option by name, with a type hint. List them in the signature."
            )
        if parameter.annotation is parameter.empty:
            return (
                f"{kind.__name__}(...) has '{parameter.name}' without a type hint, so YAML cannot be validated. "
                f"Write for example `{parameter.name}: int`."
            )
    return None


def different(first: Outputs, second: Outputs) -> str | None:
    """Which output differs by more than rounding, and by how much; None if none does."""
    for name, a in first.items():
        b = second[name]
        if a.shape != b.shape:
            return f"{name} has the shape {tuple(b.shape)} instead of {tuple(a.shape)}"
        a, b = a.detach().double(), b.detach().double()
        gap = (a - b).abs().max().item() if a.numel() else 0.0
        if not gap <= TOLERANCE * max(1.0, a.abs().max().item() if a.numel() else 0.0):
            return f"{name} differs by {gap:.2g}"
    return None


def finite(outputs: Outputs) -> str | None:
    """No output holds nan or inf."""
    for name, value in outputs.items():
        if not torch.isfinite(value).all():
            return (
                f"{name} holds nan or inf; expected finite numbers. "
                "Look for a softmax over an empty set, or a division by 0."
            )
    return None


@torch.no_grad()
def deterministic(module: nn.Module, probe: Probe) -> str | None:
    """In eval mode the same input gives the same output."""
    module.eval()
    gap = different(probe(module), probe(module))
    return gap and (
        f"two runs in eval mode on the same input: {gap}; expected the same. Use nn.Dropout, or F.dropout "
        "with training=self.training, and keep no state between calls."
    )


def gradients_flow(module: nn.Module, probe: Probe) -> str | None:
    """Each output depends on trainable parameters, and each trainable parameter receives a gradient."""
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    if not parameters:
        return None  # frozen
    reached: set[str] = set()
    for output in probe(module.train()):
        value = probe(module)[output]
        if not value.requires_grad:
            return f"{output} carries no gradient; expected one. Remove detach(), no_grad() or .data."
        loss = (value * torch.randn_like(value)).sum()
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        got = {name: g for name, g in zip(parameters, gradients, strict=True) if g is not None}
        if not any(g.abs().sum() > 0 for g in got.values()):
            return f"{output} does not depend on any trainable parameter; expected a gradient other than 0."
        if bad := [name for name, g in got.items() if not torch.isfinite(g).all()]:
            return f"the gradient of {output} by {', '.join(bad[:3])} is nan or inf; expected finite numbers."
        reached |= got.keys()
    if unused := [name for name in parameters if name not in reached]:
        return (
            f"{len(unused)} of {len(parameters)} trainable parameters receive no gradient: "
            f"{', '.join(unused[:3])}. Use them, leave them out, or call requires_grad_(False) on them "
            "(DDP raises on unused parameters)."
        )
    return None


@torch.no_grad()
def batch_of_one(module: nn.Module, probe: Probe, row: int = 0) -> str | None:
    """A row alone gives the same as in a batch."""
    module.eval()
    whole = {name: value[row : row + 1] for name, value in probe(module).items()}
    gap = different(whole, probe(module, rows=slice(row, row + 1)))
    return gap and (
        f"a sample alone and the same sample in a batch: {gap}; expected the same. Look for squeeze() without "
        "a dimension, and for statistics taken over the batch."
    )


def state_restored(build: Callable[[], Any], probe: Probe) -> str | None:
    """A second instance with the first one's state, saved and loaded, gives the same outputs."""
    first, file = build(), io.BytesIO()
    probe(first.train())  # updates running statistics
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)  # values that no constructor makes
    torch.save(first.state_dict(), file)
    file.seek(0)
    torch.manual_seed(1)
    second = build()
    second.load_state_dict(torch.load(file, weights_only=True))
    with torch.no_grad():
        gap = different(probe(first.eval()), probe(second.eval()))
    return gap and (
        f"a second instance with the first one's state_dict: {gap}; expected the same. Make every tensor that "
        "matters an nn.Parameter or register_buffer it, and keep modules in nn.ModuleList, not in a list."
    )


def dtype_kept(build: Callable[[], Any], probe: Probe) -> str | None:
    """Double input gives double output, and bfloat16 autocast works."""
    module = build().eval()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            if message := finite(probe(module)):
                return f"under bfloat16 autocast {message}"
        for name, value in probe(module.double(), dtype=torch.float64).items():
            if value.dtype != torch.float64:
                return (
                    f"after .double(), with double input, {name} is {value.dtype}; expected torch.float64. "
                    "Make new tensors with the dtype of the input or of a weight, and drop .float() casts."
                )
    return None


def judge_module(tested: PartUnderTest, probe: Probe, needs: tuple[str, ...], row: int = 0) -> None:
    """Check the laws of this file; `row` is the sample to run alone."""
    report, module, build = tested.report, tested.instance, tested.build
    with torch.no_grad():
        report.judge("not finite", lambda: finite(probe(module.eval())), needs)
    report.judge("not deterministic in eval", lambda: deterministic(module, probe), needs)
    report.judge("no gradient", lambda: gradients_flow(module, probe), needs)
    same = (*needs, "not finite", "not deterministic in eval")
    report.judge("batch of one", lambda: batch_of_one(module, probe, row), same)
    if tested.has_factory:
        report.judge("state not restored", lambda: state_restored(build, probe), same)
    else:
        report.skip("state not restored", "needs a factory instead of an instance")
    report.judge("dtype changed", lambda: dtype_kept(build, probe), needs)
