"""Caption 32 images with 20 tokens each; the weights are random and captions cannot end earlier.

All systems have a ViT of width 384 and depth 12 with patches of 32 pixels, 49,408 tokens and a decoder of width 384;
encoding the images is included. There are two pairs, because the peers differ:

- transformers: `VisionEncoderDecoderModel.generate`, ViT and a GPT-2 of 6 layers with cross-attention; VELM with a
  Transformer decoder of 6 blocks.
- open_clip: CoCa with 12 text layers and 6 decoder layers over its 255 pooled positions; both have the same image
  tower. A layer of its decoder has two MLPs, one after each attention, where a block of VELM has one: VELM with 16
  unimodal blocks and 6 with cross-attention has as many weights in matrices and as many cross-attentions. CoCa's own
  `generate` needs a `BeamSearchScorer`, which transformers 5 no longer has; measured here is its loop with its own
  `CoCa.forward`: every step encodes the whole caption again, and the image is repeated for every beam before it is
  encoded.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.workload import OURS, Agreement, Run, Settings, Workload, require

IMAGES, TOKENS, VOCABULARY = 32, 20, 49408
SIZE, PATCH, DIM, HEADS, IMAGE_DEPTH = 224, 32, 384, 6, 12
BOS, EOS, PAD = VOCABULARY - 2, VOCABULARY - 1, 0

Search = Callable[[Tensor], Any]


def velm_model(depth: int, unimodal_depth: int = 0) -> Any:
    """VELM's model: ViT and Transformer decoder."""
    from velm.model import build_model

    decoder = {"name": "transformer", "dim": DIM, "depth": depth, "unimodal_depth": unimodal_depth, "heads": HEADS}
    config: dict[str, Any] = {
        "image_encoder": {"name": "vit", "dim": DIM, "depth": IMAGE_DEPTH, "heads": HEADS, "patch_size": PATCH},
        "decoder": {**decoder, "max_length": 77},
        "losses": {"captioning": {}},
        "memory": ["image"],
        "vocab_size": VOCABULARY,
        "pad_id": PAD,
    }
    return build_model(config).eval()


def ours(model: Any, beams: int, tower: Search | None = None) -> Search:
    """VELM's generation; optionally with the features (B, N, 384) of another image tower instead of the ViT's."""
    from velm.generation import GenerationConfig, generate

    how = GenerationConfig(max_length=TOKENS, min_length=TOKENS, num_beams=beams)

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        memory = model.encode_image(images).features if tower is None else tower(images)
        return generate(model.decoder, memory, bos_id=BOS, eos_id=EOS, pad_id=PAD, config=how).tokens

    return run


def transformers_model(depth: int) -> Any:
    """`VisionEncoderDecoderModel` of a ViT and a GPT-2 with cross-attention."""
    from transformers import GPT2Config, GPT2LMHeadModel, VisionEncoderDecoderModel, ViTConfig, ViTModel

    encoder = ViTConfig(
        hidden_size=DIM, num_hidden_layers=IMAGE_DEPTH, num_attention_heads=HEADS, intermediate_size=4 * DIM,
        image_size=SIZE, patch_size=PATCH,
    )  # fmt: skip
    decoder = GPT2Config(
        vocab_size=VOCABULARY, n_embd=DIM, n_layer=depth, n_head=HEADS, n_positions=77, add_cross_attention=True,
        is_decoder=True, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
    )  # fmt: skip
    parts = {"encoder": ViTModel(encoder, add_pooling_layer=False), "decoder": GPT2LMHeadModel(decoder)}
    return VisionEncoderDecoderModel(**parts).eval()


def transformers_own(model: Any, beams: int) -> Search:
    """`VisionEncoderDecoderModel.generate` unmodified, with its cache."""
    options = {"decoder_start_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "do_sample": False}

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return model.generate(
            scaled(images, model), num_beams=beams, min_new_tokens=TOKENS, max_new_tokens=TOKENS, **options
        )

    return run


def coca(text_depth: int, depth: int) -> Any:
    """CoCa of open_clip, built as from its configs, except for the sizes."""
    require("open_clip")
    from open_clip.coca_model import CoCa

    width = {"context_length": 77, "width": DIM, "heads": HEADS}
    vision = {"image_size": SIZE, "layers": IMAGE_DEPTH, "width": DIM, "head_width": DIM // HEADS, "patch_size": PATCH}
    pooler = {"attentional_pool": True, "attn_pooler_heads": HEADS, "output_tokens": True}
    model = CoCa(
        embed_dim=DIM,
        multimodal_cfg={**width, "layers": depth, "attn_pooler_heads": HEADS},
        text_cfg={**width, "vocab_size": VOCABULARY, "layers": text_depth, "embed_cls": True, "output_tokens": True},
        vision_cfg={**vision, **pooler},
    )
    torch.nn.init.normal_(model.text_decoder.text_projection, std=DIM**-0.5)  # otherwise uninitialised memory
    return model.eval()


def open_clip_loop(model: Any, beams: int) -> Search:
    """The loop of `CoCa.generate`, with `CoCa.forward` and without the bookkeeping of the beams."""

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        repeated = scaled(images, model).repeat_interleave(beams, dim=0)
        latent, embeds = model._encode_image(repeated)
        words = torch.full((len(repeated), 1), BOS, device=repeated.device)
        totals = torch.tensor([0.0] + [-1e9] * (beams - 1), device=repeated.device).repeat(len(images), 1)
        first = torch.arange(len(images), device=repeated.device)[:, None] * beams
        for _ in range(TOKENS):
            logits = model(repeated, words, image_latent=latent, image_embs=embeds, output_labels=False)["logits"]
            scores = logits[:, -1].float().log_softmax(dim=1).view(len(images), beams, -1) + totals[:, :, None]
            totals, chosen = scores.flatten(1).topk(beams, dim=1)
            rows = (first + chosen // VOCABULARY).flatten()
            words = torch.cat([words[rows], (chosen % VOCABULARY).view(-1, 1)], dim=1)
        return words

    return run


def matrices(*modules: Any) -> int:
    """Number of weights in matrices: no biases, no norms."""
    return sum(weight.numel() for module in modules for weight in module.parameters() if weight.dim() > 1)


def scaled(images: Tensor, model: Any) -> Tensor:
    """Pixels centred at 0, in the precision of the model."""
    return (images.float() / 255 - 0.5).to(next(model.parameters()).dtype)


def coca_pair() -> tuple[Any, Any]:
    """open_clip's model, and VELM's with the same image tower."""
    return coca(12, 6), velm_model(22, unimodal_depth=16)


def their_tower(model: Any) -> Search:
    """Features (B, N, 384) of open_clip's image tower."""
    return lambda images: model._encode_image(scaled(images, model))[1]


def prove(settings: Settings) -> list[Agreement]:
    """Equal numbers of weights in matrices and of cross-attentions; all generate 20 tokens."""
    theirs, mine = coca_pair()
    decoder = theirs.text_decoder
    sizes = matrices(mine.decoder.blocks), matrices(theirs.text.transformer, decoder.resblocks, decoder.cross_attn)
    assert sizes[0] == sizes[1], sizes
    hugging, small = transformers_model(6), velm_model(6)
    counts = matrices(small.image_encoder, small.decoder), matrices(hugging)
    assert abs(counts[0] / counts[1] - 1) < 0.01, counts
    images = random_images(2)
    written = [transformers_own(hugging, 1)(images)[:, -TOKENS:].numel(), ours(small, 1)(images).numel()]
    assert written == [2 * TOKENS, 2 * TOKENS], written
    return [
        Agreement("weights in matrices of the blocks, against open_clip", *sizes),
        Agreement("weights in matrices, against transformers", *counts, "positions and patches are among theirs"),
        Agreement("tokens that two images give, against transformers", *written[::-1]),
    ]


def random_images(count: int = IMAGES) -> Tensor:
    """uint8 (count, 3, 224, 224)."""
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def build(system: str, beams: int, dtype: torch.dtype, device: str = "cpu") -> Search:
    """The search of a system, with its weights in this dtype on this device."""
    torch.manual_seed(0)
    to: dict[str, Any] = {"dtype": dtype, "device": device}
    if system == "transformers":
        return transformers_own(transformers_model(6).to(**to), beams)
    if system == OURS:
        return ours(velm_model(6).to(**to), beams)
    theirs, mine = (model.to(**to) for model in coca_pair())
    return open_clip_loop(theirs, beams) if system == "open_clip" else ours(mine, beams, their_tower(theirs))


def ready(system: str, beams: int, settings: Settings) -> Run:
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    search, images = build(system, beams, dtype, settings.device), random_images().to(settings.device)
    search(images[:1])

    def step() -> int:
        search(images)
        return len(images) * TOKENS

    return Run(step, warm=1, steps=1 if system == "open_clip" else 3)


def workload(beams: int) -> Workload:
    systems = (OURS, "transformers", "velm_coca", "open_clip")
    return Workload(
        name="generate" if beams == 1 else f"generate_beams{beams}",
        title=f"32 images to 32 captions of 20 tokens, {'greedy' if beams == 1 else f'{beams} beams'}",
        unit="tokens",
        systems={system: partial(ready, system, beams) for system in systems},
        against={"transformers": OURS, "open_clip": "velm_coca"},
        prove=prove,
        repeats=3 if beams == 1 else 2,
        notes=("velm has the 6 blocks of transformers' GPT-2, velm_coca the layers and the image tower of CoCa.",),
    )


WORKLOADS = [workload(beams) for beams in (1, 5)]
