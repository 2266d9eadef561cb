"""Conversations about images as LLaVA has them: a question becomes the text, its answer the target."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from velm.data.bad_samples import BadSample
from velm.data.base import Turn
from velm.data.formats.captioned import CaptionedImage, CaptionedImages, find_root
from velm.data.tables.json_rows import json_rows
from velm.data.tables.layouts import suggest_layout
from velm.errors import DataError

__all__ = ["LLaVA"]

ASKS, ANSWERS = ("human", "user"), ("gpt", "assistant")
IMAGE_TOKEN = "<image>"


@dataclass(kw_only=True, eq=False, repr=False)
class LLaVA(CaptionedImages):
    """Image and conversation of each entry (Liu et al. 2023, "Visual Instruction Tuning"), as an array or JSON lines.

    Entries are {"image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]},
    {"images", "messages": [{"role": "user", "content"}, {"role": "assistant", "content"}]}, or those of the cauldron,
    {"images", "texts": [{"user", "assistant"}]}. Entries without an image are left out and counted in a warning.

    Args:
        path: the JSON file.
        root: folder of the images; None: looked for beside the file.
        use: 'answers' generates the answer to each question, which is the text, and leaves out what was said before
            it; 'conversations' keeps it (for a decoder with a template): the whole conversation is one text, all of
            whose answers are learnt; 'captions' takes the answers as captions, as of LLaVA's pretraining, where the
            question only asks for one.
        val_fraction: share of the images in 'val', in [0, 1), by a hash of the path.
        test_fraction: share of the images in 'test', in [0, 1), likewise.
        check_files: check that every image of a split exists when the split is opened.
    """

    use: Literal["answers", "conversations", "captions"] = "answers"
    val_fraction: float = 0.1
    test_fraction: float = 0.1

    def image_root(self, images: Sequence[CaptionedImage]) -> str:
        return find_root(images, os.path.dirname(self.path) if self.root is None else self.root)

    def images(self, bad_samples: list[BadSample]) -> Sequence[CaptionedImage]:
        turns: dict[str, list[list[Turn]]] = {}
        without, known = 0, False
        for number, row in json_rows(self.path):
            known = known or (isinstance(row, dict) and _turns(row) is not None)
            try:
                image, pairs = _entry(row)
            except ValueError as error:
                bad_samples.append(BadSample(f"{self.path}, row {number}", str(error)))
                continue
            if image is None:
                without += 1
            else:
                turns.setdefault(image, []).append(pairs)
        if not known:
            raise DataError(
                suggest_layout(self.path, name="llava")
                or f"{self.path!r} has no conversations as LLaVA: "
                '{"image", "conversations": [{"from": "human", "value"}, {"from": "gpt", "value"}]}.'
            )
        if without:
            warnings.warn(f"{without:,} entries of {self.path!r} have no image and are left out.", stacklevel=3)
        return [self._captioned(image, conversations) for image, conversations in turns.items()]

    def _captioned(self, image: str, conversations: Sequence[Sequence[Turn]]) -> CaptionedImage:
        if self.use == "conversations":
            ends = [conversation[-1] for conversation in conversations]
            questions, answers = [question for question, _ in ends], [answer for _, answer in ends]
            return CaptionedImage(image, questions, targets=answers, histories=[each[:-1] for each in conversations])
        pairs = list(dict.fromkeys(pair for conversation in conversations for pair in conversation))
        answers = [answer for _, answer in pairs]
        if self.use == "captions":
            return CaptionedImage(image, list(dict.fromkeys(answers)))
        return CaptionedImage(image, [question for question, _ in pairs], targets=answers)


def _turns(row: dict[str, Any]) -> Any:
    turns = row.get("conversations", row.get("messages", row.get("texts")))
    if isinstance(turns, list) and turns and all(isinstance(turn, dict) and "user" in turn for turn in turns):
        return [
            {"role": role, "content": turn.get(role)} for turn in turns for role in ("user", "assistant")
        ]  # the cauldron's
    return turns


def _entry(row: dict[str, Any] | str) -> tuple[str | None, list[Turn]]:
    """The image of an entry, None without one, and its (question, answer) pairs.

    Raises:
        ValueError: the entry is not a conversation about one image; the message says what is wrong.
    """
    if isinstance(row, str):
        raise ValueError(row)
    images = row.get("image", row.get("images"))
    images = images if isinstance(images, list) else [images] if images else []
    if not images:
        return None, []
    if len(images) > 1 or not isinstance(images[0], str):
        raise ValueError(f"it has {len(images)} images; VELM reads conversations about one, named by its path")
    turns, pairs, question = _turns(row), [], ""
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError("it has no list of turns in 'conversations' or 'messages'")
    for turn in turns:
        speaker, text = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        text = str(text or "").replace(IMAGE_TOKEN, "").strip()
        if speaker in ASKS:
            question = text
        elif speaker in ANSWERS:
            pairs.append((question, text))
    if not pairs:
        raise ValueError("nobody answers in it: turns are 'from' human and gpt, or have the 'role' user and assistant")
    return images[0], pairs
