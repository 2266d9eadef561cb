from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from velm.data.text.base import Tokenizer
from velm.data.text.bpe import BPETokenizer, ByteTokenizer
from velm.data.text.hf import HFTokenizer
from velm.data.text.word import WordTokenizer

TEXTS = [
    "A dog runs on the grass .",
    "The dog's tri-colored coat, wet!",
    "Two dogs run; a cat sits.",
    "ein Mädchen läuft (schnell)",
]
ODD = [
    "",
    "   ",
    "<eos>",
    "<pad> <unk> <bos>",
    "naïve 😀 犬",
    "two  spaces",
    "UPPER lower",
    "e\u0301",
    "a\nb\tc",
    "[SEP] </s>",
]


def folder_of(tmp_path: Path, name: str, **special: str) -> str:
    """A pretrained tokenizer as the hub would hold it: word pieces, and the special tokens that are given."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *"abcdefghijklmnopqrstuvwxyz.,<>[]",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz"),
    ]
    backend = Backend(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.enable_truncation(3)
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(tmp_path / name)
    return str(tmp_path / name)


@pytest.fixture(params=["word", "bpe", "byte", "hf"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    if request.param == "hf":
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
        return HFTokenizer(model_name=folder_of(tmp_path, "bert", **special))
    made = {"word": WordTokenizer, "bpe": lambda: BPETokenizer(vocab_size=300), "byte": ByteTokenizer}[request.param]()
    made.train(TEXTS)
    return made


def test_special_ids_are_distinct_and_in_the_vocabulary(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id]
    assert len(set(ids)) == 4
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.parametrize("text", TEXTS + ODD)
def test_a_sentence_begins_with_bos_and_ends_with_eos_and_holds_no_other_special_id(
    tokenizer: Tokenizer, text: str
) -> None:
    first, *content, last = tokenizer.encode(text)
    assert (first, last) == (tokenizer.bos_id, tokenizer.eos_id)
    assert not {tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id} & set(content)
    assert all(0 <= i < tokenizer.vocab_size for i in content)


@pytest.mark.parametrize("text", TEXTS + ODD)
def test_saved_equals_loaded(tokenizer: Tokenizer, text: str) -> None:
    loaded = type(tokenizer).from_state(json.loads(json.dumps(tokenizer.state())))
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert loaded.vocab_size == tokenizer.vocab_size
    assert (loaded.pad_id, loaded.bos_id, loaded.eos_id, loaded.unk_id) == (
        tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id, tokenizer.unk_id,
    )  # fmt: skip


def test_decoding_stops_at_eos_and_drops_padding(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a cat sits")
    padded = [*ids, tokenizer.pad_id, *ids]
    assert tokenizer.decode(padded) == tokenizer.decode(ids) == "a cat sits"


def test_every_sentence_is_cut_nowhere(tokenizer: Tokenizer) -> None:
    assert len(tokenizer.encode("a " * 200)) >= 202


@pytest.mark.parametrize("text", TEXTS)
def test_words_come_back_in_their_normal_form(text: str) -> None:
    tokenizer = WordTokenizer()
    tokenizer.train(TEXTS)
    back = tokenizer.decode(tokenizer.encode(text))
    assert back == tokenizer.normalise(text)
    assert tokenizer.encode(back) == tokenizer.encode(text)


def test_word_normal_form() -> None:
    tokenizer = WordTokenizer()
    assert tokenizer.normalise("A Dog's tri-colored  coat , wet !") == "a dog's tri-colored coat, wet!"
    assert WordTokenizer(lowercase=False).normalise("A Dog") == "A Dog"


def test_words_are_kept_by_frequency_then_alphabet() -> None:
    tokenizer = WordTokenizer(min_frequency=2, max_size=6)
    tokenizer.train(["b a c", "a b", "c d b"])
    assert tokenizer.vocab_size == 6
    assert tokenizer.encode("b a c d") == [1, 4, 5, 3, 3, 2]
    assert tokenizer.decode([1, 4, 5, 3, 2]) == "b a"


@pytest.mark.parametrize("text", TEXTS + ODD + ["never seen: Ωμέγα"])
def test_bytes_and_byte_pairs_lose_nothing(text: str) -> None:
    bpe = BPETokenizer(vocab_size=300)
    bpe.train(TEXTS)
    assert bpe.decode(bpe.encode(text)) == bpe.normalise(text)
    assert ByteTokenizer().decode(ByteTokenizer().encode(text)) == text


def test_byte_pairs_learn_no_more_than_asked() -> None:
    bpe = BPETokenizer(vocab_size=270, min_frequency=1)
    assert bpe.vocab_size == 270
    bpe.train(TEXTS)
    assert bpe.vocab_size == 270
    assert len(bpe.encode(TEXTS[0])) < len(ByteTokenizer().encode(TEXTS[0]))


@pytest.mark.parametrize("make", [WordTokenizer, lambda: BPETokenizer(vocab_size=300)])
def test_training_is_deterministic_and_takes_an_iterator(make) -> None:
    one, other = make(), make()
    one.train(iter(TEXTS))
    other.train(TEXTS)
    assert one.state() == other.state()


@pytest.mark.parametrize("make", [WordTokenizer, BPETokenizer])
def test_encoding_before_training_says_what_to_do(make) -> None:
    tokenizer = make()
    assert not tokenizer.trained
    for use in (lambda: tokenizer.encode("a"), lambda: tokenizer.decode([1])):
        with pytest.raises(RuntimeError, match=r"has no vocabulary yet. Call train\(texts\)"):
            use()
    assert not type(tokenizer).from_state(tokenizer.state()).trained


def test_training_on_too_little_says_so() -> None:
    with pytest.raises(ValueError, match="None of the 2 words in the training captions occurs min_frequency = 5 times"):
        WordTokenizer(min_frequency=5).train(["a b"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WordTokenizer(min_frequency=0), "min_frequency must be at least 1, got 0"),
        (lambda: WordTokenizer(max_size=4), "max_size must be above 4"),
        (lambda: BPETokenizer(vocab_size=100), "vocab_size must be at least 260"),
        (lambda: BPETokenizer(min_frequency=0), "min_frequency must be at least 1, got 0"),
    ],
)
def test_impossible_options_are_refused(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_pretrained_tokenizer_keeps_its_own_ids(tmp_path: Path) -> None:
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = HFTokenizer(model_name=folder_of(tmp_path, "bert", **special))
    assert (tokenizer.pad_id, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_id) == (0, 1, 2, 3)
    assert tokenizer.vocab_size == 4 + 32 + 26


def test_shared_and_missing_special_tokens_get_new_ids(tmp_path: Path) -> None:
    """As in GPT-2: one token begins, ends and is unknown; there is no padding."""
    same = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "[SEP]")
    tokenizer = HFTokenizer(model_name=folder_of(tmp_path, "gpt", **same))
    assert tokenizer.eos_id == 3
    assert sorted([tokenizer.bos_id, tokenizer.pad_id, tokenizer.unk_id]) == [62, 63, 64]
    assert tokenizer.vocab_size == 65
    assert tokenizer.decode(tokenizer.encode("a cat")) == "a cat"


def test_no_tokenizer_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"No tokenizer could be loaded from .*neither a folder"):
        HFTokenizer(model_name=str(tmp_path / "nothing"))


ASCII = st.text(st.characters(max_codepoint=127), max_size=40)


@settings(max_examples=60, deadline=None)
@given(text=ASCII, lowercase=st.booleans())
def test_ascii_is_cut_into_the_same_words_by_a_shorter_way(text: str, lowercase: bool) -> None:
    """`re`, the splitter of `tokenizers` and the pattern for all scripts agree there."""
    tokenizer = WordTokenizer(lowercase=lowercase)
    splitter = tokenizer._splitter
    cased = splitter.normalizer.normalize_str(text)
    split = [word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(cased)]
    assert tokenizer.words(text) == split == tokenizer._segmented(cased)


def test_length_is_that_of_encode() -> None:
    for tokenizer in (WordTokenizer(), BPETokenizer(vocab_size=300), ByteTokenizer()):
        tokenizer.train(TEXTS)
        assert [tokenizer.length(text) for text in TEXTS + ODD] == [len(tokenizer.encode(text)) for text in TEXTS + ODD]


def test_length_needs_a_vocabulary() -> None:
    with pytest.raises(RuntimeError, match="WordTokenizer has no vocabulary yet"):
        WordTokenizer().length("a dog")
