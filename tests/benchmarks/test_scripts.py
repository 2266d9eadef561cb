from __future__ import annotations

import csv
import importlib.util
import json
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image

from benchmarks.harness.workload import Settings
from benchmarks.workloads import contrastive, data, retrieval


def benchmark(name: str) -> ModuleType:
    path = Path(__file__).parents[2] / "benchmarks" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_corpus_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, second = (data.make_corpus(tmp_path / name, 2, 50, 37, 1.0) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert first[0].read_bytes() != first[1].read_bytes()
    assert Image.open(first[0]).size == (50, 37)


def test_both_sides_read_the_same_images_and_texts(tmp_path: Path) -> None:
    data.write_tables(tmp_path, data.make_corpus(tmp_path, 3, 50, 37, 1.0))
    with open(tmp_path / "ours.csv") as ours, open(tmp_path / "theirs.csv") as theirs:
        (_, *mine), (header, *yours) = csv.reader(ours), csv.reader(theirs, delimiter="\t")
    assert mine == yours
    assert len(mine) == 3
    assert header == ["filepath", "title"]


def test_our_side_is_the_shipped_loader(tmp_path: Path) -> None:
    data.write_tables(tmp_path, data.make_corpus(tmp_path, 4, 300, 240, 1.0))
    batches = list(data.our_loader(tmp_path, batch_size=2, workers=0))
    assert [batch.images.shape for batch in batches] == [(2, 3, data.SIZE, data.SIZE)] * 2
    assert batches[0].images.dtype == torch.uint8
    normalised = data.normaliser()(batches[0].images)
    assert normalised.dtype == torch.float32
    assert normalised.abs().max() < 4


def test_both_definitions_of_recall_agree() -> None:
    embeddings = retrieval.made(150)
    assert retrieval.one_hot_recall(*embeddings) == pytest.approx(retrieval.ours(*embeddings))
    assert 0 < retrieval.ours(*embeddings)["text_to_image/recall@1"] <= 1


def test_captions_are_compared_where_there_is_java(tmp_path: Path) -> None:
    pytest.importorskip("pycocoevalcap", reason="pip install 'velm[metrics]' to compare with it")
    if shutil.which("java") is None:
        pytest.skip("no Java")
    captions = benchmark("captions")
    rows = [["image_id", "text"], ["0", "A dog runs ."], ["0", "a dog can't run"], ["1", "a cat"], ["1", "the cat!"]]
    with open(tmp_path / "captions.csv", "w", newline="") as file:
        csv.writer(file).writerows([*rows, ["2", "alone"]])
    found = captions.compare(captions.read(str(tmp_path / "captions.csv")))
    assert (found["images"], found["captions"], found["cut otherwise"]) == (3, 5, 0)
    assert all(abs(row["difference"]) < 1e-9 for row in found["metrics"].values())


def test_masked_words_are_the_listed_ones(tmp_path: Path) -> None:
    """Restored, a masked row is the row; what is not masked is in no row of test."""
    masked_words = benchmark("masked_words")
    texts = {"train": "A Black dog, a red-haired man in a WHITE t-shirt.", "val": "Two dogs.", "test": "Two run fast."}
    with open(tmp_path / "all.csv", "w", newline="") as file:
        csv.writer(file).writerows([["en", "de", "split"], *([text, "x", split] for split, text in texts.items())])
    arguments = ["table", str(tmp_path / "all.csv"), str(tmp_path / "out.csv"), "--column", "en"]
    masked_words.main([*arguments, "--words", "colours", "entities", "--originals"])
    with open(tmp_path / "out.csv") as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["en"]) for row in rows] == [
        ("train", texts["train"]),
        ("train", "A [v] dog, a red-haired man in a [v] t-shirt."),
        ("train", "A Black [v], a red-haired [v] in a WHITE [v]."),
        ("val", "Two dogs."),
        ("val", "Two [v]."),
    ]
    for row in rows:
        restored = row["en"]
        for word in row["masked"].split():
            restored = restored.replace("[v]", word, 1)
        assert restored == texts[row["split"]]
    with pytest.raises(SystemExit, match="has the columns en, de, split, not text"):
        masked_words.main([*arguments[:3]])


def test_recovered_colours_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masked_words = benchmark("masked_words")
    reference = "Ein Mann in rotem Hemd und ein schwarz-weißer Hund."
    for name, captions in {"a": [reference, "x", reference], "b": ["Ein roter Hund, rot und rot.", "x", "y"]}.items():
        rows = zip(["A [v]", "A man", "[v] [v]"], captions, strict=True)
        lines = [json.dumps({"text": text, "caption": c, "references": [reference]}) for text, c in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    first, second = (masked_words.read_recovered(tmp_path / f"{name}.jsonl") for name in "ab")
    assert first.tolist() == [[3, 3], [3, 3]]
    assert second.tolist() == [[3, 1], [3, 0]]  # a colour counts as often as the reference has it
    assert masked_words.recovered(first, first) == (0, 0, 0)
    masked_words.main(["recovered", str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl")])
    assert "difference: 0.833 (0.667 to 1.000)" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["contrastive", "sigmoid"])
def test_both_alignment_losses_are_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("open_clip", reason="pip install 'velm[bench]'")
    assert max(contrastive.apart(name, 96, 16).values()) < 1e-4
    monkeypatch.setattr(contrastive, "peer", lambda _: lambda image, text: (image * text).sum())
    with pytest.raises(AssertionError, match="'value'"):
        contrastive.prove(name, Settings())


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ddp", "ddp, micro-batches", "fsdp2", "fsdp2, micro-batches"])
def test_a_plan_knows_every_byte_that_two_processes_send(layout: str) -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # the processes import it too
    try:
        import scaling

        found = scaling.measured(2, layout, steps=1)
    finally:
        sys.path.pop(0)
    assert found["counted"] == found["predicted"]


def test_a_trimmed_vocabulary_gives_the_same_vectors(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel

    from velm.data.text.hf import HFTokenizer
    from velm.encoders.huggingface import HFTextEncoder

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "b", "cat", "##s", "a", "dog", "bird", "runs"]
    backend = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens(words[:4])
    backend.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    model = tmp_path / "model"
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(words), hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=8)  # fmt: skip
    BertModel(config).save_pretrained(model)
    backend.save(str(model / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    (model / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names}))

    texts = ["a dog runs", "a dog", "dog runs", "cats"]
    kept = benchmark("trim_vocabulary").trim(model, tmp_path / "trimmed", texts, 2)
    assert kept == len({*words[:4], "b", "##s", "a", "dog", "runs"})
    vectors = []
    for folder in (model, tmp_path / "trimmed"):
        tokenizer = HFTokenizer(model_name=str(folder))
        encoder = HFTextEncoder(model_name=str(folder), vocab_size=tokenizer.vocab_size, pad_id=tokenizer.pad_id).eval()
        tokens = torch.tensor([tokenizer.encode("a dog runs")])
        vectors.append(encoder(tokens, torch.ones_like(tokens, dtype=torch.bool)).pooled)
    assert torch.equal(*vectors)


def test_a_tower_is_measured_in_both_precisions() -> None:
    towers = benchmark("image_towers")
    for case in (towers.ENCODING[0], towers.ENCODING[-1]):
        assert towers.measure("torchvision/mobilenet_v2", 1, case, train=False) > 0
    assert towers.measure("torchvision/mobilenet_v2", 2, towers.TRAINING[1], train=True) > 0


def test_renamed_weights_of_efficientnet_compute_the_same() -> None:
    timm = pytest.importorskip("timm")
    script = benchmark("efficientnet_lite")
    torch.manual_seed(0)
    theirs, ours = (timm.create_model("efficientnet_lite1").eval().double() for _ in range(2))
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = script.OWN_EPS
            torch.nn.init.uniform_(module.running_var, 0.1, 1.0)
    name, weights = script.renamed({f"_{name}": tensor for name, tensor in theirs.state_dict().items()})
    assert name == "efficientnet_lite1"
    ours.load_state_dict(weights)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(image), theirs(image))
    with pytest.raises(SystemExit, match="These 1 tensors have not the shapes of efficientnet_lite0, "):
        script.renamed({"weight": torch.zeros(3)})
