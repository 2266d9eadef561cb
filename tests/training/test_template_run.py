"""A run whose decoder reads questions as prompts: what it trains on, validates, saves and answers is one thing."""

from __future__ import annotations

import json

import pytest
import torch

import velm
from tests.support.tiny import image_bytes
from velm.errors import ConfigError, DataError, PipelineError
from velm.evaluation.predictions import predict
from velm.generation import log_likelihood
from velm.losses.weighted import build_losses
from velm.model import build_model
from velm.training.config import ValidationConfig
from velm.training.data import VisionLanguageData
from velm.training.matching_data import require_matching_data
from velm.training.run import main
from velm.training.validation import SplitScores

TEMPLATE = "question : {text} answer :"
DECODER = {
    "name": "llm/llama", "template": TEMPLATE,
    "config": {
        "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
        "intermediate_size": 32, "max_position_embeddings": 96,
    },
}  # fmt: skip


def conversations(count: int, turns: int = 2) -> list[dict]:
    said = [("what runs ?", "a dog"), ("how fast ?", "very"), ("where ?", "on grass")]
    return [
        {
            "image": f"{n}.jpg",
            "conversations": [
                {"from": name, "value": text}
                for question, answer in said[: 1 + n % turns]
                for name, text in (("human", question), ("gpt", f"{answer} {n % 3}"))
            ],
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a run on conversations."""
    folder = tmp_path_factory.mktemp("conversations")
    for n in range(12):
        (folder / f"{n}.jpg").write_bytes(image_bytes(n))
    (folder / "data.json").write_text(json.dumps(conversations(12)))
    arguments = {
        "model.image_encoder": {"name": "cnn", "dim": 8},
        "model.decoder": DECODER,
        "model.losses": {"captioning": {}},
        "data.dataset": {
            "name": "llava", "path": str(folder / "data.json"), "use": "conversations", "val_fraction": 0.3,
            "test_fraction": 0.2,
        },
        "data.tokenizer": {"name": "word", "min_frequency": 1},
        "data.image_size": 16, "data.batch_size": 4, "trainer.max_epochs": 2, "trainer.accelerator": "cpu",
        "trainer.default_root_dir": str(folder / "run"), "model.micro_batch_size": 3,
    }  # fmt: skip
    main(
        [
            "fit",
            *(
                f"--{name}={value if isinstance(value, str) else json.dumps(value)}"
                for name, value in arguments.items()
            ),
        ]
    )
    return folder


def data_of(folder, **options) -> VisionLanguageData:
    dataset = {"name": "llava", "path": str(folder / "data.json"), "use": "conversations"}
    dataset |= {"val_fraction": 0.3, "test_fraction": 0.2}
    tokenizer = {"name": "word", "min_frequency": 1}
    given = {"dataset": dataset, "tokenizer": tokenizer, "image_size": 16, "batch_size": 4, "template": TEMPLATE}
    return VisionLanguageData(**{**given, **options})


def test_the_checkpoint_answers_with_the_whole_conversation_before_it(run):
    pipeline = velm.load(run / "run" / "best.ckpt")
    assert pipeline.model.reads == ("image", "text")
    records = [record for record in data_of(run).records("train") if record.history(0)]
    rows = predict(pipeline, records, max_length=4).captions.rows
    for row, record in zip(rows, records, strict=True):
        text, prompt = pipeline.read_texts([record.texts[0]], [record.history(0)])
        assert text is None
        image = next(pipeline.encode_images([record.image], batch_size=1))
        alone = pipeline.write(image, None, pipeline.generation_config(max_length=4), prompt)[0][0].text
        assert row.caption == alone
        assert row.references == record.targets
    answers = pipeline.caption([records[0].image], ["where ?"], num_beams=2)
    assert answers == pipeline.caption([records[0].image], ["where ?"], num_beams=2, batch_size=1)
    assert (
        "".join(pipeline.stream_caption(records[0].image, "where ?"))
        == pipeline.caption([records[0].image], ["where ?"])[0]
    )


def test_the_loss_of_a_conversation_is_that_of_its_answers(run):
    """The likelihood of each answer behind its own prompt, summed, is the loss of the sample that learns them all."""
    pipeline = velm.load(run / "run" / "best.ckpt")
    items = data_of(run).train_items()
    total, count = 0.0, 0
    batch = items  # one sample after the other
    for index, record in enumerate(data_of(run).records("train")):
        image = next(pipeline.encode_images([record.image], batch_size=1))
        turns = [*record.history(0), (record.texts[0], record.targets[0])]
        for place, (question, answer) in enumerate(turns):
            _, prompt = pipeline.read_texts([question], [turns[:place]])
            tokens, mask = pipeline.tokenize([answer])
            memory = pipeline.memory(image, None, prompt)
            total -= float(log_likelihood(pipeline.model.decoder, tokens, mask, *memory))
            count += tokens.shape[1] - 1
        assert batch[index].learnt is None or len(turns) > 1
    data = data_of(run)
    collated = data._options(items)["collate_fn"](items.__getitems__(list(range(len(items)))))
    with torch.no_grad():
        output = pipeline.model(collated, {"decoder"})
        logits = output.output_projection(output.decoder.hidden)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), output.labels.flatten(), reduction="sum")
    assert int(collated.predicted()) == count
    assert float(loss) == pytest.approx(total, rel=1e-4)


def test_micro_batches_hold_the_same_prompts_and_labels(run):
    data = data_of(run)
    items = data.train_items()
    batch = data._options(items)["collate_fn"](items.__getitems__(list(range(len(items)))))
    parts = batch.micro_batches(2)
    assert sum(int(part.predicted()) for part in parts) == int(batch.predicted())
    for number, part in enumerate(parts):
        content = part.prompt.after[part.prompt.after_mask]
        rows = slice(2 * number, 2 * number + 2)
        assert content.equal(batch.prompt.after[rows][batch.prompt.after_mask[rows]])


def test_a_prompt_that_leaves_no_answer_is_a_bad_sample_by_name(run):
    data = data_of(run, max_length=9)  # a prompt of seven tokens or more, bos, a token, eos
    items = data.train_items()
    items.replace = False
    found = items.__getitems__(list(range(len(items))))
    bad = [each for each in found if not hasattr(each, "tokens")]
    assert bad
    assert all("leaves no room for an answer" in each.cause for each in bad)
    assert all(each.path.endswith(".jpg") for each in bad)


def test_conversations_need_a_causal_prefix(run):
    decoder = {**DECODER, "prefix_attention": "bidirectional"}
    model = build_model({"image_encoder": {"name": "cnn", "dim": 8}, "decoder": decoder, "vocab_size": 30})
    with pytest.raises(ConfigError, match=r"several turns.* Set it to causal, or data.dataset.use to answers"):
        require_matching_data(model, {"decoder"}, data_of(run))


def test_a_validation_without_a_usable_sample_says_where_they_are_named(run):
    data = data_of(run)
    pipeline = velm.load(run / "run" / "best.ckpt")
    losses = build_losses({"captioning": {}}, embed_dim=8)
    with pytest.raises(DataError, match=r"None of the samples of the split could be used.*quarantine.jsonl"):
        SplitScores(pipeline, data.records("val"), losses, ValidationConfig()).compute()


def test_what_cannot_be_asked_is_told(run):
    pipeline = velm.load(run / "run" / "best.ckpt")
    image = next(iter(data_of(run).records("train"))).image
    with pytest.raises(PipelineError, match=r"attends over image and text: give images=\[...\] and texts"):
        pipeline.caption([image])
    pipeline.prompter.max_length = 9
    with pytest.warns(UserWarning, match="1 of 1 prompts are longer than the 9 tokens"):
        pipeline.caption([image], ["what runs " * 9])
    pipeline.prompter.max_length = 5
    with pytest.raises(PipelineError, match=r"texts\[0\]: the prompt has \d+ tokens, and the model was trained with 5"):
        pipeline.caption([image], ["what"])
