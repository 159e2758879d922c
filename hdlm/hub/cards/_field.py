"""What the field's formats share: one network under other names, and configs that are tables of plain values.

MDLM, SEDD, BD3-LM, GIDD and Duo all publish the DDiT of SEDD (arXiv 2310.16834) with the noise told to every block and
to the output layer. They differ in the prefix of its names, in the words for its sizes, and in everything around it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, final

import torch

from hdlm.hub.card import Evidence
from hdlm.network import DDiT, DDiTConfig
from hdlm.vocabulary import GPT2, Vocabulary

__all__ = ["STEPS", "Options", "has_network", "ignored_buffers", "network", "tensors", "words"]

STEPS = 128
"""Steps of a flat generation, where the files name none."""
_TRANSFORMERS = frozenset(
    {"_name_or_path", "architectures", "auto_map", "dtype", "model_type", "return_dict", "torch_dtype"}
    | {"transformers_version"}
)
"""Keys that `transformers` writes into every config; none of them says anything of the model."""
_NEEDED = ("vocab_embed.embedding", "sigma_map.mlp.0.weight", "output_layer.adaLN_modulation.weight")


@final
class Options:
    """A config, read option by option; remembers which were asked for.

    Args:
        evidence: Where it lies.
        table: Name of a table inside the config to read instead of its top level.
    """

    def __init__(self, evidence: Evidence, table: str = "") -> None:
        self._prefix = f"{table}." if table else ""
        found: Any = evidence.config.get(table, {}) if table else evidence.config
        if not isinstance(found, Mapping):
            raise ValueError(f"{evidence.origin}: `{table}` must be a table; got {found!r}.")
        self._values: Mapping[str, Any] = found
        self._origin = evidence.origin
        self._asked: set[str] = set()

    def integer(self, name: str, default: int | None = None) -> int:
        """A positive whole number.

        Raises:
            ValueError: If it is missing without a default, or no such number.
        """
        value = self._get(name, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise self._wrong(name, "a positive whole number", value)
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A number.

        Raises:
            ValueError: If it is missing without a default, or no number.
        """
        value = self._get(name, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self._wrong(name, "a number", value)
        return float(value)

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or false.

        Raises:
            ValueError: If it is missing without a default, or neither.
        """
        value = self._get(name, default)
        if not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return value

    def choice(self, name: str, choices: Iterable[str]) -> str:
        """One of some words.

        Raises:
            ValueError: If it is missing or another.
        """
        value = self._get(name, None)
        if not isinstance(value, str) or value not in (known := tuple(choices)):
            raise self._wrong(name, f"one of {', '.join(choices)}", value)
        return known[known.index(value)]

    def known(self, *names: str) -> None:
        """Count options as known that nothing here depends on."""
        self._asked.update(names)

    def unknown(self) -> tuple[str, ...]:
        """Dotted names of the options that nobody asked for, but those of `transformers` itself."""
        return tuple(self._prefix + name for name in self._values if name not in self._asked | _TRANSFORMERS)

    def _get(self, name: str, default: Any) -> Any:
        self._asked.add(name)
        value = self._values.get(name)
        if value is None and default is None:
            raise ValueError(f"{self._origin}: the config lacks `{self._prefix}{name}`.")
        return default if value is None else value

    def _wrong(self, name: str, expected: str, value: object) -> ValueError:
        return ValueError(f"{self._origin}: `{self._prefix}{name}` must be {expected}; got {value!r}.")


def has_network(evidence: Evidence, prefix: str = "") -> bool:
    """Whether the weights hold a DDiT that is told the noise everywhere, under names with this prefix."""
    return all(prefix + name in evidence.shapes for name in _NEEDED)


def network(
    options: Options,
    evidence: Evidence,
    prefix: str,
    *,
    rows: int,
    names: tuple[str, str, str, str, str, str],
) -> DDiTConfig:
    """The shape of the network; the width of the conditioning is read off the weights if the config is silent.

    Args:
        options: Where the sizes are.
        evidence: The weights.
        prefix: Of the names of its tensors.
        rows: Of the embedding and the output.
        names: What the format calls hidden size, blocks, heads, width of the conditioning, length and dropout.
    """
    hidden, blocks, heads, cond, length, dropout = names
    shape = evidence.shapes.get(f"{prefix}sigma_map.mlp.0.weight", ())
    return DDiTConfig(
        vocab_size=rows,
        hidden_size=options.integer(hidden),
        num_blocks=options.integer(blocks),
        num_heads=options.integer(heads),
        cond_dim=options.integer(cond, shape[0] if shape else None),
        dropout=options.number(dropout, 0.0),
        timestep_embedding=True,
        condition_blocks=True,
        condition_output=True,
        max_length=options.integer(length),
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
