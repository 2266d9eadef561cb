"""The last blocks and what follows them are trained, whatever the tower comes from; the rest stays as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.test_task import fit, make_task
from velm.errors import ConfigError
from velm.registry import image_encoders, text_encoders
from velm.training.fine_tuning.depth import parameter_depths, repeated_blocks
from velm.training.fine_tuning.train_last import eval_frozen_layers, freeze_all_but_last

pytestmark = pytest.mark.filterwarnings("ignore")

TINY_BERT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
TINY_CLIP = {**TINY_BERT, "image_size": 32, "patch_size": 16}
IMAGE = {
    "vit": {"name": "vit", "dim": 16, "depth": 3, "heads": 2, "patch_size": 8, "pooling": "class", "dropout": 0.1},
    "cnn": {"name": "cnn", "dim": 16, "widths": [8, 8], "norm": "batch", "depth": 3},
    "hf": {"name": "hf/clip_vision_model", "config": TINY_CLIP, "dim": 8, "pooling": "attention"},
    "timm": {"name": "timm/test_vit", "dim": 8},
}
TEXT = {
    "transformer": {"name": "transformer", "dim": 16, "depth": 3, "heads": 2, "dropout": 0.1},
    "hf": {"name": "hf/bert", "config": TINY_BERT, "dim": 8},
    "hf positions": {"name": "hf/mpnet", "config": TINY_BERT},
}


def tower(kind: str, name: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "image":
        if name == "timm":
            pytest.importorskip("timm")
        return image_encoders.build(IMAGE[name])
    return text_encoders.build(TEXT[name], vocab_size=20, pad_id=0)


def trained(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}


TOWERS = [*(("image", name) for name in IMAGE), *(("text", name) for name in TEXT)]


@pytest.mark.parametrize(("kind", "name"), TOWERS, ids=[" ".join(each) for each in TOWERS])
def test_each_block_more_trains_its_parameters_and_no_others(kind: str, name: str) -> None:
    whole = tower(kind, name)
    blocks = repeated_blocks(whole)
    names = {id(p): n for n, p in whole.named_parameters()}
    before, former = trained(whole), set()
    for count in range(len(blocks) + 1):
        module = tower(kind, name)
        freeze_all_but_last({"tower": module}, {"tower": count})
        now = trained(module)
        inside = {names[id(p)] for p in blocks[len(blocks) - count].parameters()} & before if count else set()
        assert now - former == inside if count else True
        assert now <= before
        former = now
    outside = before - {names[id(p)] for block in blocks for p in block.parameters()}
    assert not {n for n in former if "embedding" in n or n.startswith(("patches", "positions", "class_token"))}
    assert {n for n in outside if n.startswith(("norm", "pooling", "projection"))} <= former


@pytest.mark.parametrize(("kind", "name"), TOWERS, ids=[" ".join(each) for each in TOWERS])
@pytest.mark.parametrize("count", [0, 1])
def test_the_backward_pass_ends_above_the_frozen_layers(kind: str, name: str, count: int) -> None:
    module = tower(kind, name)
    freeze_all_but_last({"tower": module}, {"tower": count})
    last, inputs = repeated_blocks(module)[-1], []
    last.register_forward_pre_hook(lambda _, values: inputs.append(values[0].requires_grad))
    side = 160 if name == "timm" else 32
    tokens = torch.randint(5, 20, (2, 7))
    given = (torch.rand(2, 3, side, side),) if kind == "image" else (tokens, torch.ones(2, 7, dtype=torch.bool))
    assert module(*given).pooled.requires_grad == any(parameter.requires_grad for parameter in module.parameters())
    assert inputs == [False]


@pytest.mark.parametrize(("kind", "name"), TOWERS, ids=[" ".join(each) for each in TOWERS])
def test_what_comes_before_is_in_eval_mode(kind: str, name: str) -> None:
    module = tower(kind, name)
    blocks = repeated_blocks(module)
    for count in (0, 1, len(blocks)):
        module.train()
        eval_frozen_layers(module, count)
        first = len(blocks) - count
        modes = [{part.training for part in block.modules() if list(part.parameters())} for block in blocks]
        assert modes == [{False}] * first + [{True}] * count
        dropouts = {n: part.training for n, part in module.named_modules() if isinstance(part, nn.Dropout)}
        before = [mode for n, mode in dropouts.items() if n in ("dropout", "model.embeddings.dropout")]
        assert not any(before) or name == "cnn"


def test_embeddings_behind_the_blocks_are_embeddings() -> None:
    """MPNet registers the relative positions of all blocks after them."""
    depths = parameter_depths(tower("text", "hf positions"))
    assert depths["model.encoder.relative_attention_bias.weight"] == 0
    assert max(depths.values()) <= 4


def test_a_norm_at_the_end_of_a_list_is_no_block() -> None:
    assert {type(block).__name__ for block in repeated_blocks(tower("image", "cnn"))} == {"_Block"}


def test_steps_change_what_is_trained_and_no_statistics_of_the_rest(tmp_path: Path) -> None:
    options = {
        "image_encoder": {**IMAGE["cnn"], "dropout": 0.5},
        "text_encoder": TEXT["transformer"],
        "decoder": {"name": "transformer", "dim": 16, "depth": 2, "heads": 2},
        "train_last": {"image_encoder": 1, "text_encoder": 0, "decoder": 0},
    }
    task = make_task(**options)
    before = {name: tensor.clone() for name, tensor in task.model.state_dict().items()}
    fit(task, tmp_path)
    changed = {n for n, tensor in task.model.state_dict().items() if not torch.equal(tensor, before[n])}
    image = {n.removeprefix("image_encoder.") for n in changed if n.startswith("image_encoder.")}
    assert image
    assert {n.split(".")[0] for n in image} == {"blocks"}
    last = {n.split(".")[1] for n in image}
    assert last == {"2", "3"}  # the last block and the norm behind it
    assert any("running_mean" in n for n in image)
    assert {n for n in changed if n.startswith("text_encoder.")} == {
        "text_encoder.norm.weight",
        "text_encoder.norm.bias",
    }
    assert "decoder.embedding.weight" not in changed  # the output matrix is the embedding
    assert "decoder.norm.weight" in changed
    assert "image_projection.weight" in changed


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"train_last": {"encoder": 1}}, "model.train_last names 'encoder'; the model's parts are image_encoder, "),
        ({"train_last": {"text_encoder": 1}}, "model.train_last.text_encoder is 1, but RNNEncoder has no repeated bl"),
        ({"train_last": {"image_encoder": 9}}, "is 9, and CNNEncoder has 5 blocks: give a number from 0"),
        ({"train_last": {"image_encoder": -1}}, "is -1, and CNNEncoder has 5 blocks"),
        (
            {"train_last": {"image_encoder": 1}, "freeze": ["image_encoder"]},
            "model.freeze and model.train_last both name image_encoder: take it out of model.freeze",
        ),
        (
            {"image_encoder": {**IMAGE["hf"], "trainable": False}, "train_last": {"image_encoder": 1}},
            "these blocks are frozen by an option of the image_encoder, such as `trainable`: leave one of the two out",
        ),
    ],
    ids=["name", "rnn", "many", "negative", "freeze", "trainable"],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match="train_last") as error:
        make_task(**{"image_encoder": IMAGE["cnn"], **options})
    assert says in str(error.value)
