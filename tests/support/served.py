"""A server within the process: its routes on an event loop of their own, without sockets."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from velm.data.images.transforms import transform_from_config
from velm.data.text.word import WordTokenizer
from velm.model import build_model
from velm.pipeline import Pipeline
from velm.serving.app import create_app
from velm.serving.engine import Engine
from velm.serving.service import Loaded, Service
from velm.serving.settings import Settings

TEXTS = ("a red circle", "a small blue square", "a large green ring left of a red star")
CONFIG: dict[str, Any] = {
    "image_encoder": {"name": "vit", "dim": 16, "depth": 1, "heads": 2, "patch_size": 8},
    "text_encoder": {"name": "rnn", "dim": 16},
    "decoder": {"name": "transformer", "dim": 16, "depth": 1, "heads": 2, "max_length": 24},
    "embed_dim": 8,
    "memory": ["image"],
    "losses": {"contrastive": {}, "captioning": {}},
}


def tiny_pipeline(seed: int = 0, **changes: Any) -> Pipeline:
    """A model that aligns and writes; None leaves a part out."""
    tokenizer = WordTokenizer()
    tokenizer.train(TEXTS)
    config = {**CONFIG, "vocab_size": tokenizer.vocab_size, "pad_id": tokenizer.pad_id, **changes}
    torch.manual_seed(seed)
    transform = transform_from_config({"image_size": 32, "resize": "crop"})
    return Pipeline(model=build_model(config), tokenizer=tokenizer, transform=transform, max_length=16)


def png(seed: int = 0, kind: str = "PNG", size: tuple[int, int] = (40, 36)) -> bytes:
    """The file of a smooth image."""
    corners = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    target = io.BytesIO()
    Image.fromarray(corners).resize(size, Image.Resampling.BICUBIC).save(target, kind)
    return target.getvalue()


def data_url(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def image_part(seed: int) -> dict[str, Any]:
    """An image among the inputs of /v1/embeddings."""
    return {"type": "image_url", "image_url": {"url": data_url(png(seed))}}


class Served:
    """A service that is ready, and its answers."""

    def __init__(self, pipeline: Pipeline, index: Any = None, ready: bool = True, **settings: Any) -> None:
        self.pipeline = pipeline
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.proceed = threading.Event()
        self.service = Service(Settings(**settings), lambda: self._load(index))
        self.app = create_app(self.service)
        self.wait(self.service.__aenter__())
        if ready:
            self.load()

    def load(self) -> None:
        """Let the model be loaded."""
        self.proceed.set()
        self.wait(self.service.ready())

    def wait(self, work: Any) -> Any:
        """The result of a coroutine."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(60)

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self.together([(method, path, options)])[0]

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self.ask("POST", path, json=body)

    def together(self, requests: Sequence[tuple[str, str, dict[str, Any]]]) -> list[httpx.Response]:
        """The answers of requests that are sent at the same time."""

        async def send() -> list[httpx.Response]:
            transport = httpx.ASGITransport(app=self.app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
                return await asyncio.gather(*(client.request(m, path, **options) for m, path, options in requests))

        return self.wait(send())

    def close(self) -> None:
        self.proceed.set()
        self.wait(self.service.__aexit__(None, None, None))
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()

    def _load(self, index: Any) -> Loaded:
        self.proceed.wait(60)
        engine = Engine(self.pipeline)
        engine.warm_up()
        return Loaded(engine, "0" * 64, index)
