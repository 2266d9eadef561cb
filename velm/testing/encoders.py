"""The contract checks of image encoders and text encoders."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from velm.encoders.base import ImageEncoder, TextEncoder
from velm.outputs import EncoderOutput
from velm.testing.laws import ALL, Outputs, PartUnderTest, different, judge_module
from velm.testing.report import Note, Report

LENGTHS = (6, 9, 6, 2)  # tokens with bos and eos; unsorted, the last text is empty
SOUND = ("raised", "wrong shape")


def check_image_encoder(encoder: Any, *, image_size: int = 64) -> Report:
    """Check every law of `velm.ImageEncoder`.

    Args:
        encoder: a callable without arguments that builds a fresh instance, or an instance.
        image_size: side of the square images, in pixels; images of twice that width are tried too.
    """
    tested = PartUnderTest.of(encoder, "image encoder")
    report, module = tested.report, tested.instance
    if not tested.judge_type(ImageEncoder):
        return report
    images = _images(3, image_size, image_size)

    def probe(module: nn.Module, rows: slice = ALL, dtype: torch.dtype = torch.float32) -> Outputs:
        return _tensors(module(images[rows].to(dtype, copy=True)))

    output = _first_output(report, module, images)
    report.judge("wrong shape", lambda: _image_shape(module, output[0], 3), ("raised",))
    report.judge("wrong .dim", lambda: _dim(module, output[0]), SOUND)
    report.judge("changes its input", lambda: _untouched(module, images), SOUND)
    judge_module(tested, probe, SOUND)
    report.judge("fixed image size", lambda: _other_size(module, images, output[0]), SOUND)
    return report


def check_text_encoder(encoder: Any, *, vocab_size: int = 32, pad_id: int = 0) -> Report:
    """Check every law of `velm.TextEncoder`.

    Args:
        encoder: a callable without arguments that builds a fresh instance, or an instance.
        vocab_size: V that it was built with; the tokens are below.
        pad_id: id of padding.
    """
    tested = PartUnderTest.of(encoder, "text encoder")
    report, module = tested.report, tested.instance
    if not tested.judge_type(TextEncoder):
        return report
    tokens, mask = _random_tokens(vocab_size, pad_id)

    def probe(module: nn.Module, rows: slice = ALL, dtype: torch.dtype = torch.float32) -> Outputs:
        out = _tensors(module(tokens[rows].clone(), mask[rows].clone()))
        return {**out, "features": out["features"] * mask[rows, :, None]}  # features of padding are not read

    output = _first_output(report, module, tokens, mask)
    report.judge("wrong shape", lambda: _text_shape(output[0], mask), ("raised",))
    report.judge("wrong .dim", lambda: _dim(module, output[0]), SOUND)
    report.judge("changes its input", lambda: _untouched(module, tokens, mask), SOUND)
    judge_module(tested, probe, SOUND, row=LENGTHS.index(max(LENGTHS)))
    needs = (*SOUND, "not deterministic in eval", "batch of one")
    report.judge("padding leak", lambda: _padding(module, probe, tokens, mask, pad_id), needs)
    return report


def _first_output(report: Report, module: nn.Module, *inputs: Tensor) -> list[Any]:
    """The output of an ordinary batch in eval mode, in a list; empty if it raised."""
    output: list[Any] = []
    with torch.no_grad():
        report.judge("raised", lambda: output.append(module.eval()(*(i.clone() for i in inputs))))
    return output


def _images(count: int, height: int, width: int) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def _random_tokens(vocab_size: int, pad_id: int) -> tuple[Tensor, Tensor]:
    """Random tokens int64 (4, 9), and their mask bool (4, 9)."""
    shape = len(LENGTHS), max(LENGTHS)
    tokens = torch.randint(0, vocab_size - 1, shape, generator=torch.Generator().manual_seed(0))
    tokens += tokens >= pad_id  # any id but pad_id
    mask = torch.arange(shape[1]) < torch.tensor(LENGTHS)[:, None]
    return tokens.masked_fill(~mask, pad_id), mask


def _tensors(output: EncoderOutput) -> Outputs:
    return {"features": output.features, "pooled": output.pooled}


def _shape(output: Any, batch: int) -> str | None:
    """Shapes that both kinds of encoder share."""
    if not isinstance(output, EncoderOutput):
        return (
            f"forward returned {type(output).__name__}; expected velm.EncoderOutput. "
            "Write: return EncoderOutput(features, pooled)."
        )
    features, pooled = output.features, output.pooled
    if features.dim() != 3 or len(features) != batch:
        return (
            f"features are {tuple(features.shape)} for a batch of {batch}; expected (B, positions, dim). "
            "Put the positions second and the width last."
        )
    if pooled.shape != (batch, features.shape[2]):
        return (
            f"pooled is {tuple(pooled.shape)} beside features {tuple(features.shape)}; expected "
            f"{(batch, features.shape[2])}. Pool over the positions, dimension 1."
        )
    return None


def _image_shape(module: Any, output: Any, batch: int) -> str | None:
    if message := _shape(output, batch):
        return message
    if not module.has_grid and output.grid is None:
        return None
    positions, grid = output.features.shape[1], output.grid
    if grid is None or len(grid) != 2 or grid[0] * grid[1] != positions:
        return (
            f"grid is {grid} with {positions} positions in features; expected (H', W') with H' * W' == {positions}. "
            "Keep class tokens out of features, and return the height and width of the map; set has_grid = False where "
            "the positions are no places of the image."
        )
    return None


def _text_shape(output: Any, mask: Tensor) -> str | None:
    if message := _shape(output, len(mask)):
        return message
    if output.features.shape[1] != mask.shape[1]:
        return (
            f"features have {output.features.shape[1]} positions for {mask.shape[1]} tokens; expected one per token. "
            "Pad to the input's length (pad_packed_sequence(..., total_length=tokens.shape[1]))."
        )
    if output.mask is None or output.mask.shape != mask.shape or not torch.equal(output.mask.bool(), mask):
        shape = None if output.mask is None else tuple(output.mask.shape)
        return (
            f"the output's mask is {shape}, which is not the input's mask; a decoder would read padding. "
            "Write: EncoderOutput(features, pooled, mask=mask)."
        )
    return None


def _dim(module: nn.Module, output: EncoderOutput) -> str | None:
    dim, width = getattr(module, "dim", None), output.features.shape[2]
    if dim == width:
        return None
    return (
        f".dim is {dim} but features and pooled are {width} wide; expected the same number. "
        f"Set self.dim in the constructor to the width that comes out."
    )


@torch.no_grad()
def _untouched(module: nn.Module, *inputs: Tensor) -> str | None:
    copies = [i.clone() for i in inputs]
    module.eval()(*copies)
    if all(torch.equal(a, b) for a, b in zip(copies, inputs, strict=True)):
        return None
    return "forward modified an input tensor, which other modules read too. Write x = x - y instead of x -= y."


@torch.no_grad()
def _other_size(module: nn.Module, images: Tensor, square: EncoderOutput) -> str | None:
    """Images twice as wide have more columns; a note if the grid is fixed, or if a ValueError names the right size."""
    height = images.shape[2]
    size = f"{height} x {2 * height} pixels (height x width)"
    try:
        wide = module.eval()(_images(2, height, 2 * height))
    except Exception as error:
        cause = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0].rstrip('.')}"
        accepted = re.sub(rf"{height}\D{{1,4}}{2 * height}", "", str(error))  # the message without the size it refuses
        if isinstance(error, ValueError) and re.search(rf"\b{height}\b", accepted):
            return Note(f"only images of {height} x {height} pixels are encoded: {cause}.")
        return (
            f"images of {size} raise {cause}. Encode any size, or raise a ValueError that names the size: "
            f'raise ValueError(f"images of {{h}} x {{w}} pixels; this encoder takes {height} x {height}").'
        )
    if message := _image_shape(module, wide, 2):
        return f"on images of {size} {message}"
    if wide.grid is None:
        return None
    if wide.grid == square.grid:
        return Note(f"the grid {wide.grid} does not depend on the image size; maps over an image are stretched.")
    if wide.grid[0] > wide.grid[1] or wide.features.shape[1] <= square.features.shape[1]:
        return (
            f"images of {size} have the grid {wide.grid}, those of {height} x {height} the grid {square.grid}; "
            "expected more columns and no more rows, or the same grid. "
            "Take the grid from the input as (H', W'), and interpolate learned positions to it."
        )
    return None


@torch.no_grad()
def _padding(module: nn.Module, probe: Any, tokens: Tensor, mask: Tensor, pad_id: int) -> str | None:
    """More padding on every text, then no padding on texts that had some."""
    whole = probe(module.eval())
    advice = (
        "Expected no difference. Use the mask wherever positions meet: attention, pooling, recurrence (pack), "
        "convolution (zero the padding first), and normalisation."
    )
    count, length = tokens.shape
    more = module(
        torch.cat([tokens, tokens.new_full((count, 5), pad_id)], 1),
        torch.cat([mask, mask.new_zeros(count, 5)], 1),
    )
    longer = _tensors(more)
    longer["features"] = longer["features"][:, :length] * mask[:, :, None]
    if gap := different(whole, longer):
        return f"with 5 more padding tokens after every text {gap}. {advice}"
    for length in sorted({n for n in LENGTHS if n < max(LENGTHS)}):
        rows = torch.tensor([n == length for n in LENGTHS])
        trimmed = _tensors(module(tokens[rows, :length], mask[rows, :length]))
        padded = {"features": whole["features"][rows, :length], "pooled": whole["pooled"][rows]}
        if gap := different(padded, trimmed):
            return f"a text of {length} tokens, padded to {tokens.shape[1]} and not padded: {gap}. {advice}"
    return None
