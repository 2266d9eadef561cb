"""A vision-language model of transformers beside VELM's import of it, on its processor's inputs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
import vlms
from foreign import images
from torch.nn import functional

import velm
from velm.outputs import IGNORE
from velm.prompt import Prompt

QUESTIONS = ["what runs over the grass?", "a dog\n\n", "why"]
ANSWERS = ["two dogs", "snow, and a red dog that runs", "a"]
LLAVA = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "gpt2")
SAVE: dict[str, Callable[[Path], Path]] = {
    **{kind: lambda folder, kind=kind: vlms.save_llava(folder, kind) for kind in LLAVA},
    "idefics3": vlms.save_idefics3,
    "smolvlm": lambda folder: vlms.save_idefics3(folder, "SmolVLM"),
    "paligemma": vlms.save_paligemma,
}


def pad(rows: list[list[int]], value: int) -> torch.Tensor:
    length = max(map(len, rows))
    return torch.tensor([row + [value] * (length - len(row)) for row in rows], dtype=torch.int64)


def of_rows(rows: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """int64 (B, P) and bool (B, P), padded at the end."""
    ids = pad(rows, -1)
    return ids.clamp(min=0), ids >= 0


class Case:
    """A model of transformers with its processor's inputs, and what it says of them."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, SAVE[name](folder)
        cls = transformers.AutoModelForImageTextToText
        self.original: Any = cls.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.processor, self.tokenizer = self.open_processor()
        self.tokenizer.padding_side = "left"
        self.images: list[Any] = images(3)
        self.inputs = self.process([self.question(text) for text in QUESTIONS])
        self.answers = [
            [*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id] for text in ANSWERS
        ]
        self.pipeline = velm.load(f"hf/{self.folder}")
        self.prompt = self.prompts()

    def open_processor(self) -> tuple[Any, Any]:
        if self.name in ("idefics3", "smolvlm"):  # SmolVLM's own needs another package, and writes the same
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder)
            images = transformers.Idefics3ImageProcessor.from_pretrained(self.folder)
            chat = tokenizer.chat_template
            return transformers.Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=chat), tokenizer
        processor = transformers.AutoProcessor.from_pretrained(self.folder)
        return processor, processor.tokenizer

    def question(self, text: str) -> str:
        """What a user of transformers gives to the processor."""
        if self.name == "paligemma":
            return f"<image>{text}"
        if self.name == "gpt2":
            return f"USER: <image>\n{text} ASSISTANT:"
        turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
        return str(self.processor.apply_chat_template(turn, add_generation_prompt=True))

    def process(self, texts: list[str]) -> dict[str, torch.Tensor]:
        bos = self.tokenizer.bos_token
        plain = {"add_special_tokens": False} if texts[0].startswith(bos) else {}  # as apply_chat_template does
        found = self.processor(
            images=[[image] for image in self.images], text=texts, padding=True, return_tensors="pt", **plain
        )
        return {key: value for key, value in found.items() if key != "labels"}

    def rows(self) -> list[list[int]]:
        """The processor's ids without padding."""
        ids, mask = self.inputs["input_ids"], self.inputs["attention_mask"].bool()
        return [row[content].tolist() for row, content in zip(ids, mask, strict=True)]

    def prompts(self) -> Prompt:
        image = self.original.config.image_token_id
        before, after = [], []
        for row in self.rows():
            first, last = row.index(image), len(row) - 1 - row[::-1].index(image)
            assert row[first : last + 1] == [image] * (last + 1 - first)
            before.append(row[:first])
            after.append(row[last + 1 :])
        return Prompt(*of_rows(before), *of_rows(after))

    def expected(self) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The original's loss, and its logits of each answer, under teacher forcing."""
        rows = [row + answer for row, answer in zip(self.rows(), self.answers, strict=True)]
        asked = [[IGNORE] * len(row) + answer for row, answer in zip(self.rows(), self.answers, strict=True)]
        ids, mask = of_rows(rows)
        more: dict[str, Any] = {}
        if self.name == "paligemma":
            more["token_type_ids"] = pad([[int(label != IGNORE) for label in row] for row in asked], 1)
        output = self.original(
            input_ids=ids, attention_mask=mask.long(), pixel_values=self.inputs["pixel_values"],
            labels=pad(asked, IGNORE), **more,
        )  # fmt: skip
        spans = [(len(row) - len(answer) - 1, len(row) - 1) for row, answer in zip(rows, self.answers, strict=True)]
        return output.loss, [output.logits[i, a:b] for i, (a, b) in enumerate(spans)]

    def pixels(self, pipeline: Any) -> torch.Tensor:
        return torch.stack([pipeline.transform(image) for image in self.images])

    def ours(self, pipeline: Any) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """VELM's loss and logits, from the images on."""
        model, bos = pipeline.model, pipeline.tokenizer.bos_id
        prefix = self.prefix(pipeline)
        tokens, _ = of_rows([[bos, *answer] for answer in self.answers])
        logits = model.decoder.output_projection(model.decoder(tokens[:, :-1], *prefix))
        loss = functional.cross_entropy(logits.flatten(0, 1), pad(self.answers, IGNORE).flatten())
        return loss, [row[: len(answer)] for row, answer in zip(logits, self.answers, strict=True)]

    def prefix(self, pipeline: Any) -> Any:
        model = pipeline.model
        return model.memory(model.encode_image(self.pixels(pipeline)), None, self.prompt)
