"""What a stream prints, joined, is the text of the passage, and nothing of a string to stop at is in it."""

from __future__ import annotations

import json
import os.path
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import tokenizers
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, pre_tokenizers

from hdlm.checkpoint import Checkpoint
from hdlm.data import Tokenizer, train_tokenizer
from hdlm.generation import Passage, Settings, write
from hdlm.hyperschedule import AbstractHyperschedule, Block, Slide, Wave, autoregressive, flat
from hdlm.noise_schedule import LINEAR
from hdlm.passages import Ending, Reader, Stream, text_of
from hdlm.process import Absorbing
from tests.gpt2 import tokenizer_json
from tests.tiny import tiny_denoiser

TEXT = ["漢字 🙂👍🏽 café cafe\u0301 and drink, thee and thou. \n\n x\u3000y\u00a0z 中\ufffd文"]
BYTE_WORDS = [f"<0x{byte:02X}>" for byte in (0x41, 0x20, 0x0A, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0x80, 0xFF)]
PIECES = ["▁a", "▁", "b", "▁and", "▁drink", "漢", "🙂", "\u0301", "\n", *BYTE_WORDS]


@cache
def characters() -> Tokenizer:
    """A token for each byte, and no merges."""
    return train_tokenizer(TEXT, 257)


@cache
def byte_pairs() -> Tokenizer:
    """Byte-pair encoding with a space before a document; its merges cross the borders of characters."""
    return train_tokenizer(TEXT * 3, 320)


@cache
def gpt2() -> Tokenizer:
    return Tokenizer.from_json(tokenizer_json().decode())


def _words(words: list[str], decoder: Any) -> Tokenizer:
    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]
    backend = tokenizers.Tokenizer(
        models.WordPiece({word: id for id, word in enumerate(known)}, unk_token="[UNK]")
    )
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.decoder = decoder
    backend.add_special_tokens(known[:4])
    return Tokenizer(backend)


@cache
def word_pieces() -> Tokenizer:
    words = ["a", "##b", "and", "##s", "drink", "n't", "do", ".", ",", "'", "漢", "##字", "🙂", "\u0301"]
    return _words(words, decoders.WordPiece(cleanup=True))


@cache
def byte_fallback() -> Tokenizer:
    """As the tokenizers of Llama read: a run of bytes is one text, or as many signs of damage as it has bytes."""
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return _words(PIECES, decoders.Sequence(parts))


@cache
def sentence_pieces() -> Tokenizer:
    return _words(PIECES, decoders.Metaspace())


@cache
def stripped() -> Tokenizer:
    """A tokenizer whose text of some tokens is not the beginning of the text of more."""
    parts = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip("b", 0, 3)]
    return _words(PIECES, decoders.Sequence(parts))


@cache
def joined_by_spaces() -> Tokenizer:
    return _words(PIECES, None)


KINDS = {
    make.__name__: make
    for make in (
        characters,
        byte_pairs,
        gpt2,
        word_pieces,
        byte_fallback,
        sentence_pieces,
        stripped,
        joined_by_spaces,
    )
}


@st.composite
def sequences(draw: st.DrawFn, kind: str) -> list[int]:
    """Random tokens of one kind, more often such as go together: tokens of texts, whole and cut anywhere."""
    tokenizer = KINDS[kind]()
    words = tokenizer.vocabulary
    loose = st.lists(st.integers(0, words.num_words - 1), max_size=6)
    text = st.text(st.sampled_from("ab .,\n 漢字🙂👍é\u0301\u3000\u00a0\ufffdand drink"), max_size=8)
    whole = text.map(tokenizer.encode)
    cut = st.tuples(whole, st.integers(0, 5), st.integers(0, 5)).map(lambda t: t[0][t[1] : len(t[0]) - t[2]])
    ends = st.just([words.eos])
    return sum(draw(st.lists(st.one_of(loose, whole, cut, ends), min_size=1, max_size=4)), [])


STOPS = st.lists(
    st.one_of(
        st.sampled_from([" ", "\n", "and", "drink", "and drink", "d d", "漢", "字🙂", "\ufffd", "b", ".", "\u0301"]),
        st.text(st.sampled_from("ab \n漢é.d"), min_size=1, max_size=4),
    ),
    max_size=3,
    unique=True,
)


def whole_text(tokenizer: Tokenizer, ids: list[int], begin: int, ending: Ending) -> str:
    """The text by its definition: everything is known, and it ends at the first string behind the prompt."""
    eos = tokenizer.vocabulary.eos
    if ending.at_end_of_text and eos in ids[begin:]:
        ids = ids[: ids.index(eos, begin) + 1]
    text = text_of(tokenizer, ids)
    start = len(os.path.commonprefix([text, text_of(tokenizer, ids[:begin])]))
    places = [text.find(string, start) for string in ending.strings]
    return text[: min((place for place in places if place >= 0), default=len(text))]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_pieces_join_to_the_text_whatever_settles_together(kind: str, data: st.DataObject) -> None:
    """Whatever number of tokens settles at a time, and whether or not there is a prompt."""
    tokenizer = KINDS[kind]()
    ids = data.draw(sequences(kind))
    assume(ids)
    begin = data.draw(st.integers(0, min(len(ids) - 1, 4)))
    ending = Ending(data.draw(st.booleans()), tuple(data.draw(STOPS)))
    steps = sorted({len(ids), *data.draw(st.lists(st.integers(begin, len(ids)), max_size=len(ids)))})
    expected = whole_text(tokenizer, ids, begin, ending)
    reader, pieces = Reader(tokenizer, ending, ids[:begin], len(ids)), []
    stream = Stream(reader, lambda _, piece: pieces.append(piece))
    length = None
    for step in steps:
        found = reader.read(ids[:step])
        assert expected.startswith(found.text)
        stream.read(0, ids[:step])
        assert "".join(pieces) == found.text
        if found.length is not None:
            length = found.length
            break
    assert "".join(pieces) == expected
    if length is None:
        return
    assert begin <= length <= step
    if expected != text_of(tokenizer, ids[:length]).rstrip():
        assert length == begin or not text_of(tokenizer, ids[: length - 1]).startswith(expected)


@pytest.mark.parametrize("kind", ["characters", "byte_pairs", "gpt2"])
def test_text_appears_as_soon_as_its_characters_are_whole(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode("漢字 🙂 e\u0301")
    reader = Reader(tokenizer, Ending(), [], len(ids) + 1)
    for end in range(len(ids) + 1):
        certain, shown = tokenizer.decode(ids[:end]).rstrip("\ufffd").rstrip(), reader.read(ids[:end]).text
        assert certain == shown


def test_what_is_known_of_the_end() -> None:
    tokenizer = characters()
    ids = tokenizer.encode("ab and drink")
    reader = Reader(tokenizer, Ending(strings=("drink",)), ids[:3], len(ids) + 9)
    assert reader.read(ids[:-1]).text == "ab and "
    assert reader.read(ids).text == "ab and "
    assert reader.read(ids).length == len(tokenizer.encode("ab and "))
    longer = Reader(tokenizer, Ending(strings=("and dress", "drink")), [], len(ids) + 9)
    assert longer.read(ids[:-3]).text == "ab"
    assert longer.read(ids).text == "ab and "


# -- with a model -------------------------------------------------------------------------------------------------

LENGTH = 24
PLANS = [autoregressive(LENGTH), flat(LENGTH, 6), Block(LENGTH, 5, 3), Slide(LENGTH, 4, 4), Wave(LENGTH, 6, 3)]


@cache
def model(make: Callable[[], Tokenizer]) -> Checkpoint:
    tokenizer = make()
    denoiser = tiny_denoiser(Absorbing(tokenizer.vocabulary.num_words), num_blocks=1)
    return Checkpoint(denoiser, tokenizer.vocabulary, LINEAR, tuple(PLANS), tokenizer.to_json())


def both(plan: AbstractHyperschedule, seed: int, prompt: str = "", num: int = 1, **options: Any) -> list[Passage]:
    """The passages of a plain call, after a check that those of a stream are the same, piece by piece."""
    family = type(plan).__name__.lower()
    how = Settings(
        algorithm="original",
        hyperschedule=family if plan != PLANS[0] else "autoregressive",
        width=getattr(plan, "width", None) if plan not in PLANS[:2] else None,
        steps=None if plan == PLANS[0] else plan.num_levels,
        length=None if "[MASK" in prompt else LENGTH,
    )
    if plan == PLANS[1]:
        how = Settings(algorithm="original", hyperschedule="flat", steps=6, length=how.length)
    checkpoint, shown = model(byte_pairs), {}
    def show(sequence: int, piece: str) -> None:
        assert piece
        shown[sequence] = shown.get(sequence, "") + piece
    common = {"num": num, "seed": seed, "first_sequence": 3, **options}
    plain = write(checkpoint, prompt, how, **common)
    streamed = write(checkpoint, prompt, how, stream=show, **common)
    assert streamed == plain
    assert [shown.get(3 + index, "") for index in range(num)] == [passage.text for passage in plain]
    return plain
