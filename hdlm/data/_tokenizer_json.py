"""The document `tokenizer.json`: it is checked before it is opened, and rewritten where a variant is needed.

The `tokenizers` library hardly checks such a file: it refuses some damaged files with a bare `Exception`, and opens
others as a tokenizer whose ids have gaps.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Literal, final

import tokenizers

__all__ = [
    "adds_prefix_space",
    "check",
    "check_ids",
    "how_tokens_join",
    "kind_and_split",
    "open_tokenizer_json",
    "with_token",
    "with_word",
    "without_prefix_space",
    "without_token",
    "without_unused",
]

TokenizerDocument = dict[str, Any]

_KINDS = ("BPE", "WordPiece")
_PREFIX_SPACE = "add_prefix_space"
_UNUSED = re.compile(r"<\|unused_\d+\|>")


def check(text: str, origin: str) -> None:
    """Check that a file is a complete `tokenizer.json` with a model of a known kind.

    Raises:
        ValueError: If it is not such a file, or its kind is unknown.
    """
    try:
        document = json.loads(text)
        model = document["model"]
        vocabulary = model["vocab"]
        kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
        if kind == "BPE":
            _ = model["merges"]
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{origin} is not a tokenizer: it is not JSON with a `model` that has a `vocab`, and `merges` if its "
            "`type` is 'BPE'."
        ) from error
    _check_kind(kind, document, origin)
    if not isinstance(vocabulary, dict):
        raise ValueError(f"{origin} is not a tokenizer: its `vocab` is not a table of words and ids.")
    if kind == "BPE":
        _check_merges(model, origin)
    elif str(model.get("unk_token", "[UNK]")) not in vocabulary:
        raise ValueError(f"{origin} is not a tokenizer: its `unk_token` is not in its vocabulary.")


def _check_kind(kind: object, document: TokenizerDocument, origin: str) -> None:
    if kind not in _KINDS:
        raise ValueError(f"{origin} holds a tokenizer of type {kind!r}; hdlm reads {', '.join(_KINDS)}.")
    if kind == "BPE" and not any(True for _ in _byte_level_parts(document)):
        raise ValueError(f"{origin} holds byte-pair encoding without `ByteLevel`, which hdlm does not read.")


def _check_merges(model: TokenizerDocument, origin: str) -> None:
    """Check that each merge joins two words to a third, as the library assumes."""
    if model.get("continuing_subword_prefix") or not isinstance(model["merges"], list):
        raise ValueError(
            f"{origin} is not a tokenizer of bytes: see its `continuing_subword_prefix` and `merges`."
        )
    for merge in model["merges"]:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        try:
            good = len(pair) == 2 and all(word in model["vocab"] for word in (*pair, "".join(pair)))
        except TypeError:
            good = False
        if not good:
            raise ValueError(
                f"{origin} is not a tokenizer: it merges {merge!r}, which is not a pair of its words."
            )


def open_tokenizer_json(text: str, origin: str) -> tokenizers.Tokenizer:
    """Open a file that `check` accepted.

    Raises:
        ValueError: If the library refuses it.
    """
    with _Refusing(origin):
        return tokenizers.Tokenizer.from_str(text)


def kind_and_split(backend: tokenizers.Tokenizer, origin: str) -> tuple[str, TokenizerDocument]:
    """The kind of a tokenizer, and the part of its document that describes how text is split into words.

    Raises:
        ValueError: If the kind is unknown.
    """
    kind = type(backend.model).__name__
    splitter = backend.pre_tokenizer
    document = {"pre_tokenizer": None if splitter is None else json.loads(splitter.__getstate__())}
    _check_kind(kind, document, origin)
    return kind, document


def check_ids(backend: tokenizers.Tokenizer, origin: str) -> None:
    """Check that every word can be a row of a network.

    Raises:
        ValueError: If the ids are not `0 .. N-1`, each once.
    """
    ids = sorted(backend.get_vocab(with_added_tokens=True).values())
    if not ids or ids != list(range(len(ids))):
        raise ValueError(
            f"{origin} cannot be used: its {len(ids)} words must have the ids 0 to {len(ids) - 1}, each once."
        )


@final
class _Refusing:
    """Turns the errors of `tokenizers`, which are instances of `Exception` itself, into a ValueError."""

    def __init__(self, origin: str) -> None:
        self._origin = origin

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is Exception:
            raise ValueError(f"{self._origin} is not a tokenizer: {error}.") from error


def _byte_level_parts(document: TokenizerDocument) -> Iterator[TokenizerDocument]:
    """The parts of a pre-tokenizer that turn text into bytes."""
    whole = document.get("pre_tokenizer")
    if isinstance(whole, dict):
        parts = whole.get("pretokenizers") if whole.get("type") == "Sequence" else [whole]
        for part in parts if isinstance(parts, list) else []:
            if isinstance(part, dict) and part.get("type") == "ByteLevel":
                yield part


def adds_prefix_space(document: TokenizerDocument) -> bool:
    """Whether a space is added before the text."""
    return any(part.get(_PREFIX_SPACE, True) for part in _byte_level_parts(document))


def how_tokens_join(decoder: TokenizerDocument | None) -> Literal["words", "bytes", "byte words", "unknown"]:
    """How the text of tokens is made from them, and so which part of it further tokens may change.

    Args:
        decoder: The decoder of the document; None if words are joined by spaces.

    Returns:
        `"words"` if the text only grows. `"bytes"` if tokens are bytes, so the last character may be incomplete.
        `"byte words"` if runs of tokens such as `<0xE2>` are decoded together as bytes. `"unknown"` if a token may
        change the text of all tokens before it.
    """
    parts = [] if decoder is None else decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    kinds = [part["type"] for part in parts]
    if [kind for kind in kinds if kind != "Fuse"] == ["ByteLevel"]:
        return "bytes"
    if kinds in ([], ["WordPiece"], ["Metaspace"]):
        return "words"
    order = ["Replace", "ByteFallback", "Fuse", "Strip"]
    known = all(kind in order for kind in kinds) and sorted(kinds, key=order.index) == kinds
    if known and not any(part["type"] == "Strip" and part["stop"] for part in parts):
        return "byte words" if "ByteFallback" in kinds else "words"
    return "unknown"


def without_prefix_space(document: TokenizerDocument) -> TokenizerDocument:
    """A copy of a document that adds no space before the text."""
    changed = copy.deepcopy(document)
    for part in _byte_level_parts(changed):
        part[_PREFIX_SPACE] = False
    return changed


def with_word(document: TokenizerDocument, word: str) -> TokenizerDocument:
    """A copy of a document with one more word at the end of the vocabulary."""
    model = document["model"]
    size = 1 + max([*model["vocab"].values(), *(token["id"] for token in document["added_tokens"])])
    return {**document, "model": {**model, "vocab": {**model["vocab"], word: size}}}


def without_token(document: TokenizerDocument, token: int, content: str) -> TokenizerDocument:
    """A copy of a document without one token; larger ids decrease by one.

    Args:
        document: A complete document, as the library writes it.
        token: The id of the token.
        content: The text of the token.

    Raises:
        ValueError: If other parts need the token.
    """

    def moved(id: int) -> int:
        return id - (id > token)

    model = document["model"]
    if content == model.get("unk_token"):
        raise ValueError(f"the token {content!r} stands for unknown words; it cannot be removed.")
    if any(content in (*merge, "".join(merge)) for merge in model.get("merges", ())):
        raise ValueError(f"other words are merged from or into the token {content!r}; it cannot be removed.")
    return {
        **document,
        "added_tokens": [
            {**added, "id": moved(added["id"])} for added in document["added_tokens"] if added["id"] != token
        ],
        "post_processor": _processor(document["post_processor"], content, moved),
        "model": {
            **model,
            "vocab": {word: moved(id) for word, id in model["vocab"].items() if id != token},
        },
    }


def with_token(document: TokenizerDocument, token: int, content: str) -> TokenizerDocument:
    """A copy of a document with one more special token; ids from its id on increase by one.

    Args:
        document: A complete document, as the library writes it.
        token: The id of the new token. If it lies behind all others, the ids between are left out.
        content: The text of the token.
    """

    def moved(id: int) -> int:
        return id + (id >= token)

    model = document["model"]
    added = [{**other, "id": moved(other["id"])} for other in document["added_tokens"]]
    kinds = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added.append({"id": token, "content": content, **kinds, "special": True})
    vocabulary = {word: moved(id) for word, id in model["vocab"].items()}
    if token < len(vocabulary):  # else the library gives it an id of its own
        vocabulary[content] = token
    return {
        **document,
        "added_tokens": sorted(added, key=lambda other: int(other["id"])),
        "post_processor": _processor(document["post_processor"], "", moved),
        "model": {**model, "vocab": vocabulary},
    }


def without_unused(document: TokenizerDocument) -> TokenizerDocument:
    """A copy of a document without the tokens `<|unused_N|>` of rows for which the original has no token."""
    kept = [token for token in document["added_tokens"] if not _UNUSED.fullmatch(token["content"])]
    return {**document, "added_tokens": kept}


def _processor(processor: Any, content: str, moved: Callable[[int], int]) -> Any:
    """The part that puts special tokens around a text, with new ids."""
    if not isinstance(processor, dict):
        return processor
    changed = dict(processor)
    named = {end: processor[end] for end in ("cls", "sep") if end in processor}
    table = processor.get("special_tokens", {})
    if content in table or any(word == content for word, _ in named.values()):
        raise ValueError(f"the token {content!r} is put around every text; it cannot be removed.")
    for end, (word, id) in named.items():
        changed[end] = [word, moved(id)]
    if table:
        changed["special_tokens"] = {
            name: {**token, "ids": [moved(id) for id in token["ids"]]} for name, token in table.items()
        }
    if "processors" in processor:
        changed["processors"] = [_processor(part, content, moved) for part in processor["processors"]]
    return changed
