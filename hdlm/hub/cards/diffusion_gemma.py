"""DiffusionGemma, `model_type: diffusion_gemma`: uniform noise on a canvas behind a prompt that is encoded causally.

The files are those of `transformers` 5.23. They have the weights that both stacks share once, under the names of the
decoder, and the factor of each layer of both stacks. The output at a position predicts the token of that position. The
config names the length of a canvas, and no mask: every row of the embedding is a word.
"""

from __future__ import annotations

from typing import ClassVar, final

import torch
from torch import nn

from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards._decoder import CANVAS, MaskedRows, special_tokens
from hdlm.hub.fields import Fields
from hdlm.hyperschedule import PromptedBlock
from hdlm.network import DiffusionGemmaConfig
from hdlm.network.build import build_network
from hdlm.parameterization import Mean
from hdlm.process import Uniform

__all__ = ["DiffusionGemmaCard", "stored_name"]

_STEPS = 48
"""Calls of the network for a canvas, where a generation names no other number; as published."""
_VISION = ("vision_tower", "embed_vision")


@final
class DiffusionGemmaCard(AbstractCard):
    """Uniform diffusion in canvases, with self-conditioning."""

    name: ClassVar[str] = "DiffusionGemma"

    def recognises(self, evidence: Evidence) -> bool:
        return evidence.config.get("model_type") == "diffusion_gemma" and _EMBEDDING in evidence.shapes

    def blueprint(self, evidence: Evidence) -> Blueprint:
        fields = Fields(evidence.config, evidence.origin)
        if not fields.switch("tie_word_embeddings", True):
            raise ValueError(
                f"{evidence.origin}: `tie_word_embeddings` is false; only tied stacks are known here."
            )
        if fields.get("text_config.use_bidirectional_attention") == "all":
            raise ValueError(f"{evidence.origin}: an encoder that is not causal (`all`) is not known here.")
        network = _network(evidence)
        length = min(CANVAS, network.max_length)
        words = network.vocab_size
        inside = Evidence(evidence.config["text_config"], {}, evidence.origin)
        return Blueprint(
            network=network,
            vocabulary=special_tokens(inside, MaskedRows(words, None, adds_mask=False)),
            process=Uniform(words),
            parameterization=Mean(),
            hyperschedules=(PromptedBlock(length, min(fields.whole("canvas_length", 256), length), _STEPS),),
            tensors={name: stored_name(name) for name in _parameters(network, evidence.origin)},
            spare_rows=True,
            context="causal",
        )


_EMBEDDING = "decoder.embed_tokens.weight"


def stored_name(parameter: str) -> str:
    """The name in a file of a parameter of the network, without the name `model` before it."""
    first, _, rest = parameter.partition(".")
    if first in _VISION:
        return f"encoder.{parameter}"
    if first == "canvas_scalars":
        return f"decoder.layers.{rest}.layer_scalar"
    if first != "blocks":
        return f"decoder.{'embed_tokens' if first == 'vocab_embed' else first}.{rest}"
    return (
        f"encoder.language_model.layers.{rest}"
        if rest.endswith(".layer_scalar")
        else f"decoder.layers.{rest}"
    )


def _network(evidence: Evidence) -> DiffusionGemmaConfig:
    try:
        return DiffusionGemmaConfig(dict(evidence.config))
    except ValueError as error:
        raise ValueError(f"{evidence.origin}: {error}") from error


def _parameters(network: DiffusionGemmaConfig, origin: str) -> list[str]:
    """Names of the parameters of the network."""
    try:
        with torch.device("meta"):
            made: nn.Module = build_network(network)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error
    return [name for name, _ in made.named_parameters()]
