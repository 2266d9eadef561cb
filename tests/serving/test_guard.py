"""Access, limits, overload, clients that go away, failures, and the end of a server."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import pytest
import torch
from served import data_url, image_part, png, tiny_pipeline

from velm.serving import guard


def test_a_token_is_required_for_everything_but_probes_and_the_page(serve):
    served = serve(token="open sesame")
    routes = ["/v1/describe", "/metrics", "/v1/thumbnails/0", "/nowhere"]
    for header in (None, "open sesame", "Bearer", "Bearer ", "Bearer open sesam", "Basic open sesame", "Bearer \xe9"):
        headers = {} if header is None else {"Authorization": header.encode("latin-1")}
        for path in routes:
            answer = served.ask("GET", path, headers=headers)
            assert answer.status_code == 401, (path, header)
            assert answer.headers["www-authenticate"] == "Bearer"
        assert served.ask("POST", "/v1/embeddings", json={"input": "x"}, headers=headers).status_code == 401
    for path in ("/", "/page/page.js", "/page/page.css", "/healthz", "/readyz"):
        assert served.ask("GET", path).status_code == 200, path
    right = {"Authorization": "bearer open sesame"}
    assert served.ask("GET", "/v1/describe", headers=right).status_code == 200
    assert served.ask("POST", "/v1/embeddings", json={"input": "red"}, headers=right).status_code == 200


def test_without_a_token_only_local_names_are_answered(serve, served):
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST:1".lower()):
        assert served.ask("GET", "/v1/describe", headers={"Host": host}).status_code == 200, host
    for host in ("rebound.example", "127.0.0.1.example:8000", "", "[", "localhost.example"):
        assert served.ask("GET", "/v1/describe", headers={"Host": host}).status_code == 403, host
    assert serve(no_token=True).ask("GET", "/readyz", headers={"Host": "rebound.example"}).status_code == 200


def test_every_answer_has_the_headers_and_none_is_for_other_origins(served):
    for method, path in (("GET", "/"), ("GET", "/v1/describe"), ("GET", "/nowhere"), ("OPTIONS", "/v1/caption")):
        answer = served.ask(method, path, headers={"Origin": "https://example.org"})
        assert answer.headers["content-security-policy"].startswith("default-src 'self'; img-src 'self' data: blob:")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_body_beyond_the_limit_is_refused_before_it_is_read(serve, monkeypatch):
    monkeypatch.setattr(guard, "LINGER", 0.05)
    served = serve(max_body=1000)
    sent = []

    async def chunks():
        for _ in range(50):
            sent.append(100)
            yield b"x" * 100

    answer = served.ask("POST", "/v1/embeddings", content=b"x" * 1001)
    assert answer.status_code == 413
    assert answer.json()["error"]["message"].startswith("The body has more than 1000 bytes")
    assert served.ask("POST", "/v1/embeddings", content=chunks()).status_code == 413
    assert served.ask("POST", "/v1/embeddings", content=b"{}", headers={"Content-Length": "9" * 30}).status_code == 413
    assert served.app.held == 0
    assert served.post("/v1/embeddings", input="red").status_code == 200


def test_many_bodies_at_a_time_are_refused(serve, monkeypatch):
    monkeypatch.setattr(guard, "BODIES", 0)
    monkeypatch.setattr(guard, "LINGER", 0.05)
    served = serve()
    answer = served.post("/v1/embeddings", input="red")
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    monkeypatch.setattr(guard, "BODIES", 8)
    assert served.post("/v1/embeddings", input="red").status_code == 200


def test_a_body_that_does_not_arrive_is_given_up(served, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.05)
    monkeypatch.setattr(guard, "LINGER", 0.05)

    async def slow():
        yield b"{"
        await asyncio.sleep(1)
        yield b"}"

    assert served.ask("POST", "/v1/embeddings", content=slow()).status_code == 408


class Held:
    """Holds the thread that computes until it is left."""

    def __init__(self, served):
        self.served, self.gate = served, threading.Event()

    def __enter__(self):
        self.served.service.batcher.thread.submit(self.gate.wait, 30)

    def __exit__(self, *_):
        self.gate.set()


def test_a_full_queue_answers_503_and_recovers(serve):
    served = serve(queue=4)

    async def fill():
        import httpx

        transport = httpx.ASGITransport(app=served.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=30) as client:
            waiting = [asyncio.ensure_future(client.post("/v1/embeddings", json={"input": "red"})) for _ in range(4)]
            while served.service.batcher.taken < 4:
                await asyncio.sleep(0.005)
            refused = await client.post("/v1/embeddings", json={"input": "red"})
            gate.gate.set()
            return refused, await asyncio.gather(*waiting), await client.post("/v1/embeddings", json={"input": "red"})

    gate = Held(served)
    with gate:
        refused, accepted, later = served.wait(fill())
    assert refused.status_code == 503
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "overloaded"
    assert [each.status_code for each in accepted] == [200] * 4
    assert later.status_code == 200
    assert served.post("/v1/embeddings", input=["red"] * 5).status_code == 400


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place(served, stream):
    body = json.dumps({"image": data_url(png()), "stream": stream}).encode()
    scope = {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
        "path": "/v1/caption", "raw_path": b"/v1/caption", "query_string": b"", "root_path": "", "scheme": "http",
        "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80),
    }  # fmt: skip
    sent = []

    async def call():
        gone = asyncio.Event()
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if messages:
                return messages.pop()
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        work = asyncio.ensure_future(served.app(scope, receive, send))
        while not served.service.batcher.taken or (stream and not sent):
            await asyncio.sleep(0.002)
        gone.set()
        await asyncio.wait_for(work, 10)
        return served.service.batcher.taken, served.service.active

    with Held(served):
        assert served.wait(call()) == (0, 0)
    assert served.post("/v1/caption", image=data_url(png())).status_code == 200
    assert f'route="/v1/caption",status="{200 if stream else 499}"' in served.ask("GET", "/metrics").text


def test_while_it_loads_only_probes_are_answered(serve):
    served = serve(ready=False)
    assert served.ask("GET", "/healthz").status_code == 200
    assert served.ask("GET", "/readyz").json() == {"status": "loading"}
    for answer in (served.ask("GET", "/v1/describe"), served.post("/v1/embeddings", input="red")):
        assert answer.status_code == 503
        assert answer.json()["error"]["type"] == "not_ready"
    served.load()
    assert served.ask("GET", "/readyz").status_code == 200
    assert served.post("/v1/embeddings", input="red").status_code == 200


def test_while_it_stops_probes_say_so_and_requests_are_refused(serve):
    served = serve()
    served.service.state = "draining"
    assert served.ask("GET", "/healthz").status_code == 200
    assert served.ask("GET", "/readyz").status_code == 503
    answer = served.post("/v1/embeddings", input="red")
    assert answer.status_code == 503
    assert answer.headers["connection"] == "close"


def test_a_failure_is_logged_without_what_was_sent(serve, caplog, monkeypatch):
    served = serve()

    def fail(items, batch_size):
        raise RuntimeError(f"cannot do {items}")

    monkeypatch.setattr(served.pipeline, "embed_texts", fail)
    with caplog.at_level(logging.DEBUG, "velm.serving"):
        answer = served.post("/v1/embeddings", input="my secret")
    assert answer.status_code == 500
    assert answer.json()["error"]["type"] == "server_error"
    [record] = [each for each in caplog.records if each.name == "velm.serving"]
    assert "RuntimeError" in record.getMessage()
    assert "secret" not in caplog.text + answer.text
    assert served.post("/v1/embeddings", input=[image_part(0)]).status_code == 200


def test_nan_is_an_error_and_never_in_an_answer(serve):
    served = serve(pipeline := tiny_pipeline())
    with torch.no_grad():
        pipeline.model.text_projection.weight.fill_(float("nan"))
    for path, body in (
        ("/v1/embeddings", {"input": "red"}),
        ("/v1/similarity", {"image": data_url(png()), "text": "red"}),
    ):
        answer = served.post(path, **body)
        assert answer.status_code == 500
        assert "NaN" in answer.json()["error"]["message"]


def test_metrics_are_prometheus_text(served):
    for _ in range(2):
        served.ask("GET", "/a/path/of/the/client")
    text = served.ask("GET", "/metrics").text
    assert 'velm_requests_total{route="other",status="404"}' in text
    assert "velm_queue_depth 0.0" in text
    assert "velm_request_seconds_bucket" in text
    assert "/a/path" not in text
