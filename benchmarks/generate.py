"""Tokens a second of VELM's decoding engine beside transformers' and open_clip's, on the same sizes in one run.

    pip install --no-deps open_clip_torch ftfy wcwidth
    python benchmarks/generate.py
    python benchmarks/generate.py --beams 5 --json
    python benchmarks/generate.py --precision bf16
    python benchmarks/generate.py --profile

32 pictures of 224 pixels become 32 sentences of 20 tokens, by random weights that may not end before; encoding the
pictures is part of it. All have a ViT of 384 x 12 in patches of 32 pixels, 49,408 words and a decoder of width 384. Two
pairs, because the peers differ:

- transformers: `VisionEncoderDecoderModel.generate`, ViT and a GPT-2 of 6 layers with cross-attention; VELM with a
  Transformer decoder of 6 blocks.
- open_clip: CoCa with 12 layers of text and 6 of decoder over its 255 pooled positions, the same tower for both. A
  layer of its decoder has two MLPs, one after each attention, where a block of VELM's has one: VELM with 16 blocks
  that attend over the words and 6 that attend over the picture too has as many weights in matrices (asserted) and
  attends over the picture as often. CoCa's own `generate` needs a `BeamSearchScorer`, which transformers 5 no longer
  has; what runs here is its loop, with its own `CoCa.forward`: every step reads the whole sentence again, and beams
  repeat the picture before it is encoded.

Each pair takes turns (A B A B ...); medians over the turns, after a picture that is not counted. With one thread, the
seconds are the processor's, so that other work on the machine counts less.

Expect a quarter of an hour, most of it open_clip's beams, and the ratios of docs/results.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

PICTURES, TOKENS, VOCABULARY = 32, 20, 49408
SIZE, PATCH, DIM, HEADS, IMAGE_DEPTH = 224, 32, 384, 6, 12
BOS, EOS, PAD = VOCABULARY - 2, VOCABULARY - 1, 0

Run = Callable[[Tensor], Any]


def velm_model(depth: int, unimodal_depth: int = 0) -> Any:
    """The shipped model: ViT and Transformer decoder."""
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


def ours(model: Any, beams: int, tower: Run | None = None) -> Run:
    """The shipped engine; with another picture tower, its features (B, N, 384) in place of the ViT's."""
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


def transformers_own(model: Any, beams: int) -> Run:
    """`VisionEncoderDecoderModel.generate` as it is, with its cache."""
    options = {"decoder_start_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD, "do_sample": False}

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        return model.generate(
            scaled(images, model), num_beams=beams, min_new_tokens=TOKENS, max_new_tokens=TOKENS, **options
        )

    return run


def coca(text_depth: int, depth: int) -> Any:
    """open_clip's CoCa, made as its configs make it, but for the sizes."""
    try:
        from open_clip.coca_model import CoCa
    except ImportError as error:
        sys.exit(f"{error.name!r} is missing: pip install --no-deps open_clip_torch ftfy wcwidth")
    width = {"context_length": 77, "width": DIM, "heads": HEADS}
    vision = {"image_size": SIZE, "layers": IMAGE_DEPTH, "width": DIM, "head_width": DIM // HEADS, "patch_size": PATCH}
    pooler = {"attentional_pool": True, "attn_pooler_heads": HEADS, "output_tokens": True}
    return CoCa(
        embed_dim=DIM,
        multimodal_cfg={**width, "layers": depth, "attn_pooler_heads": HEADS},
        text_cfg={**width, "vocab_size": VOCABULARY, "layers": text_depth, "embed_cls": True, "output_tokens": True},
        vision_cfg={**vision, **pooler},
    ).eval()


def open_clip_loop(model: Any, beams: int) -> Run:
    """What `CoCa.generate` does, with `CoCa.forward`; the beams' book-keeping is left out of theirs."""

    @torch.inference_mode()
    def run(images: Tensor) -> Tensor:
        repeated = scaled(images, model).repeat_interleave(beams, dim=0)
        latent, embeds = model._encode_image(repeated)
        words = torch.full((len(repeated), 1), BOS)
        totals = torch.tensor([0.0] + [-1e9] * (beams - 1)).repeat(len(images), 1)
        first = torch.arange(len(images))[:, None] * beams
        for _ in range(TOKENS):
            logits = model(repeated, words, image_latent=latent, image_embs=embeds, output_labels=False)["logits"]
            scores = logits[:, -1].float().log_softmax(dim=1).view(len(images), beams, -1) + totals[:, :, None]
            totals, chosen = scores.flatten(1).topk(beams, dim=1)
            rows = (first + chosen // VOCABULARY).flatten()
            words = torch.cat([words[rows], (chosen % VOCABULARY).view(-1, 1)], dim=1)
        return words

    return run


def matrices(*modules: Any) -> int:
    """How many weights there are in matrices: no biases, no norms."""
    return sum(weight.numel() for module in modules for weight in module.parameters() if weight.dim() > 1)


def scaled(images: Tensor, model: Any) -> Tensor:
    """Pixels about 0, in the model's precision."""
    return (images.float() / 255 - 0.5).to(next(model.parameters()).dtype)


def pair(peer: str, beams: int, dtype: torch.dtype = torch.float32) -> dict[str, Run]:
    """The peer and VELM beside it, both with weights of one dtype."""
    if peer == "transformers":
        model, own = transformers_model(6).to(dtype), velm_model(6).to(dtype)
        return {"transformers": transformers_own(model, beams), "VELM, 6 blocks": ours(own, beams)}
    model, own = coca(12, 6).to(dtype), velm_model(22, unimodal_depth=16).to(dtype)
    decoder = model.text_decoder
    assert matrices(model.text.transformer, decoder.resblocks, decoder.cross_attn) == matrices(own.decoder.blocks)

    def tower(images: Tensor) -> Tensor:
        return model._encode_image(scaled(images, model))[1]

    return {"open_clip's loop": open_clip_loop(model, beams), "VELM, 16 + 6 blocks": ours(own, beams, tower)}


def speeds(runs: dict[str, Run], images: Tensor, repeats: int) -> dict[str, dict[str, float]]:
    """Tokens a second of each, taking turns after one with a single picture; the ratio is to the first."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats + 1):
        for name, run in runs.items():
            start = clock()
            run(images if turn else images[:1])
            if turn:
                found[name].append(len(images) * TOKENS / (clock() - start))
    medians = {name: statistics.median(values) for name, values in found.items()}
    first = next(iter(medians.values()))
    return {
        name: {"median": medians[name], "min": min(values), "max": max(values), "ratio": medians[name] / first}
        for name, values in found.items()
    }


def printed(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """The table."""
    lines = []
    for search, rows in results.items():
        lines.append(search)
        for name, row in rows.items():
            span = f"({row['min']:.0f} to {row['max']:.0f})"
            lines.append(f"  {name:<20} {row['median']:6.0f} tokens/s {span:<16} {row['ratio']:.2f} x")
    return "\n".join(lines)


def profile(run: Run, images: Tensor) -> str:
    """Where the time of a run goes, by operation."""
    with torch.profiler.profile() as recorded:
        run(images)
    return recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=18, max_name_column_width=40)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Tokens a second of VELM's engine, transformers' and open_clip's.")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="in a batch")
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 5], help="1 is greedy")
    parser.add_argument("--peers", nargs="+", default=["transformers", "open_clip"], help="which to run")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32", help="of the weights, on both sides")
    parser.add_argument("--profile", action="store_true", help="show where VELM's time goes instead")
    parser.add_argument("--json", action="store_true", help="JSON in place of the table")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    images = torch.randint(0, 256, (options.pictures, 3, SIZE, SIZE), dtype=torch.uint8)
    results, dtype = {}, {"32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    for peer in options.peers:
        for beams in options.beams:
            search, runs = f"{peer}, {'greedy' if beams == 1 else f'{beams} beams'}", pair(peer, beams, dtype)
            if options.profile:
                print(search, profile(list(runs.values())[1], images), sep="\n")
            else:
                results[search] = speeds(runs, images, options.repeats)
    if not options.profile:
        print(json.dumps(results, indent=2) if options.json else printed(results))


if __name__ == "__main__":
    main()
