"""In bfloat16 on a CPU a model of transformers attends by matrix products, elsewhere by torch's fused kernel."""

from __future__ import annotations

import torch

from velm.encoders.huggingface import HFTextEncoder

SIZES = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def test_the_kernel_follows_the_precision_and_changes_nothing():
    encoder = HFTextEncoder(model_name="bert", vocab_size=50, config=SIZES).eval()
    tokens, mask = torch.randint(4, 50, (2, 6)), torch.ones(2, 6, dtype=torch.bool)
    mask[0, 4:] = False
    exact = encoder(tokens, mask).pooled
    assert encoder.model.config._attn_implementation == "sdpa"
    with torch.autocast("cpu", torch.bfloat16):
        half = encoder(tokens, mask).pooled
    assert encoder.model.config._attn_implementation == "eager"
    torch.testing.assert_close(half.float(), exact, atol=0.05, rtol=0.05)
    torch.testing.assert_close(encoder(tokens, mask).pooled, exact)
    assert encoder.model.config._attn_implementation == "sdpa"
    encoder.to(torch.bfloat16)(tokens, mask)
    assert encoder.model.config._attn_implementation == "eager"


def test_a_model_of_another_attention_is_left_alone():
    encoder = HFTextEncoder(model_name="bert", vocab_size=50, config=SIZES)
    encoder.model.set_attn_implementation("eager")
    encoder.model._supports_sdpa = False
    encoder(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3, dtype=torch.bool))
    assert encoder.model.config._attn_implementation == "eager"
