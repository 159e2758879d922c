"""From a causal language model to a diffusion model: its mask, and the recipe that trains it.

The mask is a token that the tokenizer reserves, or a row for which it has no token; else the row that the reader of
causal models adds, the mean of the others. Words keep their rows, so that along an autoregressive hyperschedule the
model is the causal one. Where the mask takes a reserved row, its share of the probability goes to the words.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch

from hdlm.checkpoint import Checkpoint
from hdlm.data import Tokenizer
from hdlm.denoiser import Denoiser
from hdlm.network import AbstractNetwork, build_network, read_network_config
from hdlm.process import Absorbing
from hdlm.vocabulary import MASK_TOKENS, Vocabulary

__all__ = ["CONVERSION", "Target", "origin_of", "prepared"]

Target = Literal["diffusion"]
"""What a model can be converted to."""
CONVERSION = "diffusion"
"""The recipe of a conversion, if none is named."""
_RESERVED = re.compile(r"[<\[]\|?(reserved|unused)\w*\|?[>\]]", re.IGNORECASE)
"""Tokens that stand for nothing, such as `<|reserved_special_token_3|>`, `[unused7]` and our own `<|unused_320|>`."""


def origin_of(checkpoint: Checkpoint) -> dict[str, Any]:
    """What the checkpoints of a training that begins here record of their beginning."""
    known = dict(checkpoint.training.get("origin", {}))
    return known | {
        name: checkpoint.training[name] for name in ("format", "mask_row") if name in checkpoint.training
    }


def prepared(checkpoint: Checkpoint, source: str) -> Checkpoint:
    """A causal model that is ready to be trained as a diffusion model, with a record of what was done.

    Args:
        checkpoint: A causal model as `hdlm.load` reads it.
        source: Where it comes from, for the record.

    Raises:
        ValueError: If it is a diffusion model already.
    """
    if not checkpoint.hyperschedules or not all(plan.is_autoregressive for plan in checkpoint.hyperschedules):
        raise ValueError(
            f"{source} is a diffusion model already, with {checkpoint.hyperschedules!r}: leave `to` out to train it "
            "further, or name another recipe."
        )
    made, origin = checkpoint, {"source": source, "to": "diffusion", **origin_of(checkpoint)}
    if checkpoint.training.get("format") == "causal":  # its mask is a row that the reader has added
        row = _reserved_row(checkpoint)
        origin["mask"] = "the mean of the rows" if row is None else f"row {row}, {_contents(checkpoint)[row]}"
        if row is not None:
            origin["mask_row"] = row
            made = _with_mask_in(checkpoint, row)
    origin.setdefault("mask", "its own row")
    return dataclasses.replace(made, training={**checkpoint.training, "origin": origin})


def _contents(checkpoint: Checkpoint) -> dict[int, str]:
    """The special tokens of a tokenizer, by their rows."""
    document: Mapping[str, Any] = json.loads(checkpoint.tokenizer_json or "{}")
    return {token["id"]: token["content"] for token in document.get("added_tokens", ())}


def _reserved_row(checkpoint: Checkpoint) -> int | None:
    """The row for the mask: that of a token that is called a mask, else the first reserved one."""
    words = checkpoint.vocabulary
    tokens = {
        row: content
        for row, content in sorted(_contents(checkpoint).items())
        if row not in (words.bos, words.eos, words.pad) and row < words.num_words
    }
    masks = [row for row, content in tokens.items() if content in MASK_TOKENS]
    reserved = [row for row, content in tokens.items() if _RESERVED.fullmatch(content)]
    return next(iter([*masks, *reserved]), None)


def _with_mask_in(checkpoint: Checkpoint, row: int) -> Checkpoint:
    """A copy whose mask is one of the words so far; the row that was added for it is removed."""
    words = checkpoint.vocabulary

    def moved(token: int | None) -> int | None:
        return None if token is None else token - (token > row)

    fewer = Vocabulary(words.num_words - 1, moved(words.bos), moved(words.eos), moved(words.pad))
    tokenizer = Tokenizer.from_json(checkpoint.tokenizer_json or "", "the tokenizer of the model").without(
        row
    )
    network = _rearranged(checkpoint.network, row, words.num_words)
    denoiser = Denoiser(network, Absorbing(fewer.num_words), checkpoint.denoiser.parameterization)
    return dataclasses.replace(
        checkpoint, denoiser=denoiser.eval(), vocabulary=fewer, tokenizer_json=tokenizer.to_json()
    )


def _rearranged(network: AbstractNetwork, row: int, words: int) -> AbstractNetwork:
    """The network with a row moved to the end of the words, and without the rows after them."""
    order = torch.cat([torch.arange(row), torch.arange(row + 1, words), torch.tensor([row])])
    state = {
        name: value[order.to(value.device)] if name in network.token_rows else value
        for name, value in network.state_dict().items()
    }
    config = read_network_config({**network.config.to_dict(), "vocab_size": words})
    with torch.device("meta"):
        made = build_network(config)
    made.load_state_dict(state, assign=True)
    return made
