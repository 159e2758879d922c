"""The streamed pieces join to the text of the passage and contain no part of a stop string."""

from __future__ import annotations

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
from hdlm.generation.passages import Ending, PassageStreamer, Reader, text_of
from hdlm.hyperschedule import flat
from hdlm.noise_schedule import LINEAR
from hdlm.process import Absorbing
from tests.gpt2 import tokenizer_json
from tests.tiny import tiny_denoiser

TEXT = ["漢字 🙂👍🏽 café cafe\u0301 and drink, thee and thou. \n\n x\u3000y\u00a0z 中\ufffd文"]
BYTE_WORDS = [
    f"<0x{byte:02X}>" for byte in (0x41, 0x20, 0x0A, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x98, 0x80, 0xFF)
]
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
    """Byte fallback as in Llama: a run of bytes is one text, or one replacement character per byte."""
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return _words(PIECES, decoders.Sequence(parts))


@cache
def sentence_pieces() -> Tokenizer:
    return _words(PIECES, decoders.Metaspace())


@cache
def rewriting_tokenizer() -> Tokenizer:
    """A tokenizer for which the text of a prefix is not a prefix of the text."""
    parts = [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Replace("ab", "drink")]
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
        rewriting_tokenizer,
        joined_by_spaces,
    )
}


PARTS = st.lists(
    st.one_of(
        st.lists(st.integers(0, 10**6), max_size=6),
        st.tuples(
            st.text(st.sampled_from("ab .,\n 漢字🙂👍é\u0301\u3000\u00a0\ufffdand drink"), max_size=8),
            st.integers(0, 5),
            st.integers(0, 5),
        ),
        st.none(),
    ),
    min_size=1,
    max_size=4,
)
"""Single tokens, a text with the number of tokens cut on each side, or an end of text."""


def tokens_of(tokenizer: Tokenizer, parts: list[Any]) -> list[int]:
    """Tokens that `PARTS` describe."""
    words = tokenizer.vocabulary
    ids: list[int] = []
    for part in parts:
        if part is None:
            ids.append(words.eos)
        elif isinstance(part, list):
            ids += [number % words.num_words for number in part]
        else:
            text, left, right = part
            whole = tokenizer.encode(text)
            ids += whole[left : max(len(whole) - right, 0)]
    return ids


STOPS = st.lists(
    st.one_of(
        st.sampled_from(
            [" ", "\n", "and", "drink", "and drink", "d d", "漢", "字🙂", "\ufffd", "b", ".", "\u0301"]
        ),
        st.text(st.sampled_from("ab \n漢é.d"), min_size=1, max_size=4),
    ),
    max_size=3,
    unique=True,
)


def whole_text(tokenizer: Tokenizer, ids: list[int], begin: int, ending: Ending) -> str:
    """The expected text: all tokens are known, and the text ends at the first stop string after the prompt."""
    eos = tokenizer.vocabulary.eos
    if ending.at_end_of_text and eos in ids[begin:]:
        ids = ids[: ids.index(eos, begin) + 1]
    text = text_of(ids, tokenizer)
    prompt = text_of(ids[:begin], tokenizer)
    start = next(at for at in range(len(prompt), -1, -1) if text.startswith(prompt[:at]))
    places = [text.find(string, start) for string in ending.strings]
    return text[: min((place for place in places if place >= 0), default=len(text))]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_streamed_pieces_join_to_text_for_any_steps(kind: str, data: st.DataObject) -> None:
    """Any number of tokens settles per step, with and without a prompt."""
    tokenizer = KINDS[kind]()
    ids = tokens_of(tokenizer, data.draw(PARTS))
    assume(ids)
    begin = data.draw(st.integers(0, min(len(ids) - 1, 4)))
    ending = Ending(data.draw(st.booleans()), tuple(data.draw(STOPS)))
    steps = sorted({len(ids), *data.draw(st.lists(st.integers(begin, len(ids)), max_size=len(ids)))})
    expected = whole_text(tokenizer, ids, begin, ending)
    reader, pieces = Reader(tokenizer, ending, ids[:begin], len(ids)), []
    stream = PassageStreamer(reader, lambda _, piece: pieces.append(piece))
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
    if expected != text_of(ids[:length], tokenizer).rstrip():
        assert length == begin or not text_of(ids[: length - 1], tokenizer).startswith(expected)


@pytest.mark.parametrize("kind", ["characters", "byte_pairs", "gpt2"])
def test_reader_shows_text_as_soon_as_characters_are_complete(kind: str) -> None:
    tokenizer = KINDS[kind]()
    ids = tokenizer.encode("漢字 🙂 e\u0301")
    reader = Reader(tokenizer, Ending(), [], len(ids) + 1)
    for end in range(len(ids) + 1):
        certain, shown = tokenizer.decode(ids[:end]).rstrip("\ufffd").rstrip(), reader.read(ids[:end]).text
        assert certain == shown


def test_reader_stops_at_end_string() -> None:
    tokenizer = characters()
    ids = tokenizer.encode("ab and drink")
    reader = Reader(tokenizer, Ending(strings=("drink",)), ids[:3], len(ids) + 9)
    assert reader.read(ids[:-1]).text == "ab and "
    assert reader.read(ids).text == "ab and "
    assert reader.read(ids).length == len(tokenizer.encode("ab and "))
    longer = Reader(tokenizer, Ending(strings=("and dress", "drink")), [], len(ids) + 9)
    assert longer.read(ids[:-3]).text == "ab "
    assert longer.read(ids).text == "ab and "


# -- with a model -------------------------------------------------------------------------------------------------

LENGTH = 24
HOW = [
    Settings("original", hyperschedule="autoregressive", length=LENGTH),
    Settings("original", hyperschedule="flat", steps=6, length=LENGTH),
    Settings("acs", hyperschedule="block", width=5, steps=3, length=LENGTH),
    Settings("remdm", eta=0.3, hyperschedule="slide", width=4, steps=4, length=LENGTH),
    Settings("gibbs", eta=0.3, hyperschedule="wave", width=6, steps=3, length=LENGTH),
]


@cache
def model() -> Checkpoint:
    """Random weights and a tokenizer whose words are parts of characters of three and four bytes."""
    tokenizer = train_tokenizer(["漢字仮名交じり文、🙂👍🏽🎉。"], 300)
    denoiser = tiny_denoiser(Absorbing(tokenizer.vocabulary.num_words), num_blocks=1)
    return Checkpoint(denoiser, tokenizer.vocabulary, LINEAR, (flat(LENGTH, 4),), tokenizer.to_json())


def written(how: Settings, prompt: str = "", num: int = 1, **options: Any) -> list[Passage]:
    """The passages of a plain call, after a check that streaming gives equal text."""
    shown: dict[int, list[str]] = {}

    def show(sequence: int, piece: str) -> None:
        assert piece
        shown.setdefault(sequence, []).append(piece)

    plain = write(model(), prompt, how, num=num, first_sequence=3, **options)
    assert write(model(), prompt, how, num=num, first_sequence=3, stream=show, **options) == plain
    assert ["".join(shown.get(3 + index, [])) for index in range(num)] == [one.text for one in plain]
    return plain


@pytest.mark.parametrize("how", HOW, ids=lambda how: how.hyperschedule)
def test_stream_equals_passage_for_every_hyperschedule(how: Settings) -> None:
    passages = written(how, "文", num=6)
    assert any(one.text.endswith("\ufffd") for one in passages)
    stopping = Ending(at_end_of_text=True, strings=("\ufffd\ufffd", "文", "字\ufffd"))
    ended = written(how, "文", num=6, ending=stopping)
    assert any(len(one.tokens) < LENGTH for one in ended)
    eos = model().vocabulary.eos
    for whole, one in zip(passages, ended, strict=True):
        ids = list(whole.tokens)
        tokenizer = Tokenizer.from_json(str(model().tokenizer_json))
        assert one.text == whole_text(tokenizer, ids, whole.given, stopping)
        assert not any(string in one.text[1:] for string in stopping.strings)
        assert one.tokens == whole.tokens[: len(one.tokens)]
        assert eos not in one.tokens[one.given : -1]


def test_infill_stream_equals_passage() -> None:
    how = Settings("original", hyperschedule="flat", steps=3)
    (passage,) = written(how, "漢[MASK:4]字[MASK:2]")
    assert passage.text.startswith("漢")


def test_stop_at_first_character_writes_no_token() -> None:
    """The space before the first written word is part of that word for every tokenizer."""
    for how in HOW[:2]:
        (passage,) = written(how, "文", ending=Ending(strings=(written(how, "文")[0].text[1],)))
        assert passage.text == "文"
        assert len(passage.tokens) == passage.given
