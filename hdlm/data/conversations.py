"""Conversations for instruction tuning: JSON lines of messages, a chat template, and windows with whole samples.

    messages -> chat template -> tokens, and which of them are answers -> samples -> windows

A sample is a conversation. Only the answers of the assistant are noised and have a loss. Samples that share a window do
not attend to one another, and each begins at a multiple of the width of blocks, so that a block belongs to one sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hdlm.data.order import shuffled
from hdlm.data.packing import AbstractWindows, Samples
from hdlm.data.tokenizer import Tokenizer

__all__ = [
    "CHATML",
    "ConversationWindows",
    "EncodedConversation",
    "Fill",
    "chat_template",
    "encode_conversation",
]

Fill = Literal["padding", "end"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""The chat template of models that bring none."""
_SHUFFLE = 0x83
"""Random stream of this module."""
Template = Callable[[Sequence[dict[str, Any]], bool], str]


@final
class EncodedConversation(NamedTuple):
    """A conversation as tokens.

    Attributes:
        tokens: Ids of the tokens.
        answers: Whether each token is part of an answer.
    """

    tokens: list[int]
    answers: list[bool]


def chat_template(source: str = "") -> Template:
    """A function that renders messages, with or without the beginning of an answer at the end.

    Args:
        source: A file with a template in Jinja, a `tokenizer_config.json` that has one, or the folder of such a file;
            ChatML if it is empty.

    Raises:
        ValueError: If there is no template.
    """
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    text = _template_text(Path(source)) if source else CHATML
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )

    def refuse(message: str) -> None:
        raise ValueError(f"the chat template refuses a conversation: {message}")

    environment.globals["raise_exception"] = refuse
    environment.filters["tojson"] = lambda value, **options: json.dumps(value, ensure_ascii=False, **options)
    compiled = environment.from_string(text)
    return lambda messages, begins: compiled.render(messages=messages, add_generation_prompt=begins)


def _template_text(path: Path) -> str:
    path = path / "tokenizer_config.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no chat template at {path}.")
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".json":
        return text
    template = json.loads(text).get("chat_template")
    if not isinstance(template, str):
        raise ValueError(f"{path} has no `chat_template`: give a file with one.")
    return template


def encode_conversation(
    tokenizer: Tokenizer, messages: Sequence[dict[str, Any]], template: Template
) -> EncodedConversation:
    """The tokens of a conversation, and which of them are answers of the assistant.

    An answer is what the template adds to the text that ends where the answer begins, with the token that ends it.

    Raises:
        ValueError: If a message lacks its role or its content, there is no answer, or the template changes earlier text
            when a message is added.
    """
    if any(not isinstance(message.get(key), str) for message in messages for key in ("role", "content")):
        raise ValueError(f"each message needs a `role` and a `content`; got {list(messages)!r}.")
    tokens, answers, done = [*tokenizer.vocabulary.text_start], [], ""
    answers = [False] * len(tokens)
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, after = template(messages[:index], True), template(messages[: index + 1], False)
        if not before.startswith(done) or not after.startswith(before):
            raise ValueError(
                "the chat template changes earlier text when a message is added, so answers cannot be told from "
                "prompts; give another one with data.chat_template."
            )
        for text, is_answer in ((before[len(done) :], False), (after[len(before) :], True)):
            ids = tokenizer.encode(text, "glued")
            tokens += ids
            answers += [is_answer] * len(ids)
        done = after
    if not any(answers):
        raise ValueError(f"a conversation without an answer of the assistant: {list(messages)!r}.")
    return EncodedConversation(tokens, answers)


@final
@dataclass(frozen=True)
class ConversationWindows(AbstractWindows):
    """Windows with whole samples, in a random order that every epoch changes.

    Attributes:
        tokens: Tokens of each window of an epoch.
        given: Tokens that have no loss.
        documents: Sample of each token; padding is a sample of its own.
        seed: Seed of the order.
    """

    tokens: Int[Tensor, "n l"]
    given: Bool[Tensor, "n l"]
    documents: Int[Tensor, "n l"]
    seed: int

    @classmethod
    def pack(
        cls,
        samples: Iterable[EncodedConversation],
        length: int,
        end: int,
        seed: int,
        *,
        width: int = 1,
        fill: Fill = "padding",
    ) -> ConversationWindows:
        """Lay samples out in windows, in their order.

        Args:
            samples: The samples; one that is longer than a window is cut, and left out if no answer remains.
            length: Tokens in a window.
            end: The token that ends a document, with which windows are filled.
            seed: Seed of the order of windows.
            width: Samples begin at multiples of this number.
            fill: Whether the rest of a window is padding, which has no loss, and samples share windows; or each sample
                has a window to itself and learns to fill it with `end` (`"end"`).

        Raises:
            ValueError: If no sample fits.
        """
        windows: list[tuple[list[int], list[bool], list[int]]] = []
        room = 0
        for sample in samples:
            ids, answers = sample.tokens[:length], sample.answers[:length]
            if not any(answers):
                continue
            size = length if fill == "end" else -(-len(ids) // width) * width
            if size > room:
                windows.append(([], [], []))
                room = length
            row, fixed, owners = windows[-1]
            number, rest = len(row), min(size, room) - len(ids)
            row += [*ids, *[end] * rest]
            fixed += [*(not answer for answer in answers), *[fill == "padding"] * rest]
            owners += [*[number] * len(ids), *[number if fill == "end" else -1] * rest]
            room = length - len(row)
        if not windows:
            raise ValueError(
                f"no conversation has an answer in its first {length} tokens: raise data.context."
            )
        for row, fixed, owners in windows:
            rest = length - len(row)
            row += [end] * rest
            fixed += [True] * rest
            owners += [-1] * rest
        tokens, given, documents = (torch.tensor(column) for column in zip(*windows, strict=True))
        return cls(tokens, given, documents, seed)

    @property
    def length(self) -> int:  # type: ignore[override]
        """Tokens in a window."""
        return self.tokens.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(str(self.seed).encode())
        for table in (self.tokens, self.given, self.documents):
            digest.update(table.numpy().tobytes())
        return digest.hexdigest()

    def batch(self, first: int, count: int) -> Int[Tensor, "count l"]:
        return self.tokens[self._places(first, count)]

    def samples(self, first: int, count: int) -> Samples:
        places = self._places(first, count)
        return Samples(self.given[places], self.documents[places])

    def _places(self, first: int, count: int) -> Int[Tensor, " count"]:
        """The windows of an epoch at some places of the endless order."""
        size, numbers = len(self.tokens), torch.arange(first, first + count)
        epochs = numbers // size
        parts = [
            shuffled(self.seed, int(epoch), size, numbers[epochs == epoch] % size, _SHUFFLE)
            for epoch in epochs.unique()
        ]
        return torch.cat(parts)
