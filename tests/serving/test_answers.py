"""The answers of the server: those of the pipeline, whatever else is asked at the same time."""

from __future__ import annotations

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from served import TEXTS, data_url, image_part, png, tiny_pipeline

from velm.explain.explanation import explain
from velm.search import Index, update
from velm.search.sources import folder_source


def vectors(response):
    assert response.status_code == 200, response.text
    return np.array([each["embedding"] for each in response.json()["data"]])


def events(response):
    """The events of a stream, without the last one, [DONE]."""
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert response.headers["content-type"].startswith("text/event-stream")
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def image(seed=0):
    return Image.open(io.BytesIO(png(seed)))


def test_embeddings_are_those_of_the_pipeline_in_the_order_of_the_inputs(served):
    inputs = [TEXTS[0], image_part(1), {"type": "text", "text": TEXTS[1]}, image_part(2)]
    response = served.post("/v1/embeddings", input=inputs)
    texts, images = served.pipeline.embed_texts(TEXTS[:2]), served.pipeline.embed_images([image(1), image(2)])
    expected = torch.stack([texts[0], images[0], texts[1], images[1]]).numpy()
    np.testing.assert_allclose(vectors(response), expected, atol=1e-6)
    content = response.json()
    assert [each["index"] for each in content["data"]] == [0, 1, 2, 3]
    assert content["model"] == "model"
    assert content["usage"]["prompt_tokens"] == sum(len(served.pipeline.tokenizer.encode(text)) for text in TEXTS[:2])


def test_base64_holds_the_same_numbers(served):
    numbers = vectors(served.post("/v1/embeddings", input=TEXTS[0], dimensions=8, user="someone"))
    response = served.post("/v1/embeddings", input=TEXTS[0], encoding_format="base64", model="model").json()
    coded = np.frombuffer(base64.b64decode(response["data"][0]["embedding"]), "<f4")
    assert np.array_equal(coded, numbers[0].astype(np.float32))


def test_an_answer_does_not_depend_on_what_is_asked_at_the_same_time(serve):
    served = serve(max_wait_ms=200.0)
    bodies = [{"input": [image_part(seed)]} for seed in range(32)]
    alone = [vectors(served.post("/v1/embeddings", **body)) for body in bodies[:3]]
    together = served.together([("POST", "/v1/embeddings", {"json": body}) for body in bodies])
    np.testing.assert_allclose([vectors(each) for each in together[:3]], alone, atol=1e-6)
    captions = [("POST", "/v1/caption", {"json": {"image": data_url(png(seed))}}) for seed in range(32)]
    alone = [served.together([each])[0].json()["captions"][0] for each in captions[:3]]
    together = [each.json()["captions"][0] for each in served.together(captions)[:3]]
    assert [each["text"] for each in together] == [each["text"] for each in alone]
    np.testing.assert_allclose([each["score"] for each in together], [each["score"] for each in alone], atol=1e-5)
    metrics = served.ask("GET", "/metrics").text
    for kind in ("images", "captions"):
        sizes = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if f'kind="{kind}"' in line)
        assert float(sizes[f'velm_batch_size_sum{{kind="{kind}"}}']) == 35
        assert float(sizes[f'velm_batch_size_count{{kind="{kind}"}}']) < 20  # of 35 requests


def test_a_text_longer_than_those_of_the_training_is_cut_and_the_answer_says_so(served):
    long = served.post("/v1/embeddings", input=" ".join(["red"] * 40))
    assert long.json()["usage"] == {"prompt_tokens": 16, "total_tokens": 16, "cut": 1}


def test_captions_are_those_of_the_pipeline(served):
    options = {"num_beams": 3, "num_return": 2, "max_length": 6, "forbidden": ["red"]}
    response = served.post("/v1/caption", image=data_url(png(3)), **options).json()
    [expected] = served.pipeline.caption_candidates([image(3)], **options)
    assert [each["text"] for each in response["captions"]] == [each.text for each in expected]
    assert [each["score"] for each in response["captions"]] == pytest.approx(
        [each.score for each in expected], abs=1e-5
    )


def test_captions_of_different_options_at_the_same_time(served):
    body = {"image": data_url(png(3))}
    requests = [{**body, "max_length": 2 + number % 4, "min_length": 2 + number % 4} for number in range(12)]
    found = served.together([("POST", "/v1/caption", {"json": each}) for each in requests])
    expected = served.pipeline.caption([image(3)], max_length=5, min_length=5)[0].split()
    for request, response in zip(requests, found, strict=True):
        words = response.json()["captions"][0]["text"].split()
        assert len(words) <= request["max_length"]
        assert words == expected[: len(words)]


def test_a_stream_is_the_caption_in_parts_with_the_maps_of_its_words(served):
    body = {"image": data_url(png(4)), "max_length": 5, "min_length": 4}
    parts = events(served.post("/v1/caption", **body, stream=True, maps=True))
    [plain] = served.post("/v1/caption", **body, maps=True).json()["captions"]
    assert parts[-1] == {"done": True, "text": plain["text"]}
    assert "".join(part["text"] for part in parts[:-1]) == plain["text"]
    assert plain["text"]
    [explanation] = explain(served.pipeline, image(4), [plain["text"]])
    assert [part["text"] for part in plain["parts"]] == list(explanation.words)
    np.testing.assert_allclose([part["map"] for part in plain["parts"]], explanation.attention, atol=1e-4)
    np.testing.assert_allclose([part["map"] for part in parts[:-1]], explanation.attention, atol=1e-4)


def test_streams_take_turns_with_other_requests(served):
    body = {"image": data_url(png(4)), "max_length": 5}
    requests = [("POST", "/v1/caption", {"json": {**body, "stream": True}}) for _ in range(4)]
    requests += [("POST", "/v1/embeddings", {"json": {"input": TEXTS[0]}}) for _ in range(4)]
    answers = served.together(requests)
    assert len({each.text for each in answers[:4]}) == 1
    assert all(each.status_code == 200 for each in answers)
    assert served.service.batcher.taken == 0


def test_similarity_is_the_map_of_explain(served):
    answer = served.post("/v1/similarity", image=data_url(png(5)), text=TEXTS[0]).json()
    [explanation] = explain(served.pipeline, image(5), [TEXTS[0]])
    np.testing.assert_allclose(answer["map"], explanation.similarity, atol=1e-4)
    assert answer["cosine"] == pytest.approx(served.pipeline.score([image(5)], [TEXTS[0]]).item(), abs=1e-5)


def test_describe_says_what_the_model_can_do(served):
    answer = served.ask("GET", "/v1/describe").json()
    assert {name: answer[name] for name in ("model", "dim", "captions", "embeddings", "reads", "search", "image")} == {
        "model": "model", "dim": 8, "captions": True, "embeddings": True, "reads": ["image"], "search": None,
        "image": {"size": 32, "resize": "crop"},
    }  # fmt: skip
    assert answer["similarity_map"] is answer["attention_map"] is True
    assert answer["limits"]["inputs"] == 256
    assert answer["options"]["max_length"] == answer["limits"]["max_length"] == 15


def test_a_model_without_a_decoder_embeds_and_refuses_captions(serve):
    served = serve(tiny_pipeline(decoder=None, memory=[], losses={"contrastive": {}}))
    answer = served.ask("GET", "/v1/describe").json()
    assert answer["captions"] is answer["attention_map"] is False
    assert answer["options"] == {}
    assert served.post("/v1/embeddings", input="a star").status_code == 200
    refused = served.post("/v1/caption", image=data_url(png()))
    assert refused.status_code == 400
    assert "no decoder" in refused.json()["error"]["message"]


def test_search_finds_images_and_shows_thumbnails(serve, tmp_path):
    pipeline = tiny_pipeline()
    (tmp_path / "photos").mkdir()
    for seed in range(6):
        (tmp_path / "photos" / f"{seed}.png").write_bytes(png(seed, size=(400, 300)))
    update(pipeline, folder_source(str(tmp_path / "photos")), tmp_path / "index")
    index = Index.open(tmp_path / "index")
    served = serve(pipeline, index=index)
    assert served.ask("GET", "/v1/describe").json()["search"] == {"images": 6}
    results = served.post("/v1/search", image=data_url(png(2, size=(400, 300))), k=3).json()["results"]
    assert len(results) == 3
    assert results[0]["path"] == "2.png"
    assert results[0]["score"] == pytest.approx(1.0, abs=1e-3)  # vectors of 16 bits
    answer = served.ask("GET", results[0]["thumbnail"])
    assert Image.open(io.BytesIO(answer.content)).size == (256, 192)
    both = served.post("/v1/search", text=TEXTS[0], minus=TEXTS[1], k=6).json()["results"]
    [expected] = index.search(index.query(pipeline, text=TEXTS[0], minus=TEXTS[1]), 6)
    assert [each["row"] for each in both] == [match.row for match in expected]
    assert served.post("/v1/search", minus=TEXTS[0]).json()["error"]["message"].startswith("Nothing to search for")
    (tmp_path / "photos" / "3.png").unlink()
    rows = {match.path: match.row for match in expected}
    for row in (rows["3.png"], 6, -1, "1e1", "..%2f..%2fetc%2fpasswd", "9" * 400):
        answer = served.ask("GET", f"/v1/thumbnails/{row}")
        assert answer.status_code == 404, row
        assert str(tmp_path) not in answer.text
        assert "passwd" not in answer.json()["error"]["message"] or "not the number of a row" in answer.text


def test_without_an_index_there_is_nothing_to_search(served):
    assert served.post("/v1/search", text="a star").status_code == 404
    assert "--index" in served.ask("GET", "/v1/thumbnails/0").json()["error"]["message"]
