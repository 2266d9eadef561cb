import pytest
import torch

from velm.layers.attention import (
    Attention,
    attention_kernel,
    attention_mask,
    cached,
    cast_for_autocast,
    matmul_attention,
    matmul_is_faster,
    mixed_attention,
)


def reference(attention, x, memory, allowed):
    """Equation 1 of Vaswani et al., one head after the other."""
    heads = []
    width = x.shape[2] // attention.heads
    keys, values = attention.key_value(memory).chunk(2, dim=-1)
    query = attention.query(x)
    for h in range(attention.heads):
        part = slice(h * width, (h + 1) * width)
        scores = query[..., part] @ keys[..., part].transpose(1, 2) / width**0.5
        heads.append(scores.masked_fill(~allowed, -torch.inf).softmax(-1) @ values[..., part])
    return attention.output(torch.cat(heads, dim=-1))


def test_self_attention_is_the_equation():
    attention = Attention(12, heads=3).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    everywhere = mask[:, None, :].expand(2, 5, 5)
    torch.testing.assert_close(attention(x, mask=mask), reference(attention, x, x, everywhere))
    causal = everywhere & torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(attention(x, mask=mask, causal=True), reference(attention, x, x, causal))


def test_memory_attention_is_the_equation():
    attention = Attention(12, heads=2, memory_dim=7).double()
    x, memory = torch.randn(2, 3, 12, dtype=torch.float64), torch.randn(2, 6, 7, dtype=torch.float64)
    allowed = torch.ones(2, 3, 6, dtype=torch.bool)
    torch.testing.assert_close(attention(x, memory), reference(attention, x, memory, allowed))


def test_a_mask_of_true_changes_nothing():
    attention = Attention(8, heads=2)
    x = torch.randn(2, 4, 8)
    for causal in (False, True):
        everywhere = torch.ones(2, 4, dtype=torch.bool)
        torch.testing.assert_close(attention(x, causal=causal), attention(x, mask=everywhere, causal=causal))


def test_a_cache_continues_the_whole():
    attention = Attention(8, heads=2).double()
    x = torch.randn(2, 6, 8, dtype=torch.float64)
    keys_values = attention.keys_values(x)
    whole = attention(x, causal=True)
    torch.testing.assert_close(attention.attend(x[:, 4:], keys_values, causal=True), whole[:, 4:])
    torch.testing.assert_close(attention.attend(x[:, 5:], keys_values), whole[:, 5:])


def test_nothing_to_look_at_is_no_nan():
    attention = Attention(8, heads=2)
    x = torch.randn(2, 4, 8, requires_grad=True)
    mask = torch.tensor([[True] * 4, [False] * 4])
    for causal in (False, True):
        result = attention(x, mask=mask, causal=causal)
        torch.testing.assert_close(result[1], attention.output.bias.expand(4, 8))
        result.sum().backward()
        assert x.grad.isfinite().all()
    weights = attention.weights(x, attention.keys_values(x), mask=mask)
    assert weights[1].eq(0).all()


def test_weights_make_the_result():
    attention = Attention(8, heads=1).double()
    x, mask = torch.randn(2, 4, 8, dtype=torch.float64), torch.tensor([[True] * 4, [True, True, False, False]])
    keys, values = attention.keys_values(x)
    weights = attention.weights(x, (keys, values), mask=mask)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, dtype=torch.float64))
    torch.testing.assert_close(attention.output(weights @ values[:, 0]), attention(x, mask=mask))


def test_causal_mask_ends_at_the_last_key():
    mask = attention_mask(torch.tensor([[True, True, True]]), True, 2)
    assert mask is not None
    assert mask[0, 0].tolist() == [[True, True, False], [True, True, True]]


def test_heads_must_divide_dim():
    with pytest.raises(ValueError, match="dim 100 is not divisible by heads 8"):
        Attention(100, heads=8)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_products_are_the_fused_kernel(causal, masked):
    if causal and masked:
        pytest.skip("torch's kernel takes one of the two")
    query, keys, values = (torch.randn(2, 3, 5, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = (torch.rand(2, 1, 5, 5) < 0.5) | torch.eye(5, dtype=torch.bool) if masked else None
    options = {"attn_mask": mask, "dropout_p": 0.0, "is_causal": causal}
    results = []
    for attend in (matmul_attention, torch.nn.functional.scaled_dot_product_attention):
        value = attend(query, keys, values, **options)
        results.append((value, *torch.autograd.grad(value.square().sum(), (query, keys, values))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_products_are_for_short_sequences_that_are_trained_in_bfloat16():
    short = torch.randn(1, 1, 8, 4, dtype=torch.bfloat16, requires_grad=True)
    assert matmul_is_faster(short, short)
    assert not matmul_is_faster(short.float(), short)
    assert not matmul_is_faster(short.detach(), short)
    with torch.no_grad():
        assert not matmul_is_faster(short, short)  # eight keys: decoded by the fused kernel
    long = torch.randn(1, 1, 300, 4, dtype=torch.bfloat16, requires_grad=True)
    assert not matmul_is_faster(long, long)
    assert not matmul_is_faster(short.to("meta"), short.to("meta"))


def test_products_are_for_few_queries_over_many_keys_that_are_decoded_in_bfloat16():
    query, keys = torch.randn(64, 2, 1, 4, dtype=torch.bfloat16), torch.randn(64, 2, 8, 4, dtype=torch.bfloat16)
    assert matmul_is_faster(query, keys)
    assert not matmul_is_faster(query.float(), keys.float())
    assert not matmul_is_faster(query[:1], keys[:1])
    assert not matmul_is_faster(keys.expand(64, 2, 8, 4).repeat(1, 1, 3, 1), keys)


def test_a_cache_in_float32_attends_as_in_float64():
    keys_values = torch.randn(3, 6, 16, dtype=torch.bfloat16)
    query = torch.randn(3, 2, 1, 4, dtype=torch.bfloat16)
    with torch.no_grad():
        held = cached(keys_values)
        assert held.dtype == torch.float32
        keys, values = (each.unflatten(-1, (2, 4)).transpose(1, 2) for each in held.chunk(2, dim=-1))
        attend = attention_kernel(query, keys)
        assert attend is mixed_attention
        exact = torch.nn.functional.scaled_dot_product_attention(query.double(), keys.double(), values.double())
        for autocast in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                attended = attend(query, keys, values)
            assert attended.dtype == torch.bfloat16
            torch.testing.assert_close(attended, exact.bfloat16(), rtol=1e-2, atol=1e-3)


def test_a_cache_with_gradients_or_in_other_dtypes_is_as_computed():
    keys_values = torch.randn(2, 4, dtype=torch.bfloat16)
    assert cached(keys_values) is keys_values
    with torch.no_grad():
        for other in (keys_values.float(), keys_values.double(), keys_values.to("meta")):
            assert cached(other) is other


def test_autocast_casts_the_input_once():
    x = torch.randn(2, 3)
    assert cast_for_autocast(x) is x
    with torch.autocast("cpu", torch.bfloat16):
        assert cast_for_autocast(x).dtype == torch.bfloat16
        assert cast_for_autocast(x.double()).dtype == torch.float64
