"""Templates: a text and its answer as what a language model reads around the image and what it learns to write.

"Question: {text} Answer:"        what colour is it?             red

<image> Question: what colour is it? Answer: red <eos>
        └──────────── prompt ─────────────┘ └─ target ─┘
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from velm.data.base import Turn
from velm.data.text.base import Tokenizer
from velm.errors import ConfigError, DataError
from velm.prompt import CHAT, takes_text

__all__ = ["PromptIds", "Template", "fixed_text"]

CHAT_MARK = "\ue000{}\ue001"  # private characters: no text of people holds them
PLACE = re.compile(r"(\{text\}|\{image\})")


class PromptIds(NamedTuple):
    """Token ids before and after the image."""

    before: list[int]
    after: list[int]


@dataclass(frozen=True)
class _Part:
    """A piece of the whole text: of the template, a text or an answer of the data, the image's place, or eos."""

    kind: Literal["fixed", "text", "answer", "image", "eos"]
    text: str = ""


IMAGE, EOS = _Part("image"), _Part("eos")


class Template:
    """Tokenizes texts and answers inside a template; the whole is tokenized at once and cut by offsets.

    A later turn of a conversation repeats a template without bos, its image and the special tokens around that. A
    blank stands before an answer that does not follow white space. An answer ends with the tokenizer's eos.

    Args:
        template: a text with `{text}` where the text stands, or without it where all images have one instruction, and
            `{image}` where the image stands (without it: in front). Special tokens of the tokenizer, as '<s>', may be
            written in it; one that the tokenizer itself begins a text with is put in front unless it is there.
            'chat': the tokenizer's own chat template (`tokenizer.chat`), with the image in front of the first text.
        tokenizer: trained, if it has to be.

    Raises:
        ConfigError: the template names other places, or the tokenizer has no chat template or ends turns otherwise.
    """

    def __init__(self, template: str, tokenizer: Tokenizer) -> None:
        self.template, self.tokenizer = template, tokenizer
        self.takes_text = takes_text(template)
        if template == CHAT:
            _check_chat(tokenizer)
        else:
            _check_places(template)

    def prompt(self, text: str, history: Sequence[Turn] = ()) -> PromptIds:
        """Ids of the prompt for the answer to `text`, after the turns of `history`.

        Raises:
            DataError: the text contains a special token of the tokenizer.
        """
        return self._cut(self._parts(text, history))[0]

    def sample(
        self, text: str, answer: str, history: Sequence[Turn] = (), *, all_turns: bool = False
    ) -> tuple[PromptIds, list[int], list[bool]]:
        """The prompt, the target bos ... eos, and which of the target's tokens are to be learnt.

        Args:
            text, answer, history: of one conversation.
            all_turns: the prompt ends before the first answer, and the answers of the history are learnt as well.

        Raises:
            DataError: as of `prompt`.
        """
        parts = [*self._parts(text, history), _Part("answer", self._separated(answer)), EOS]
        first = next(i for i, part in enumerate(parts) if part.kind == "answer")
        prompt, target, learnt = self._cut(parts, len(parts) - 2 if not all_turns else first)
        return prompt, [self.tokenizer.bos_id, *target], [False, *learnt]

    def _cut(self, parts: Sequence[_Part], end: int | None = None) -> tuple[PromptIds, list[int], list[bool]]:
        """The prompt of the parts before number `end`, ids of the others, and which of those are answers or eos."""
        ids = self.tokenizer.to_ids_of_parts([None if part in (IMAGE, EOS) else part.text for part in parts])
        eos = self.tokenizer.eos_id
        ids = [[eos] if part == EOS else each for part, each in zip(parts, ids, strict=True)]
        image, end = parts.index(IMAGE), len(parts) if end is None else end
        prompt = PromptIds(_joined(ids[:image]), _joined(ids[image + 1 : end]))
        target = _joined(ids[end:])
        learnt = [part.kind in ("answer", "eos") for part, each in zip(parts, ids, strict=True) for _ in each]
        return prompt, target, learnt[len(learnt) - len(target) :]

    def _parts(self, text: str, history: Sequence[Turn]) -> list[_Part]:
        """The parts of the prompt for the answer to `text`."""
        for each in (text, *(each for turn in history for each in turn)):
            _require_plain(each, self.tokenizer)
        if self.template == CHAT:
            return _chat_parts(self.tokenizer, text, history)
        whole = self.template if "{image}" in self.template else "{image}" + self.template
        start = self.tokenizer.start_text
        begin = [] if start is None or start in whole else [_Part("fixed", start)]
        parts = [*begin, *_fill(whole, history[0][0] if history else text)]
        later = _without_image(self.template, self.tokenizer)
        for number, (_, answer) in enumerate(history):
            following = history[number + 1][0] if number + 1 < len(history) else text
            parts += [_Part("answer", self._separated(answer)), EOS, *_fill(later, following)]
        return parts

    @property
    def lead(self) -> str:
        """What stands between the prompt and an answer: a blank, or nothing behind white space."""
        spaced = self.template == CHAT or self.template[-1:].isspace() or self.template.endswith("{image}")
        return "" if spaced else " "

    def _separated(self, answer: str) -> str:
        return answer if answer[:1].isspace() else self.lead + answer


def _without_image(template: str, tokenizer: Tokenizer) -> str:
    """A template for the turns behind the image: without it, the special tokens on both sides of it, and bos."""
    special = "|".join(map(re.escape, tokenizer.special_texts)) or "(?!)"
    rest = re.sub(rf"((?:{special})+\{{image\}}(?:{special})+|\{{image\}})\s*", "", template)
    return rest.replace(tokenizer.bos_text or CHAT_MARK, "")


def fixed_text(template: str | None) -> str | None:
    """What a template itself says, for a tokenizer that learns its vocabulary; None: nothing."""
    text = "" if template in (None, CHAT) else " ".join(PLACE.sub(" ", str(template)).split())
    return text or None


def _joined(ids: Sequence[list[int]]) -> list[int]:
    return [token for each in ids for token in each]


def _fill(template: str, text: str) -> list[_Part]:
    parts = {"{text}": _Part("text", text.strip()), "{image}": IMAGE}
    return [parts.get(piece) or _Part("fixed", piece) for piece in PLACE.split(template) if piece]


def _check_places(template: str) -> None:
    places = re.findall(r"\{\w*\}", template)
    wrong = [place for place in places if place not in ("{text}", "{image}")]
    if wrong or len(places) > len(set(places)):
        raise ConfigError(
            f"decoder.template {template!r} has the places {', '.join(places)}; it takes {{text}} and {{image}}, each "
            f"once, as in 'Question: {{text}} Answer:'; or it is 'chat', the tokenizer's own template."
        )
    if not template.strip():
        raise ConfigError("decoder.template is empty; it is a text such as 'Question: {text} Answer:', 'chat' or null.")


def _require_plain(text: str, tokenizer: Tokenizer) -> None:
    """Refuse texts that would be read as the template's own marks."""
    for token in tokenizer.special_texts:
        if token in text:
            raise DataError(f"the text {text[:60]!r} contains {token!r}, which is a special token of the tokenizer")


def _check_chat(tokenizer: Tokenizer) -> None:
    """Check that there is a chat template, that it repeats what is said, and that eos ends its turns."""
    question, answer = _mark(0), _mark(1)
    whole = tokenizer.render_chat([_user(question), _assistant(answer)], prompt=False)
    if whole.count(question) != 1 or whole.count(answer) != 1:
        raise ConfigError("The tokenizer's chat template does not repeat each message once; write decoder.template.")
    end = whole.split(answer)[1].lstrip()
    eos = tokenizer.eos_text
    if eos is None or not end.startswith(eos):
        found = next((token for token in tokenizer.special_texts if end.startswith(token)), end[:20])
        raise ConfigError(
            f"The chat template ends an answer with {found!r}, and the tokenizer's eos is {eos!r}, at which captions "
            f"end: set data.tokenizer.eos to {found!r}."
        )


def _chat_parts(tokenizer: Tokenizer, text: str, history: Sequence[Turn]) -> list[_Part]:
    """The chat template filled with marks, which are then replaced by the texts."""
    said: list[_Part] = []
    messages = []
    for question, answer in history:
        messages += [_user(_mark(len(said))), _assistant(_mark(len(said) + 1))]
        said += [_Part("text", question.strip()), _Part("answer", answer.strip())]
    messages.append(_user(_mark(len(said))))
    said.append(_Part("text", text.strip()))
    pieces = re.split("\ue000(\\d+)\ue001", tokenizer.render_chat(messages, prompt=True))
    parts: list[_Part] = []
    for number, piece in enumerate(pieces):
        if number % 2:
            part = said[int(piece)]
            parts += [IMAGE, part] if int(piece) == 0 else [part]
        elif parts and parts[-1].kind == "answer":
            parts += [EOS, _Part("fixed", piece.lstrip().removeprefix(tokenizer.eos_text or ""))]
        elif piece:
            parts.append(_Part("fixed", piece))
    return parts


def _mark(number: int) -> str:
    return CHAT_MARK.format(number)


def _user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def _assistant(content: str) -> dict[str, str]:
    return {"role": "assistant", "content": content}
