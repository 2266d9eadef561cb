"""The prompt of a vision-language model of transformers, as a template of VELM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

__all__ = ["open_library_tokenizer", "prompt_template"]

_IMAGE, _TEXT = "<image>", "{text}"


def open_library_tokenizer(name: str) -> Any:
    """The tokenizer of transformers of a folder or a hub id.

    Raises:
        OSError, ValueError: there is none.
    """
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name)


def prompt_template(name: str, otherwise: str, image: str = "{image}") -> str:
    """One turn of the user with an image and `{text}`, up to where the assistant answers.

    It is the chat template of the processor or of the tokenizer, rendered, with the bos that the tokenizer adds; bos is
    not added where the text begins with it.

    Args:
        name: a folder or a hub id.
        otherwise: the text where neither has a chat template, with '<image>'.
        image: what stands in place of '<image>'.
    """
    tokenizer = open_library_tokenizer(name)
    chat = _chat_template(name) or getattr(tokenizer, "chat_template", None)
    text = otherwise if chat is None else _render(tokenizer, chat)
    bos = tokenizer.bos_token
    if bos is not None and tokenizer("").input_ids[:1] == [tokenizer.bos_token_id] and not text.startswith(bos):
        text = bos + text
    return text.replace(_IMAGE, image)


def _chat_template(name: str) -> str | None:
    """The processor's, of the files that releases of transformers have written it into."""
    from transformers.utils import cached_file

    for file in ("chat_template.jinja", "chat_template.json", "processor_config.json"):
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, local_files_only=True)
        if path is None:
            continue
        text = Path(path).read_text(encoding="utf-8")
        found = text if file.endswith(".jinja") else json.loads(text).get("chat_template")
        if found:
            return str(found)
    return None


def _render(tokenizer: Any, chat: str) -> str:
    """The turn by a template whose messages hold parts, or else strings.

    Raises:
        ValueError: it places image and text by neither.
    """
    parts: Any = [{"type": "image"}, {"type": "text", "text": _TEXT}]
    for content in (parts, f"{_IMAGE}\n{_TEXT}"):
        turn = [{"role": "user", "content": content}]
        try:
            text = tokenizer.apply_chat_template(turn, chat_template=chat, tokenize=False, add_generation_prompt=True)
        except Exception:
            continue
        if text.count(_IMAGE) == 1 and text.count(_TEXT) == 1:
            return str(text)
    raise ValueError(
        f"its chat template does not place one {_IMAGE} and one text. Remove it from the folder, and set "
        f"decoder.template to a text such as 'USER: {{image}}\\n{{text}} ASSISTANT:'."
    )
