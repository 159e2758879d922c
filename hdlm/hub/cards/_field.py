"""The common part of the field's formats: one network under other names, and configs with plain values.

MDLM, SEDD, BD3-LM, GIDD and Duo all publish the DDiT of SEDD (arXiv 2310.16834), in which the noise modulates every
block and the output layer. They differ in the keys of its sizes, and in everything outside the network.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, final

import torch

from hdlm.hub.card import Evidence
from hdlm.hub.fields import Fields, unknown_keys
from hdlm.network import DDiT, DDiTConfig
from hdlm.vocabulary import GPT2, Vocabulary

__all__ = [
    "STEPS",
    "Sizes",
    "VocabularyRows",
    "has_network",
    "ignored_buffers",
    "network",
    "tensors",
    "unknown",
    "vocabulary_rows",
    "words",
]

ROUNDED = 128
"""Trainers that round the number of rows up use a multiple of this number."""
STEPS = 128
"""Steps of a flat generation, if the files name none."""
_TRANSFORMERS = frozenset(
    {"_name_or_path", "architectures", "auto_map", "dtype", "model_type", "return_dict", "torch_dtype"}
    | {"transformers_version"}
)
"""Keys that `transformers` writes into every config; they do not describe the model."""
_OF_ROWS = frozenset({"mask_id", "mask_token_id", "num_words"})
"""Keys that describe the rows of the embedding; see `vocabulary_rows`."""
_NEEDED = ("vocab_embed.embedding", "sigma_map.mlp.0.weight", "output_layer.adaLN_modulation.weight")


@final
class Sizes(NamedTuple):
    """Dotted keys of a format's config with the sizes of its network."""

    hidden: str
    blocks: str
    heads: str
    cond: str
    length: str
    dropout: str


def unknown(config: Mapping[str, Any], known: Collection[str]) -> tuple[str, ...]:
    """Dotted keys that belong neither to the format nor to `transformers`."""
    return unknown_keys(config, _TRANSFORMERS | _OF_ROWS | frozenset(known))


def has_network(evidence: Evidence) -> bool:
    """Whether the weights hold a DDiT in which the noise modulates every layer."""
    return all(len(evidence.shapes.get(name, ())) == 2 for name in _NEEDED)


def network(evidence: Evidence, sizes: Sizes, *, rows: int) -> DDiTConfig:
    """The configuration of the network; a missing width of the conditioning is read off the weights.

    Args:
        evidence: Config and weights.
        sizes: Keys of the sizes.
        rows: Rows of the embedding and the output.

    Raises:
        ValueError: If a size is missing or wrong, or the weights have too few tensors for its depth.
    """
    fields = Fields(evidence.config, evidence.origin)
    blocks = fields.whole(sizes.blocks)
    if blocks > len(evidence.shapes):
        raise ValueError(
            f"{evidence.origin} contradicts itself: `{sizes.blocks}` is {blocks}, but it has only "
            f"{len(evidence.shapes)} tensors."
        )
    return DDiTConfig(
        vocab_size=rows,
        hidden_size=fields.whole(sizes.hidden),
        num_blocks=blocks,
        num_heads=fields.whole(sizes.heads),
        cond_dim=fields.whole(sizes.cond, evidence.shapes["sigma_map.mlp.0.weight"][0]),
        dropout=fields.number(sizes.dropout, 0.0),
        timestep_embedding=True,
        condition_blocks=True,
        condition_output=True,
        max_length=fields.whole(sizes.length),
    )


def tensors(config: DDiTConfig) -> dict[str, str]:
    """Name in the file of every parameter of our network, which is our own name once wrappers are removed."""
    with torch.device("meta"):
        return {name: name for name, _ in DDiT(config).named_parameters()}


def ignored_buffers() -> dict[str, str]:
    """Buffers of the network that are computed instead of read."""
    return {"rotary_emb.inv_freq": "rotary frequencies are computed, not read"}


@final
class VocabularyRows(NamedTuple):
    """The meaning of the rows of a file's embedding and output.

    Attributes:
        words: Number of rows that are words.
        mask: Row of the mask, if it is not the one after the words.
        used: Number of rows that are words or the mask.
        padding: Number of unused rows after them.
    """

    words: int
    mask: int | None
    used: int
    padding: int


def vocabulary_rows(evidence: Evidence, *, masked: bool = True, mask: int | None = None) -> VocabularyRows:
    """The meaning of the rows in a format whose config counts them and names no mask.

    Trainers that round the number of rows up leave unused rows after the mask. A config may describe the rows with
    `num_words` (without the mask) and `mask_id`. Otherwise the mask is the last row, and a number of rows that may have
    been rounded up is refused.

    Args:
        evidence: Config and weights.
        masked: Whether one of the rows is a mask.
        mask: Row of the mask, if the format defines it.

    Raises:
        ValueError: If the row of the mask is unknown, or the values are impossible.
    """
    fields = Fields(evidence.config, evidence.origin)
    count = fields.whole("vocab_size")
    words = None if fields.get("num_words") is None else fields.whole("num_words")
    for key in ("mask_token_id", "mask_id") if masked else ():
        value = fields.get(key)
        if value is not None and (
            not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < count
        ):
            raise ValueError(f"{evidence.origin}: `{key}` must be a row, 0 to {count - 1}; got {value!r}.")
        mask = mask if value is None else value
    if words is None:
        if count % ROUNDED == 0 and mask != count - 1:
            what = "which row is the mask and which are padding" if masked else "which rows are padding"
            raise ValueError(
                f"{evidence.origin}: `vocab_size` is {count}, a multiple of {ROUNDED}, so rows may have been added "
                f"after the words, and it is unknown {what}. Give the number of words as `num_words`"
                f"{' (the mask is not counted)' if masked else ''}: it is an argument of `load`, --num-words "
                "in commands, and may be a key of the config."
            )
        words = count - masked
    used = words + masked
    if used > count or (mask is not None and mask > words):
        row = "" if mask is None else f", and the mask cannot be row {mask}"
        raise ValueError(
            f"{evidence.origin}: `num_words` {words} does not fit the {count} rows of `vocab_size`{row}: there may be "
            f"at most {count - masked} words{', and the mask is one of the rows up to `num_words`' if masked else ''}."
        )
    return VocabularyRows(words, None if mask == words else mask, used, count - used)


def words(count: int, *, pad: int | None = None) -> tuple[Vocabulary, str | None]:
    """The vocabulary of a number of words, and its tokenizer's name if the size is GPT-2's, with or without [PAD].

    Args:
        count: Number of words.
        pad: Id of [PAD], if the format puts one after the words of GPT-2.
    """
    if count == GPT2.num_words:
        return GPT2, "gpt2"
    if pad is not None and pad == GPT2.num_words == count - 1:
        return Vocabulary(count, bos=GPT2.bos, eos=GPT2.eos, pad=pad), "gpt2"
    return Vocabulary(count), None
