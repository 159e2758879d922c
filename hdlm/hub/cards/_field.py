"""What the field's formats share: one network under other names, and configs that are tables of plain values.

MDLM, SEDD, BD3-LM, GIDD and Duo all publish the DDiT of SEDD (arXiv 2310.16834) with the noise told to every block and
to the output layer. They differ in the prefix of its names, in the words for its sizes, and in everything around it.
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
    "has_network",
    "ignored_buffers",
    "network",
    "tensors",
    "unknown",
    "words",
]

STEPS = 128
"""Steps of a flat generation, where the files name none."""
_TRANSFORMERS = frozenset(
    {"_name_or_path", "architectures", "auto_map", "dtype", "model_type", "return_dict", "torch_dtype"}
    | {"transformers_version"}
)
"""Keys that `transformers` writes into every config; none of them says anything of the model."""
_NEEDED = ("vocab_embed.embedding", "sigma_map.mlp.0.weight", "output_layer.adaLN_modulation.weight")


@final
class Sizes(NamedTuple):
    """What a format calls the sizes of its network: dotted keys of its config."""

    hidden: str
    blocks: str
    heads: str
    cond: str
    length: str
    dropout: str


def unknown(config: Mapping[str, Any], known: Collection[str]) -> tuple[str, ...]:
    """Dotted keys that neither the format nor `transformers` is known to have."""
    return unknown_keys(config, _TRANSFORMERS | frozenset(known))


def has_network(evidence: Evidence, prefix: str = "") -> bool:
    """Whether the weights hold a DDiT that is told the noise everywhere, under names with this prefix."""
    return all(len(evidence.shapes.get(prefix + name, ())) == 2 for name in _NEEDED)


def network(evidence: Evidence, sizes: Sizes, *, rows: int, prefix: str = "") -> DDiTConfig:
    """The shape of the network; the width of the conditioning is read off the weights if the config is silent.

    Args:
        evidence: Config and weights.
        sizes: Where the config has the sizes.
        rows: Of the embedding and the output.
        prefix: Of the names of the tensors.

    Raises:
        ValueError: If a size is missing or wrong, or the weights cannot be those of so deep a network.
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
        cond_dim=fields.whole(sizes.cond, evidence.shapes[f"{prefix}sigma_map.mlp.0.weight"][0]),
        dropout=fields.number(sizes.dropout, 0.0),
        timestep_embedding=True,
        condition_blocks=True,
        condition_output=True,
        max_length=fields.whole(sizes.length),
    )


def tensors(config: DDiTConfig, prefix: str = "") -> dict[str, str]:
    """Name in the file of every parameter of our network."""
    with torch.device("meta"):
        return {name: prefix + name for name, _ in DDiT(config).named_parameters()}


def ignored_buffers(prefix: str = "") -> dict[str, str]:
    """Buffers of the network that are computed here."""
    return {f"{prefix}rotary_emb.inv_freq": "rotary frequencies are computed, not read"}


def words(count: int, *, pad: int | None = None) -> tuple[Vocabulary, str | None]:
    """The vocabulary of so many words, and its tokenizer's name if its size tells: GPT-2's, with or without [PAD].

    Args:
        count: Number of words.
        pad: Id of [PAD], where the format puts one behind the words of GPT-2.
    """
    if count == GPT2.num_words:
        return GPT2, "gpt2"
    if pad is not None and pad == GPT2.num_words == count - 1:
        return Vocabulary(count, bos=GPT2.bos, eos=GPT2.eos, pad=pad), "gpt2"
    return Vocabulary(count), None
