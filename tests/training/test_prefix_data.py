"""What a language model behind an image cannot read or write is said before training, by `velm doctor` too."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import pytest
import torch

from velm.doctor.examine import examine
from velm.errors import ConfigError
from velm.model import build_model
from velm.training.matching_data import require_matching_data
from velm.training.run import parse_fit

LLAMA = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
    "intermediate_size": 16,
}  # fmt: skip
QUESTION = "Question: {text} Answer:"


def check(places: int = 256, has_target: bool = False, eos_id: int = 2, max_length: int = 20, **decoder) -> None:
    """64 positions of the image; `places` of the model."""
    config = {**LLAMA, "max_position_embeddings": places}
    model = build_model(
        {
            "image_encoder": {"name": "cnn", "dim": 16, "widths": [8]},
            "decoder": {"name": "llm/llama", "config": config, **decoder},
            "losses": {"captioning": None},
            "vocab_size": 32,
        }
    ).train()
    random = torch.get_rng_state()
    tokenizer = SimpleNamespace(pad_id=0, eos_id=eos_id, unk_id=3)
    data = SimpleNamespace(has_target=has_target, tokenizer=tokenizer, max_length=max_length, image_size=32)
    try:
        require_matching_data(model, {"decoder"}, data)
    finally:
        assert model.image_encoder.training
        assert torch.equal(random, torch.get_rng_state())


def test_what_fits_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check()
        check(template="Describe the image.")
        check(template=QUESTION, has_target=True)
        check(template="chat", has_target=True)


@pytest.mark.parametrize("template", [QUESTION, "chat"])
def test_the_answer_may_not_stand_in_the_prompt(template):
    with pytest.raises(ConfigError, match="data has no targets, so the caption to write would stand in the prompt"):
        check(template=template)


@pytest.mark.parametrize("template", [None, "Answer the question."])
def test_questions_that_are_not_read_are_a_warning(template):
    with pytest.warns(UserWarning, match="every text of an image has the same prompt. To read the texts: decoder"):
        check(template=template, has_target=True)


def test_padding_is_no_end():
    with pytest.raises(ConfigError, match="pad and eos are both token 0"):
        check(eos_id=0)


def test_the_context_holds_the_image_and_the_text():
    check(places=64 + 19)
    with pytest.raises(ConfigError, match=r"takes 64 positions and a text up to 20 .*holds 82 .*max_length to 19"):
        check(places=64 + 18)
    check(places=16 + 19, shuffle=2)
    check(places=3 + 19, projector="resampler", prefix_tokens=3)
    with pytest.raises(ConfigError, match=r"holds 40 .*: join positions of the image .* or lower data.max_length\."):
        check(places=40)


def test_joined_squares_fit_the_grid():
    with pytest.raises(ConfigError, match="shuffle 3 joins squares of 3 x 3 positions, and the memory has 64"):
        check(shuffle=3)


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ('{"template": "Question: {text} Answer:"}', "the caption to write would stand in the prompt"),
        ('{"shuffle": 3}', "shuffle 3 joins squares"),
        ('{"config": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, '
         '"max_position_embeddings": 24}}', "and the decoder holds 24"),
    ],
)  # fmt: skip
def test_the_doctor_says_the_same(option, says):
    config = parse_fit(
        [
            "--config=configs/quickstart.yaml",
            "--model.losses={captioning: {}}",
            '--model.decoder={"name": "llm/llama", "config": {"hidden_size": 16, "num_hidden_layers": 1, '
            '"num_attention_heads": 2, "intermediate_size": 16}}',
            *(f"--model.decoder.{name}={value}" for name, value in eval_json(option).items()),
            "--data.dataset={name: shapes, train_size: 8, val_size: 2, test_size: 2, heldout_size: 0, image_size: 32}",
            "--data.batch_size=4",
        ]
    )
    errors = [finding.message for finding in examine(config) if finding.severity == "error"]
    assert any(says in message for message in errors), errors


def eval_json(text: str) -> dict[str, str]:
    import json

    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in json.loads(text).items()}
