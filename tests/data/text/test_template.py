"""Laws of templates: prompt and target are the whole text, tokenized at once and cut where the answer begins."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from velm.data.batches.lengths import fit_answer
from velm.data.text.bpe import BPETokenizer
from velm.data.text.hf import HFTokenizer
from velm.data.text.template import PromptIds, Template
from velm.data.text.word import WordTokenizer
from velm.errors import ConfigError, DataError

CHAT = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<image>")
WORDS = [
    "what colour is the large red star?",
    "Question: where? Answer: left of it",
    "user assistant blue :)",
    "yes. no.",
]
HISTORY = [("what colour?", "red."), ("where :", "left")]


def train(words: bool = False) -> Tokenizer:
    """A byte-level BPE; unless it cuts into words, it merges over blanks, so that pieces differ from the whole."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator(WORDS * 4, trainer)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return backend


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def write(eos: str = "<|im_end|>", chat: str | None = CHAT, words: bool = False) -> str:
        path = tmp_path_factory.mktemp("tokenizer")
        own = PreTrainedTokenizerFast(
            tokenizer_object=train(words), bos_token="<s>", eos_token=eos, pad_token="</s>", chat_template=chat
        )
        own.save_pretrained(path)
        return str(path)

    return write


@pytest.fixture(scope="module")
def chat_folder(folder):
    return folder()


@pytest.fixture
def tokenizer(chat_folder) -> HFTokenizer:
    return HFTokenizer(model_name=chat_folder)


def ids_of(text: str) -> list[int]:
    return train().encode(text).ids


@pytest.mark.parametrize("template", ["Question: {text} Answer:", "<s>USER: {image}\n{text} ASSISTANT:", "{text}\n"])
def test_prompt_and_target_are_the_whole_text_tokenized_at_once(tokenizer, template):
    made = Template(template, tokenizer)
    prompt, target, learnt = made.sample("what colour?", "blue")
    whole = template if "{image}" in template else "{image}" + template
    text = whole.replace("{image}", "<image>").replace("{text}", "what colour?") + made.lead + "blue" + "<|im_end|>"
    image = tokenizer.to_ids_of_parts(["<image>"])[0]
    assert [*prompt.before, *image, *prompt.after, *target[1:]] == ids_of(text)
    assert target[0] == tokenizer.bos_id
    assert target[-1] == tokenizer.eos_id
    assert learnt == [False, *[True] * (len(target) - 1)]


def test_a_token_over_the_seam_is_the_answers(tokenizer):
    joined = ids_of(" Answer: left")
    pieces = [*ids_of(" Answer:"), *ids_of(" left")]
    assert joined != pieces  # this tokenizer merges over the seam
    prompt, target, _ = Template("{image} Answer:", tokenizer).sample("", "left")
    assert [*prompt.after, *target[1:-1]] == joined


@pytest.mark.parametrize("kind", ["hf", "bpe", "word"])
def test_the_prompt_alone_is_that_of_the_sample(kind, folder):
    tokenizer = {"hf": None, "bpe": BPETokenizer(vocab_size=300), "word": WordTokenizer(min_frequency=1)}[kind]
    if tokenizer is None:
        tokenizer = HFTokenizer(model_name=folder(words=True))
    else:
        tokenizer.train([*WORDS, "Question: Answer:"])
    for template in ("Question: {text} Answer:", *(["chat"] if kind == "hf" else [])):
        made = Template(template, tokenizer)
        for history in ((), HISTORY):
            prompt, target, _ = made.sample("what colour is the star?", "blue", history)
            assert prompt == made.prompt("what colour is the star?", history)
            assert tokenizer.decode(target) == "blue"


def test_a_chat_is_that_of_transformers(tokenizer, chat_folder):
    own = PreTrainedTokenizerFast.from_pretrained(chat_folder)
    made = Template("chat", tokenizer)
    messages = []
    for question, answer in [*HISTORY, ("which?", "that")]:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    expected = own.apply_chat_template(messages, return_assistant_tokens_mask=True, return_dict=True)
    prompt, target, learnt = made.sample("which?", "that", HISTORY, all_turns=True)
    found = [*prompt.before, *prompt.after, *target[1:]]
    assert found == expected["input_ids"][: len(found)]  # the template writes a line break behind the last turn
    mask = [False] * (len(prompt.before) + len(prompt.after)) + learnt[1:]
    assert mask == [bool(each) for each in expected["assistant_masks"][: len(found)]]
    alone = own.apply_chat_template(messages[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
    asked = made.prompt("which?", HISTORY)
    assert [*asked.before, *asked.after] == alone


def test_every_turn_repeats_the_template_and_its_answer_is_learnt_with_eos(folder):
    tokenizer = HFTokenizer(model_name=folder(words=True))
    made = Template("<s>USER: {image}\n{text} ASSISTANT:", tokenizer)
    prompt, target, learnt = made.sample("which?", "that", HISTORY, all_turns=True)
    assert prompt == made.prompt(HISTORY[0][0])
    text = tokenizer._backend.decode(target[1:], skip_special_tokens=False)
    end = "<|im_end|>"
    assert text == f" red.{end}USER: where : ASSISTANT: left{end}USER: which? ASSISTANT: that{end}"
    answers = [token for token, each in zip(target, learnt, strict=True) if each]
    assert tokenizer._backend.decode(answers, skip_special_tokens=False) == f" red.{end} left{end} that{end}"
    last, _, everything = made.sample("which?", "that", HISTORY)
    assert all(everything[1:])
    assert len(last.before) + len(last.after) > len(prompt.before) + len(prompt.after)


def test_the_tokens_around_an_image_are_left_out_with_it(folder):
    tokenizer = HFTokenizer(model_name=folder(words=True))
    made = Template("<|im_start|>User:<image></s>{image}<image>{text}<|im_end|>\nAssistant:", tokenizer)
    _, target, _ = made.sample("which?", "that", HISTORY[:1], all_turns=True)
    text = tokenizer._backend.decode(target[1:], skip_special_tokens=False)
    assert text == " red.<|im_end|><|im_start|>User:which?<|im_end|>\nAssistant: that<|im_end|>"


def test_a_tokenizer_that_begins_with_bos_does_so_in_a_prompt_once(tokenizer):
    tokenizer.start_text = "<s>"
    (bos,) = tokenizer.to_ids_of_parts(["<s>"])[0]
    assert Template("Q: {text} A:", tokenizer).prompt("x").before == [bos]
    written = Template("{image}<s>{text}\n", tokenizer).prompt("x")
    assert (written.before, written.after.count(bos)) == ([], 1)


def test_a_tokenizer_from_its_state_makes_the_same_prompts(tokenizer):
    tokenizer.start_text = "<s>"
    again = HFTokenizer.from_state(tokenizer.state())
    for template in ("chat", "Q: {text} A:"):
        assert Template(template, again).sample("a", "b", HISTORY) == Template(template, tokenizer).sample(
            "a", "b", HISTORY
        )


def test_a_text_with_a_special_token_is_refused_by_name(tokenizer):
    with pytest.raises(DataError, match=r"'ignore this<\|im_end\|>' contains '<\|im_end\|>'"):
        Template("chat", tokenizer).prompt("ignore this<|im_end|>")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("Q: {question} A:", r"has the places \{question\}; it takes \{text\} and \{image\}"),
        ("{text} {text}", "each once"),
        ("  ", "is empty"),
    ],
)
def test_a_template_that_is_none_is_refused(template, message, tokenizer):
    with pytest.raises(ConfigError, match=message):
        Template(template, tokenizer)


def test_a_tokenizer_without_a_chat_template_says_what_to_do(folder):
    words = WordTokenizer(min_frequency=1)
    words.train(WORDS)
    for tokenizer in (words, HFTokenizer(model_name=folder(chat=None))):
        with pytest.raises(ConfigError, match=r"the tokenizer has no chat template.*'Question: \{text\} Answer:'"):
            Template("chat", tokenizer)


def test_turns_that_end_otherwise_than_texts_are_told_and_mended_by_eos(folder):
    path = folder(eos="</s>")
    with pytest.raises(ConfigError, match=r"ends an answer with '<\|im_end\|>'.*set data.tokenizer.eos to"):
        Template("chat", HFTokenizer(model_name=path))
    mended = HFTokenizer(model_name=path, eos="<|im_end|>")
    assert Template("chat", mended).sample("a", "b")[1][-1] == mended.eos_id
    with pytest.raises(ValueError, match="eos is '<end>', and the tokenizer has no such token"):
        HFTokenizer(model_name=path, eos="<end>")


def test_a_chat_template_that_drops_what_is_said_is_refused(folder):
    tokenizer = HFTokenizer(model_name=folder(chat="{{ messages[0]['content'] }}"))
    with pytest.raises(ConfigError, match="does not repeat each message once"):
        Template("chat", tokenizer)


PROMPT = PromptIds([5], [6, 7, 8])


@pytest.mark.parametrize("length", range(4, 12))
def test_prompt_and_target_fit_or_the_sample_is_refused(length):
    target, learnt = [1, 20, 21, 22, 2], [False, True, True, True, True]
    if length < 7:  # 4 of the prompt, bos, a token of the answer, eos
        with pytest.raises(DataError, match=f"the prompt has 4 tokens, and max_length {length} leaves no room"):
            fit_answer(PROMPT, target, learnt, length)
        return
    fitted = fit_answer(PROMPT, target, learnt, length)
    assert len(PROMPT.before) + len(PROMPT.after) + len(fitted["target"]) == min(length, 9)
    assert fitted["target"][-1] == 2
    assert fitted["learnt"] is None


def test_a_conversation_is_cut_anywhere_but_an_answer_still_ends():
    target = [1, 20, 2, 30, 31, 32, 21, 22, 2]
    learnt = [False, True, True, False, False, False, True, True, True]
    asked = fit_answer(PROMPT, target, learnt, 9)
    assert (asked["target"], asked["learnt"]) == (target[:5], learnt[:5])
    answered = fit_answer(PROMPT, target, learnt, 11)
    assert (answered["target"], answered["learnt"]) == ([*target[:6], 2], learnt[:7])
