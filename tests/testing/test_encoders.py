"""Each broken encoder is reported by exactly its violation."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from velm.encoders.base import ImageEncoder, TextEncoder
from velm.outputs import EncoderOutput
from velm.testing import assert_contract, check, check_image_encoder, check_text_encoder

DIM = 8


class Patches(ImageEncoder):
    """The smallest right image encoder: an image is its 16 x 16 patches."""

    def __init__(self, *, dim: int = DIM) -> None:
        super().__init__()
        self.dim = dim
        self.patch = nn.Conv2d(3, dim, 16, 16)

    def forward(self, images: Tensor) -> EncoderOutput:
        return self.output(self.patch(images))

    def output(self, maps: Tensor) -> EncoderOutput:
        features = maps.flatten(2).transpose(1, 2)
        return EncoderOutput(features, features.mean(1), grid=(maps.shape[2], maps.shape[3]))


class Words(TextEncoder):
    """The smallest right text encoder: the mean of its words."""

    def __init__(self, *, dim: int = DIM, vocab_size: int = 32) -> None:
        super().__init__()
        self.dim = dim
        self.words = nn.Embedding(vocab_size, dim)

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        return self.output(self.words(tokens), mask)

    def output(self, features: Tensor, mask: Tensor) -> EncoderOutput:
        content = mask[:, :, None]
        pooled = (features * content).sum(1) / content.sum(1)
        return EncoderOutput(features, pooled, mask=mask)


class ImageWrongShape(Patches):
    def output(self, maps: Tensor) -> EncoderOutput:
        features = maps.flatten(2)  # (B, dim, N)
        return EncoderOutput(features, features.mean(2), grid=(maps.shape[2], maps.shape[3]))


class TextWrongShape(Words):
    def output(self, features: Tensor, mask: Tensor) -> EncoderOutput:
        return EncoderOutput(features, features[:, :1], mask=mask)


class PaddingLeak(Words):
    def output(self, features: Tensor, mask: Tensor) -> EncoderOutput:
        return EncoderOutput(features, features.mean(1), mask=mask)


class ImageNoGradient(Patches):
    def forward(self, images: Tensor) -> EncoderOutput:
        with torch.no_grad():
            return super().forward(images)


class TextNoGradient(Words):
    def __init__(self, *, vocab_size: int = 32) -> None:
        super().__init__(vocab_size=vocab_size)
        self.forgotten = nn.Linear(DIM, DIM)


class ImageNotDeterministic(Patches):
    def forward(self, images: Tensor) -> EncoderOutput:
        return self.output(dropout(self.patch(images), 0.5))


class ImageDtypeChanged(Patches):
    def output(self, maps: Tensor) -> EncoderOutput:
        return super().output(maps.float())


class ImageLiesAboutDim(Patches):
    def __init__(self) -> None:
        super().__init__()
        self.dim = 2 * DIM


class TextLiesAboutDim(Words):
    def __init__(self, *, vocab_size: int = 32) -> None:
        super().__init__(vocab_size=vocab_size)
        del self.dim


class ImageBatchOfOne(Patches):
    def output(self, maps: Tensor) -> EncoderOutput:
        out = super().output(maps)
        return EncoderOutput(out.features, out.pooled.squeeze(), grid=out.grid)


class ImageStateNotRestored(Patches):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.randn(DIM, 1, 1)  # neither a parameter nor a buffer

    def forward(self, images: Tensor) -> EncoderOutput:
        return self.output(self.patch(images) * self.scale)


class TextStateNotRestored(Words):
    def __init__(self, *, vocab_size: int = 32) -> None:
        super().__init__(vocab_size=vocab_size)
        self.register_buffer("scale", torch.randn(DIM), persistent=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> EncoderOutput:
        return self.output(self.words(tokens) * self.scale, mask)


BROKEN = [
    (ImageWrongShape, "wrong shape"),
    (TextWrongShape, "wrong shape"),
    (PaddingLeak, "padding leak"),
    (ImageNoGradient, "no gradient"),
    (TextNoGradient, "no gradient"),
    (ImageNotDeterministic, "not deterministic in eval"),
    (ImageDtypeChanged, "dtype changed"),
    (ImageLiesAboutDim, "wrong .dim"),
    (TextLiesAboutDim, "wrong .dim"),
    (ImageBatchOfOne, "batch of one"),
    (ImageStateNotRestored, "state not restored"),
    (TextStateNotRestored, "state not restored"),
]


@pytest.mark.parametrize("encoder", [Patches, Words])
def test_right_encoders_have_no_violation(encoder: type) -> None:
    assert not check(encoder).violations


@pytest.mark.parametrize(("encoder", "violation"), BROKEN, ids=lambda value: getattr(value, "__name__", value))
def test_a_broken_encoder_is_caught_by_exactly_its_violation(encoder: type, violation: str) -> None:
    report = check(encoder)
    assert [f.check for f in report.violations] == [violation], str(report)
    with pytest.raises(AssertionError, match=violation):
        assert_contract(encoder)


class AdaptivePooling(Patches):
    """The grid is 2 x 2 whatever the image."""

    def output(self, maps: Tensor) -> EncoderOutput:
        return super().output(nn.functional.adaptive_avg_pool2d(maps, 2))


class Mixer(Patches):
    """An MLP over 16 positions: it takes images of 64 x 64 pixels only."""

    def __init__(self, *, dim: int = DIM) -> None:
        super().__init__(dim=dim)
        self.mix = nn.Linear(16, 16)

    def output(self, maps: Tensor) -> EncoderOutput:
        mixed = self.mix(maps.flatten(2)).transpose(1, 2)
        return EncoderOutput(mixed, mixed.mean(1), grid=(4, 4))


class HonestMixer(Mixer):
    def forward(self, images: Tensor) -> EncoderOutput:
        if images.shape[2:] != (64, 64):
            raise ValueError(f"Images of {tuple(images.shape[2:])} pixels; this encoder takes 64 x 64.")
        return super().forward(images)


class VagueMixer(Mixer):
    def forward(self, images: Tensor) -> EncoderOutput:
        if images.shape[2:] != (64, 64):
            raise ValueError(f"Cannot take images of {tuple(images.shape[2:])} pixels.")
        return super().forward(images)


class Resampler(Patches):
    """Perceiver: 5 latents attend to the positions."""

    def __init__(self, *, dim: int = DIM) -> None:
        super().__init__(dim=dim)
        self.latents = nn.Parameter(torch.randn(5, dim))

    def output(self, maps: Tensor) -> EncoderOutput:
        positions = maps.flatten(2)  # (B, dim, N)
        features = (self.latents @ positions).softmax(2) @ positions.transpose(1, 2)
        return EncoderOutput(features, features.mean(1), grid=(5, 1))


@pytest.mark.parametrize(
    ("encoder", "note"),
    [
        (AdaptivePooling, r"the grid \(2, 2\) does not depend on the image size"),
        (Resampler, r"the grid \(5, 1\) does not depend on the image size"),
        (HonestMixer, r"only images of 64 x 64 pixels are encoded: ValueError: .* takes 64 x 64"),
    ],
)
def test_a_fixed_grid_or_size_is_noted_and_passes(encoder: type, note: str) -> None:
    report = assert_contract(encoder)
    [finding] = [f for f in report.findings if f.severity == "info"]
    assert finding.check == "fixed image size"
    assert re.search(note, finding.message)


class Gridless(Resampler):
    has_grid = False

    def output(self, maps: Tensor) -> EncoderOutput:
        output = super().output(maps)
        return EncoderOutput(output.features, output.pooled)


def test_an_encoder_says_that_its_positions_lie_on_no_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_contract(Gridless)
    monkeypatch.setattr(Gridless, "has_grid", True)
    assert "set has_grid = False" in check(Gridless).violations[0].message


@pytest.mark.parametrize(("encoder", "error"), [(Mixer, "RuntimeError"), (VagueMixer, "ValueError")])
def test_an_encoder_of_one_size_that_does_not_name_it_violates_the_contract(encoder: type, error: str) -> None:
    [violation] = check(encoder).violations
    assert violation.check == "fixed image size"
    assert f"raise {error}" in violation.message
    assert "this encoder takes 64 x 64" in violation.message


class ExtraImageViolations:
    """Violations beyond the eight, each made by changing one thing of `Patches`."""

    class Untyped(Patches):
        def __init__(self, dim=DIM, **options):  # type: ignore[no-untyped-def]
            super().__init__(dim=dim)

    class Raises(Patches):
        def forward(self, images: Tensor) -> EncoderOutput:
            raise KeyError("no such map")

    class NoOutput(Patches):
        def output(self, maps: Tensor) -> Any:
            return maps.flatten(2).transpose(1, 2)

    class NoGrid(Patches):
        def output(self, maps: Tensor) -> EncoderOutput:
            out = super().output(maps)
            return EncoderOutput(out.features, out.pooled)

    class Transposed(Patches):
        def output(self, maps: Tensor) -> EncoderOutput:
            return super().output(maps.transpose(2, 3))

    class InPlace(Patches):
        def forward(self, images: Tensor) -> EncoderOutput:
            return super().forward(images.sub_(1.0))

    class Nan(Patches):
        def output(self, maps: Tensor) -> EncoderOutput:
            return super().output(maps / 0)


@pytest.mark.parametrize(
    ("encoder", "violation"),
    [
        (ExtraImageViolations.Untyped, "untyped option"),
        (ExtraImageViolations.Raises, "raised"),
        (ExtraImageViolations.NoOutput, "wrong shape"),
        (ExtraImageViolations.NoGrid, "wrong shape"),
        (ExtraImageViolations.Transposed, "fixed image size"),
        (ExtraImageViolations.InPlace, "changes its input"),
        (ExtraImageViolations.Nan, "not finite"),
    ],
)
def test_other_violations_of_image_encoders(encoder: type, violation: str) -> None:
    assert violation in {f.check for f in check_image_encoder(encoder).violations}


def test_a_mask_that_is_not_handed_on_is_named() -> None:
    class NoMask(Words):
        def output(self, features: Tensor, mask: Tensor) -> EncoderOutput:
            out = super().output(features, mask)
            return EncoderOutput(out.features, out.pooled)

    violations = check_text_encoder(NoMask).violations
    assert [f.check for f in violations] == ["wrong shape"]
    assert "mask" in violations[0].message


def test_a_class_outside_the_contract_is_sent_to_its_base() -> None:
    violations = check_image_encoder(lambda: nn.Linear(3, 3)).violations
    assert "velm.encoders.base.ImageEncoder" in {f.check: f.message for f in violations}["wrong type"]
    assert [f.check for f in check(lambda: nn.Linear(3, 3)).violations] == ["wrong type"]


def test_a_factory_that_fails_is_a_violation_with_its_cause() -> None:
    violations = check(lambda: Patches(dim="wide")).violations  # type: ignore[arg-type]
    assert [f.check for f in violations] == ["cannot be built"]
    assert "TypeError" in violations[0].message


def test_an_instance_is_left_as_it_was_and_says_what_was_not_checked() -> None:
    encoder = Patches()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    generator = torch.get_rng_state()
    report = check(encoder)
    assert report.ok
    assert [f.check for f in report.findings if f.severity == "skipped"] == ["state not restored"]
    assert encoder.training
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())
    assert torch.equal(generator, torch.get_rng_state())


def test_one_error_lists_every_violation() -> None:
    class Two(ImageLiesAboutDim, ImageDtypeChanged):
        pass

    with pytest.raises(AssertionError, match=r"(?s)breaks 2 of.*wrong \.dim: .*dtype changed: "):
        assert_contract(Two)


def test_a_report_reads_as_a_row_per_law() -> None:
    lines = str(check(ImageDtypeChanged)).splitlines()
    assert lines[0].startswith("image encoder ")
    assert lines[0].endswith("ImageDtypeChanged")
    assert lines[1].startswith("error    dtype changed")
    assert lines[-1].startswith("1 error, 0 warnings, ")
    assert "expected torch.float64" in " ".join(str(check(ImageDtypeChanged)).split())
