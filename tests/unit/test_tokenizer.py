"""One tokenizer for three kinds: ours, GPT-2's with its real vocabulary, and BERT's."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import models, normalizers, pre_tokenizers, processors

from hdlm.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from hdlm.data import CORPORA, END_OF_TEXT, Tokenizer, corpus, tokenise, train_tokenizer
from hdlm.generation import Settings, blanks, write
from hdlm.hyperschedule import flat
from hdlm.noise_schedule import LINEAR
from hdlm.process import Absorbing
from hdlm.vocabulary import GPT2, Vocabulary
from tests.gpt2 import tokenizer_json
from tests.tiny import tiny_denoiser

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[MASK]", "[SEP]", "the", "cat", "sat", "##s", "##ting", ",", "."]
"""A small WordPiece vocabulary with its mask between the words, as in BERT."""
MASK_ROW = 3


@cache
def gpt2() -> Tokenizer:
    return Tokenizer.from_json(tokenizer_json().decode())


@cache
def ours() -> Tokenizer:
    return train_tokenizer(["The cat of the house sat down, and the cats of the town sat too."] * 3, 285)


def word_pieces() -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.WordPiece({word: id for id, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = tokenizers.decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 4)]
    )
    backend.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    return backend


@cache
def bert() -> Tokenizer:
    return Tokenizer(word_pieces())


# -- GPT-2 ----------------------------------------------------------------------------------------------------


def test_gpt2_tokenizer_encodes_known_ids() -> None:
    assert gpt2().vocabulary == GPT2
    assert gpt2().encode("Hello world") == [15496, 995]
    assert gpt2().encode(" Hello world") == [18435, 995]
    assert gpt2().encode(f"Hello{END_OF_TEXT}") == [15496, GPT2.eos]
    assert gpt2().decode([15496, 995]) == "Hello world"


def test_gpt2_tokenizer_has_token_for_every_byte() -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = tokenizers.Tokenizer.from_str(gpt2().to_json())
    assert sorted(backend.token_to_id(letter) for letter in alphabet) == list(range(256))
    text = "".join(map(chr, range(0x800))) + "\u2028\uffff\U0010ffff"
    assert gpt2().decode(gpt2().encode(text)) == text


@given(text=st.text(max_size=60).filter(lambda text: END_OF_TEXT not in text))
@settings(max_examples=60, deadline=None)
def test_gpt2_round_trip_of_any_text(text: str) -> None:
    assert gpt2().decode(gpt2().encode(text)) == text


@pytest.mark.parametrize("name", CORPORA)
def test_gpt2_round_trip_of_long_text(name: str) -> None:
    text = "\n\n".join(corpus(name).documents())[:200_000]
    ids = gpt2().encode(text)
    assert len(ids) < len(text) / 2.5
    assert gpt2().decode(ids) == text


@given(
    left=st.text("ab ,.'\n", max_size=12).filter(lambda text: text.strip()),
    right=st.text("ab ,.'\n", max_size=12).filter(lambda text: text.strip()),
    gap=st.sampled_from(["", " "]),
)
@settings(max_examples=100, deadline=None)
def test_encode_spaced_and_glued_pieces_join_to_text(left: str, right: str, gap: str) -> None:
    for tokenizer in (gpt2(), ours()):
        pieces = tokenizer.encode(left) + tokenizer.encode(right, "spaced" if gap else "glued")
        assert (
            tokenizer.decode(pieces)
            == (left.removeprefix(" ") if tokenizer is ours() else left) + gap + right
        )


# -- gaps -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt2, ours, bert])
def test_blanks_keeps_tokens_around_gap(make: Callable[[], Tokenizer]) -> None:
    """If the gap replaces a word of one token, the other tokens equal those of the whole text."""
    tokenizer = make()
    mask, whole = tokenizer.vocabulary.mask_id, tokenizer.encode("the cat sat, the cat sat.")
    cats = set(tokenizer.encode(" cat") + tokenizer.encode("cat", "spaced"))
    expected = [mask if id in cats else id for id in whole]
    assert expected.count(mask) == 2
    ids = blanks(" the [MASK] sat, the [MASK] sat. ", tokenizer, mask)
    assert ids == [tokenizer.vocabulary.bos, *expected, tokenizer.vocabulary.eos]


@pytest.mark.parametrize("make", [gpt2, ours])
def test_blanks_writes_gaps_of_several_tokens(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    mask, end = tokenizer.vocabulary.mask_id, tokenizer.vocabulary.eos
    ids = blanks("The [MASK] of[MASK:3]x\n[MASK]", tokenizer, mask)
    expected = [
        *tokenizer.encode("The"),
        mask,
        *tokenizer.encode("of", "spaced"),
        *[mask] * 3,
        *tokenizer.encode("x\n", "glued"),
        mask,
    ]
    assert ids == [end, *expected, end]
    assert tokenizer.decode([id for id in ids if id != mask]) == "The ofx\n"
    assert blanks("[MASK]x", tokenizer, mask)[1:-1] == [mask, *tokenizer.encode("x", "glued")]
    assert blanks("[MASK] x", tokenizer, mask)[1:-1] == [mask, *tokenizer.encode("x", "spaced")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("a [MASK:999999999] b", r"The gap \[MASK:999999999\] does not fit: the canvas has 64 positions"),
        ("a [MASK:60] b [MASK:5]", r"The gap \[MASK:5\] does not fit: the canvas has 64 positions"),
        (f"[MASK:{'9' * 5000}]", r"The gap \[MASK:9{34}\.\.\.\] does not fit: the canvas has 64 positions"),
        ("a [MASK:0] b [MASK]", r"The gap \[MASK:0\] has no token"),
        ("a [MASK:000]", r"The gap \[MASK:000\] has no token"),
    ],
    ids=range(5),
)
def test_blanks_rejects_bad_gap_before_allocation(text: str, complaint: str) -> None:
    tokenizer = ours()
    mask = tokenizer.vocabulary.mask_id
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=complaint) as refused:
            blanks(text, tokenizer, mask, 64)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    assert len(str(refused.value)) < 250
    assert blanks(f"[MASK:{'0' * 5000}3][MASK:61]", tokenizer, mask, 64).count(mask) == 64


def test_word_piece_encodes_glued_continuation() -> None:
    word = {name: id for id, name in enumerate(WORDS)}
    assert bert().encode("cats sat") == [word["cat"], word["##s"], word["sat"]]
    assert bert().encode("s sat", "glued") == [word["##s"], word["sat"]]
    assert bert().encode(", cat", "glued") == [word[","], word["cat"]]
    assert bert().encode("cat", "glued") == [word["cat"]]  # no continuation piece exists
    assert bert().encode("cat", "spaced") == [word["cat"]]


# -- documents ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt2, ours, bert])
def test_documents_round_trip_through_token_stream(make: Callable[[], Tokenizer]) -> None:
    tokenizer, texts = make(), ["the cat sat", "cats sat", "the cats"]
    stream = tokenise(tokenizer, texts).tokens.tolist()
    end = tokenizer.vocabulary.eos
    assert stream.count(end) == 3
    assert stream[-1] == end
    assert stream[: stream.index(end)] == tokenizer.encode("the cat sat")
    assert tokenizer.documents(stream) == texts
    filling = [] if tokenizer.vocabulary.pad is None else [tokenizer.vocabulary.pad]
    assert tokenizer.documents([tokenizer.vocabulary.bos, *stream[:-1], *filling]) == texts


@pytest.mark.parametrize("make", [gpt2, ours, bert])
def test_piece_of_each_token_joins_to_text(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    text = "".join(map(tokenizer.piece, tokenizer.encode("the cats sat")))
    assert text.removeprefix(" ") == "the cats sat"
    assert tokenizer.piece(tokenizer.vocabulary.eos or 0) == "\n"


def test_tokenizer_vocabulary_has_end_token() -> None:
    assert bert().vocabulary == Vocabulary(len(WORDS), bos=2, eos=4, pad=0)
    assert ours().vocabulary == Vocabulary(285, bos=0, eos=0)


# -- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt2, ours, bert])
def test_tokenizer_file_opens_in_hdlm_and_transformers(make: Callable[[], Tokenizer], tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer, text = make(), "the cats sat, the cat sat."
    file = tmp_path / "tokenizer.json"
    file.write_text(tokenizer.to_json(), encoding="utf-8")
    again = Tokenizer.load(file)
    assert again.vocabulary == tokenizer.vocabulary
    assert again.to_json() == tokenizer.to_json()
    assert again.encode(text) == tokenizer.encode(text)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(file))
    assert len(theirs) == tokenizer.vocabulary.num_words
    assert theirs(text, add_special_tokens=False).input_ids == tokenizer.encode(text)


def test_tokenizer_from_json_without_type_ignores_truncation() -> None:
    document = json.loads(word_pieces().to_str())
    del document["model"]["type"]
    document["truncation"] = {
        "direction": "Right",
        "max_length": 2,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    document["padding"] = {
        "strategy": {"Fixed": 9},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 0,
        "pad_type_id": 0,
        "pad_token": "[PAD]",
    }
    assert Tokenizer.from_json(json.dumps(document)).encode("the cat sat") == [5, 6, 7]


def test_without_removes_token_and_keeps_order() -> None:
    without = bert().without(MASK_ROW)
    text = "the cats, sat"
    left = [word for word in WORDS if word != "[MASK]"]
    assert without.vocabulary == Vocabulary(len(left), bos=2, eos=3, pad=0)
    assert [without.piece(id) for id in range(3, len(left))] == [
        bert().piece(WORDS.index(word)) for word in left[3:]
    ]
    assert without.encode(text) == [left.index(WORDS[id]) for id in bert().encode(text)]
    backend = tokenizers.Tokenizer.from_str(without.to_json())
    assert backend.encode("the").ids == [2, left.index("the"), 3]
    assert without.decode(without.encode(text)) == bert().decode(bert().encode(text))


def test_without_removes_added_mask_of_gpt2() -> None:
    backend = tokenizers.Tokenizer.from_str(tokenizer_json().decode())
    backend.add_special_tokens(["[MASK]"])
    with_mask = Tokenizer(backend)
    assert with_mask.vocabulary.num_words == GPT2.size
    assert with_mask.without(GPT2.mask_id).vocabulary == GPT2


@pytest.mark.parametrize(
    ("make", "token", "complaint"),
    [
        (bert, 1, "unknown words"),
        (bert, 2, "around every text"),
        (bert, 99, "0 to 11"),
        (bert, -1, "0 to 11"),
        (gpt2, 995, "merged"),
    ],
)
def test_without_rejects_needed_token(make: Callable[[], Tokenizer], token: int, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make().without(token)


def _changed_document(change: Callable[[dict[str, Any]], object]) -> str:
    document = json.loads(word_pieces().to_str())
    change(document)
    return json.dumps(document)


def _byte_pair_document(**model: Any) -> str:
    """Byte-pair encoding of three words, changed."""
    pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}
    whole = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "b"]], **model}
    return _changed_document(lambda it: it.update(pre_tokenizer=pre_tokenizer, model=whole, added_tokens=[]))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[" * 100_000, "not a tokenizer"),
        ('{"model": []}', "not a tokenizer"),
        ('{"model": {"type": "BPE", "vocab": {}}}', "not a tokenizer"),
        (_changed_document(lambda it: it["model"].update(vocab=[])), "not a table"),
        (
            _changed_document(lambda it: it["model"].update(type="Unigram")),
            "'Unigram'; hdlm reads BPE, WordPiece",
        ),
        (_changed_document(lambda it: it["model"]["vocab"].update(cat=99)), "ids 0 to 11"),
        (_changed_document(lambda it: it["model"]["vocab"].update(cat=5)), "each once"),
        (_changed_document(lambda it: it["model"]["vocab"].update(cat=2**32 - 1)), "each once"),  # and soon
        (_changed_document(lambda it: it["model"]["vocab"].update(cat=-1)), "not a tokenizer"),
        (_changed_document(lambda it: it.update(pre_tokenizer={"type": "Mine"})), "not a tokenizer"),
        (_changed_document(lambda it: it.update(added_tokens=[{"id": "x"}])), "not a tokenizer"),
        (_changed_document(lambda it: it["model"].update(type="BPE", merges=[])), "ByteLevel"),
        (_changed_document(lambda it: it["model"].update(unk_token="x")), "unk_token"),
        (_byte_pair_document(merges=[["a", "c"]]), r"\['a', 'c'\], which is not a pair"),
        (_byte_pair_document(merges=[["b", "a"]]), "not a pair"),
        (_byte_pair_document(merges=["a b c"]), "not a pair"),
        (_byte_pair_document(merges=[3]), "not a pair"),
        (_byte_pair_document(merges=[[{}, "a"]]), "not a pair"),
        (_byte_pair_document(merges=7), "merges"),
        (_byte_pair_document(continuing_subword_prefix="abc"), "continuing_subword_prefix"),
    ],
)
def test_tokenizer_from_json_rejects_damaged_file(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        Tokenizer.from_json(text)


def test_tokenizer_requires_end_token() -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    with pytest.raises(
        ValueError, match=r"none of '<\|endoftext\|>', '<\|end_of_text\|>', '\[SEP\]', '</s>'"
    ):
        Tokenizer(backend)


# -- the words of a network -----------------------------------------------------------------------------------


def test_fitted_tokenizer_has_vocabulary_of_network() -> None:
    padded = Vocabulary(GPT2.num_words + 1, bos=GPT2.bos, eos=GPT2.eos, pad=GPT2.num_words)
    assert gpt2().fitted(GPT2) is gpt2()
    assert gpt2().fitted(padded).vocabulary == padded
    assert gpt2().fitted(padded).encode("Hello world[PAD]") == [15496, 995, padded.pad]
    without = bert().without(MASK_ROW)
    assert bert().fitted(without.vocabulary, MASK_ROW).to_json() == without.to_json()
    assert without.fitted(without.vocabulary, MASK_ROW) is without


def test_fitted_removes_mask_after_words() -> None:
    backend = tokenizers.Tokenizer.from_str(ours().to_json())
    backend.add_special_tokens(["[MASK]"])
    assert Tokenizer(backend).fitted(ours().vocabulary).to_json() == ours().to_json()


@pytest.mark.parametrize(
    ("vocabulary", "mask_row", "complaint"),
    [
        (Vocabulary(len(WORDS) - 1), None, "has 12 words, the network 11"),
        (Vocabulary(len(WORDS) - 1), 5, "11 beside a mask at 5"),
        (Vocabulary(len(WORDS) + 1, pad=len(WORDS)), None, "has 12 words, the network 13"),
    ],
)
def test_fitted_rejects_other_vocabulary(
    vocabulary: Vocabulary, mask_row: int | None, complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        bert().fitted(vocabulary, mask_row)


# -- writing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [gpt2, bert])
def test_write_encodes_prompt_with_tokenizer_of_checkpoint(
    make: Callable[[], Tokenizer], tmp_path: Path
) -> None:
    """The checkpoint holds the tokenizer."""
    tokenizer, prompt = make(), "the cats"
    words = tokenizer.vocabulary
    denoiser = tiny_denoiser(Absorbing(words.num_words))
    checkpoint = Checkpoint(denoiser, words, LINEAR, (flat(8, 2),), tokenizer.to_json())
    save_checkpoint(tmp_path, checkpoint)
    settings = Settings(algorithm="original", length=8)
    for passage in write(load_checkpoint(tmp_path), prompt, settings, num=2):
        given = [words.bos, *tokenizer.encode(prompt)]
        assert list(passage.tokens[: len(given)]) == given
        assert passage.given == len(given)
        assert passage.text.startswith(prompt)
    gap = write(load_checkpoint(tmp_path), "the [MASK] sat", replace(settings, length=None))[0]
    assert len(gap.tokens) == 5
    assert gap.tokens[3:] == (*tokenizer.encode("sat", "spaced"), words.eos)


def test_without_merges_the_tokens_are_the_characters_of_the_text() -> None:
    tokenizer = train_tokenizer(["Who am I?", "Not he."], 64, merges=False)
    characters = set(" Who am I?Not he.")
    assert tokenizer.vocabulary.num_words == len(characters) + 1
    assert tokenizer.decode(tokenizer.encode("Who am I?")) == "Who am I?"
    assert len(tokenizer.encode("Who", "glued")) == 3
    assert tokenizer.decode(tokenizer.encode("Who x am é?")) == "Who ? am ???"
    assert Tokenizer.from_json(tokenizer.to_json()).encode("z é") == tokenizer.encode("z é")


def test_a_character_that_the_text_lacks_becomes_a_space_if_there_is_no_question_mark() -> None:
    tokenizer = train_tokenizer(["ab"], 64, merges=False)
    assert tokenizer.decode(tokenizer.encode("abzab")) == "ab ab"


def test_characters_need_room() -> None:
    with pytest.raises(ValueError, match="at least 5; got 4"):
        train_tokenizer(["abc"], 4, merges=False)
