"""`velm serve` beside a plain FastAPI endpoint that calls the same pipeline once per request.

    python -m benchmarks.serving runs/quickstart/best.ckpt

Clients of this process ask both servers by turns, each client its next request after the answer to the last. Prints
requests a second, the median and the 99th percentile of the latency, and the ratio of the requests a second; then the
memory of `velm serve` over many requests, and what it answers to more requests than its queue holds.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.harness.load import Watch

CLIENTS = (1, 8, 64)
KINDS = ("texts", "images", "captions")
PATHS = {"texts": "/v1/embeddings", "images": "/v1/embeddings", "captions": "/v1/caption"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--threads", type=int, default=1, help="of torch, in both servers (default 1)")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement (default 4)")
    parser.add_argument("--rounds", type=int, default=1, help="turns of each server; the median counts (default 1)")
    parser.add_argument("--requests", type=int, default=10_000, help="while the memory is watched (default 10000)")
    parser.add_argument("--plain", action="store_true", help="be the plain endpoint")
    parser.add_argument("--port", type=int, default=0)
    args = parser.parse_args()
    if args.plain:
        serve_plainly(args.checkpoint, args.threads, args.port)
        return
    velm = [sys.executable, "-m", "velm", "serve", args.checkpoint, "--port", "0", "--threads", str(args.threads)]
    plain = [sys.executable, "-m", "benchmarks.serving", args.checkpoint, "--plain", "--threads", str(args.threads)]
    watch = Watch()
    with Server(velm) as ours, Server(plain) as theirs:
        asyncio.run(measure(ours, theirs, args.seconds, args.rounds))
        asyncio.run(watch_memory(ours, args.requests))
        asyncio.run(overload(ours))
    print(f"other processes took {watch.others() or 0:.1f} cores of this machine")


class Server:
    """A server in a process of its own, which prints its address when it is ready."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        lines = []
        while (found := re.search(r"http://127\.0\.0\.1:(\d+)", line := self.process.stderr.readline())) is None:
            lines.append(line)
            if not line:
                raise SystemExit(f"{command} has ended: {''.join(lines)}")
        self.port = int(found[1])

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait(60)

    def memory(self) -> float:
        """Resident memory, MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024


@dataclass
class Answers:
    """Latencies in seconds of the answers 200, and how many answers had each status; 0: none came."""

    latencies: list[float] = field(default_factory=list)
    statuses: Counter[int] = field(default_factory=Counter)


def request(kind: str, number: int) -> bytes:
    """A request as it is sent; its text or image depends on the number."""
    colour = ("red", "green", "blue", "yellow")[number % 4]
    if kind == "texts":
        body = {"input": f"there is a large {colour} circle", "encoding_format": "base64"}
    else:
        url = f"data:image/png;base64,{base64.b64encode(drawing(colour)).decode()}"
        image = {"type": "image_url", "image_url": {"url": url}}
        body = {"image": url} if kind == "captions" else {"input": [image], "encoding_format": "base64"}
    content = json.dumps(body).encode()
    head = f"POST {PATHS[kind]} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


def drawing(colour: str) -> bytes:
    """The PNG of a circle."""
    from PIL import Image, ImageDraw

    image = Image.new("RGB", (128, 128), "white")
    ImageDraw.Draw(image).ellipse((30, 30, 90, 90), fill=colour)
    target = io.BytesIO()
    image.save(target, "PNG")
    return target.getvalue()


async def client(port: int, content: bytes, answers: Answers, go_on: list[int], end: float) -> None:
    """Ask until `end`, or until `go_on` is empty; each request takes one of its items."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        while time.perf_counter() < end and go_on:
            go_on.pop()
            started = time.perf_counter()
            writer.write(content)
            try:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                await reader.readexactly(int(re.findall(r"(?i)content-length: (\d+)", head)[0]))
            except (ConnectionError, asyncio.IncompleteReadError):
                answers.statuses[0] += 1
                return
            answers.statuses[int(head.split()[1])] += 1
            if head.split()[1] == "200":
                answers.latencies.append(time.perf_counter() - started)
    finally:
        writer.close()


async def ask(port: int, kind: str, clients: int, *, seconds: float = 1e9, count: int = 1 << 40) -> Answers:
    """The answers to many clients."""
    answers, go_on = Answers(), [0] * min(count, 1 << 20)
    end = time.perf_counter() + seconds
    await asyncio.gather(*(client(port, request(kind, i), answers, go_on, end) for i in range(clients)))
    return answers


async def measure(ours: Server, theirs: Server, seconds: float, rounds: int) -> None:
    print(f"{'':<10}{'clients':>8}  {'velm serve: a second, p50, p99 ms':>36}  {'plain':>28}   ratio")
    for kind in KINDS:
        for server in (ours, theirs):
            await ask(server.port, kind, 8, count=64)
        for clients in CLIENTS:
            rows: dict[Server, list[tuple[float, float, float]]] = {ours: [], theirs: []}
            for _ in range(rounds):
                for server, found in rows.items():
                    started = time.perf_counter()
                    answers = await ask(server.port, kind, clients, seconds=seconds)
                    found.append(summary(answers, time.perf_counter() - started))
            medians = [
                tuple(statistics.median(column) for column in zip(*found, strict=True)) for found in rows.values()
            ]
            texts = [f"{rate:9.0f} {p50:8.1f} {p99:8.1f}" for rate, p50, p99 in medians]
            print(
                f"{kind:<10}{clients:>8}  {texts[0]:>36}  {texts[1]:>28}  {medians[0][0] / medians[1][0]:6.2f}",
                flush=True,
            )


def summary(answers: Answers, seconds: float) -> tuple[float, float, float]:
    """Requests a second, and the median and the 99th percentile of the latency in ms; ends if an answer was lost."""
    if set(answers.statuses) != {200}:
        raise SystemExit(f"answers other than 200: {dict(answers.statuses)}")
    ordered = sorted(answers.latencies)
    return len(ordered) / seconds, 1000 * statistics.median(ordered), 1000 * ordered[int(0.99 * (len(ordered) - 1))]


async def watch_memory(server: Server, requests: int) -> None:
    memory, statuses, part = [server.memory()], Counter[int](), max(requests // 5, 1)
    for number in range(5):
        statuses += (await ask(server.port, KINDS[number % 2], 32, count=part)).statuses
        memory.append(server.memory())
    held = ", ".join(f"{each:.0f}" for each in memory)
    print(f"memory over {sum(statuses.values())} requests (answers {dict(statuses)}), MB: {held}")


async def overload(server: Server) -> None:
    answers = await ask(server.port, "captions", 600, count=1200)
    started = time.perf_counter()
    after = Answers()
    while not after.latencies:
        await client(server.port, request("captions", 0), after, [0], time.perf_counter() + 10)
    print(
        f"600 clients at a time: {dict(answers.statuses)} by status, {1200 - sum(answers.statuses.values())} lost; the "
        f"next request is answered 200 after {time.perf_counter() - started:.3f} s"
    )


def serve_plainly(checkpoint: str, threads: int, port: int) -> None:
    """The endpoints as one writes them first: one call of the pipeline for each request."""
    import socket

    import torch
    import uvicorn
    from fastapi import FastAPI
    from PIL import Image

    import velm

    torch.set_num_threads(threads)
    pipeline, app = velm.load(checkpoint), FastAPI()

    def opened(url: str) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")

    @app.post("/v1/embeddings")
    def embed(body: dict) -> dict:
        if isinstance(body["input"], str):
            rows = pipeline.embed_texts([body["input"]])
        else:
            rows = pipeline.embed_images([opened(part["image_url"]["url"]) for part in body["input"]])
        return {"data": [{"embedding": base64.b64encode(row.numpy().tobytes()).decode()} for row in rows]}

    @app.post("/v1/caption")
    def caption(body: dict) -> dict:
        return {"captions": [{"text": pipeline.caption([opened(body["image"])])[0]}]}

    listener = socket.create_server(("127.0.0.1", port))
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", file=sys.stderr, flush=True)
    uvicorn.Server(uvicorn.Config(app, http="h11", log_level="error", access_log=False)).run([listener])


if __name__ == "__main__":
    main()
