"""The layout of a decoder for the programs that it comes from: configuration, tensors and tokenizer.

A checkpoint that was read from one of the formats of `hdlm.hub.cards` gets the configuration, the names and the order
of rows of that format. Any other decoder gets those of the family of its switches: Qwen3 with QK-norm, Qwen2 with
biases of queries, keys and values, GPT-2 with LayerNorm, else Llama. `mask_token_id` of the config names the row of the
mask, and its table `hdlm` has the process, the parameterization, the hyperschedules and the attention, so that
`hdlm.load` reads the export as what it is. `transformers` reads it as a causal model. A DiffusionGemma gets its own
configuration, and the names of the class of `transformers`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from hdlm.checkpoint import Checkpoint
from hdlm.checkpoint.weights import Stored
from hdlm.data import _tokenizer_json as tokenizer_json
from hdlm.hub.card import AbstractCard, Blueprint, Evidence
from hdlm.hub.cards import CARDS
from hdlm.hub.cards._decoder import PIECES
from hdlm.hub.cards.diffusion_gemma import stored_name
from hdlm.network import DecoderConfig, DiffusionGemmaConfig, RotaryScaling

__all__ = ["DecoderFiles", "decoder_layout"]

_EMBEDDINGS = ("embed_tokens.weight", "wte.weight")
"""Names by which the cards of the formats know the embedding."""
_MASK = "<|mask|>"
_CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM"}


@final
class DecoderFiles(NamedTuple):
    """The files of a decoder in the layout of a format.

    Attributes:
        config: Content of `config.json`.
        tensors: Content of `model.safetensors`.
        tokenizer: Text of `tokenizer.json`, with the mask at its row; None if there is no tokenizer.
    """

    config: dict[str, Any]
    tensors: dict[str, Tensor]
    tokenizer: str | None


def decoder_layout(checkpoint: Checkpoint) -> DecoderFiles:
    """The files of a checkpoint whose network is a `Decoder` or a `DiffusionGemma`.

    Raises:
        ValueError: If the network has switches that no family has.
    """
    if isinstance(checkpoint.network.config, DiffusionGemmaConfig):
        return _diffusion_gemma(checkpoint, checkpoint.network.config)
    recorded = checkpoint.training.get("config")
    card = next((card for card in CARDS if card.name == checkpoint.training.get("format")), None)
    if card is not None and isinstance(recorded, Mapping):
        config = {name: value for name, value in recorded.items() if name not in ("mask_id", "num_words")}
        config |= _pieces(checkpoint) if PIECES in recorded else {}
        blueprint = _blueprint(checkpoint, card, recorded)
    else:
        config = _family(checkpoint) | _pieces(checkpoint)
        card = next(card for card in CARDS if card.name == "converted")
        blueprint = _blueprint(checkpoint, card, config)
    prefix = _prefix(card.name, str(config["model_type"]))
    tensors: dict[str, Tensor] = {}
    rows = checkpoint.network.token_rows
    for name, parameter in checkpoint.network.named_parameters():
        value = parameter.detach().cpu()
        if name in rows:
            value = _in_their_order(value, blueprint)
        for stored, part in _parts(blueprint.tensors[name], value, checkpoint):
            tensors[stored if stored.startswith("lm_head.") else prefix + stored] = part.contiguous()
    return DecoderFiles(config, tensors, _tokenizer(checkpoint, blueprint))


def _diffusion_gemma(checkpoint: Checkpoint, shape: DiffusionGemmaConfig) -> DecoderFiles:
    """The files of a DiffusionGemma; those of `transformers` have one name for the weights of both stacks."""
    config = {name: value for name, value in shape.table.items() if name not in ("mask_id", "num_words")}
    tensors = {
        f"model.{stored_name(name)}": parameter.detach().cpu().contiguous()
        for name, parameter in checkpoint.network.named_parameters()
    }
    document = checkpoint.tokenizer_json
    if document is not None:
        document = json.dumps(tokenizer_json.without_unused(json.loads(document)), ensure_ascii=False)
    return DecoderFiles(config, tensors, document)


def _blueprint(checkpoint: Checkpoint, card: AbstractCard, config: Mapping[str, Any]) -> Blueprint:
    """How the format reads the file that is to be written."""
    embedding = next(
        name for name in _EMBEDDINGS if card.recognises(Evidence(config, {name: ()}, "this checkpoint"))
    )
    mask = checkpoint.training.get("mask_row", checkpoint.vocabulary.mask_id)
    return card.blueprint(Evidence(config, {embedding: ()}, "this checkpoint", mask))


def _pieces(checkpoint: Checkpoint) -> dict[str, Any]:
    """What `hdlm` knows of a model and a config of `transformers` does not, as a table of that config."""
    names = ("process", "parameterization", "noise_schedule", "hyperschedules", "context", "active")
    config = checkpoint.config()
    return {PIECES: {name: config[name] for name in names}}


def _prefix(card: str, model_type: str) -> str:
    """What stands before the names of a file, which the reader leaves out; the head has none."""
    if card == "LLaDA":
        return "model.transformer."
    if card == "DiffuGPT":
        return ""
    return "transformer." if model_type == "gpt2" else "model."


def _in_their_order(rows: Tensor, blueprint: Blueprint) -> Tensor:
    """Rows of an embedding in the order of the file, in which the mask may lie among the words or be absent."""
    if blueprint.adds_mask:
        return rows[:-1]
    if blueprint.mask_row is None:
        return rows
    row = blueprint.mask_row
    return torch.cat([rows[:row], rows[-1:], rows[row:-1]])


def _parts(stored: str | Stored, value: Tensor, checkpoint: Checkpoint) -> list[tuple[str, Tensor]]:
    """The tensors of the file that hold a parameter."""
    if isinstance(stored, str):
        return [(stored, value)]
    shape = checkpoint.network.config
    sizes = [len(value)]
    if len(stored.names) > 1:
        sizes = [
            heads * shape.head_dim for heads in (shape.num_heads, shape.num_kv_heads, shape.num_kv_heads)
        ]
    parts = [part.T if stored.transposed else part for part in value.split(sizes)]
    return list(zip(stored.names, parts, strict=True))


def _family(checkpoint: Checkpoint) -> dict[str, Any]:
    """A config of the family that has the switches of the network.

    Raises:
        ValueError: If no family has them.
    """
    shape = checkpoint.network.config
    assert isinstance(shape, DecoderConfig)
    words = checkpoint.vocabulary
    row = checkpoint.training.get("origin", {}).get("mask_row", words.mask_id)

    def there(token: int | None) -> int | None:
        return None if token is None else token + (token >= row)

    common = {
        "vocab_size": shape.vocab_size,
        "mask_token_id": row,
        "bos_token_id": there(words.bos),
        "eos_token_id": there(words.eos),
    }
    if shape.norm == "layer":
        return _checked(shape, _gpt2(shape) | common)
    kind = "qwen3" if shape.qk_norm else "qwen2" if shape.qkv_bias and not shape.out_bias else "llama"
    config = {
        "architectures": [_CLASSES[kind]],
        "model_type": kind,
        "hidden_size": shape.hidden_size,
        "num_hidden_layers": shape.num_blocks,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "intermediate_size": shape.intermediate_size,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_epsilon,
        "rope_theta": shape.rotary_base,
        "rope_scaling": _scaling(shape.rotary_scaling),
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": shape.max_length,
    }
    if kind != "qwen2":
        config["attention_bias"] = shape.out_bias
    if kind == "llama":
        config["mlp_bias"] = shape.mlp_bias
    return _checked(shape, config | common)


def _gpt2(shape: DecoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": shape.hidden_size,
        "n_layer": shape.num_blocks,
        "n_head": shape.num_heads,
        "n_inner": shape.intermediate_size,
        "n_positions": shape.max_length,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": shape.norm_epsilon,
    }


def _checked(shape: DecoderConfig, config: dict[str, Any]) -> dict[str, Any]:
    """The config, if a network that is read by it has the switches of this one."""
    embedding = "wte.weight" if config["model_type"] == "gpt2" else "embed_tokens.weight"
    card = next(card for card in CARDS if card.name == "causal")
    blueprint = card.blueprint(Evidence(config | {"vocab_size": shape.vocab_size - 1}, {embedding: ()}, "it"))
    if blueprint.network != dataclasses.replace(shape, dropout=0.0):
        raise ValueError(
            f"the network {shape!r} has switches that neither Llama, Qwen2, Qwen3 nor GPT-2 has together, so it cannot "
            "be exported in their layout. Use the layout of hdlm (`save_pretrained`)."
        )
    return config


def _scaling(scaling: RotaryScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    table: dict[str, Any] = {"rope_type": scaling.type, "factor": scaling.factor}
    if scaling.type != "linear":
        table["original_max_position_embeddings"] = scaling.original_length
    if scaling.type == "llama3":
        table |= {"low_freq_factor": scaling.low_frequency, "high_freq_factor": scaling.high_frequency}
    if scaling.type == "yarn":
        table |= {"beta_slow": scaling.beta_slow, "beta_fast": scaling.beta_fast}
        table |= {} if scaling.attention_factor is None else {"attention_factor": scaling.attention_factor}
    return table


def _tokenizer(checkpoint: Checkpoint, blueprint: Blueprint) -> str | None:
    """The tokenizer with its mask, and without the words that stand for rows without a token."""
    if checkpoint.tokenizer_json is None:
        return None
    document = json.loads(checkpoint.tokenizer_json)
    if blueprint.adds_mask or blueprint.mask_row is not None:
        document = tokenizer_json.without_unused(document)
    if not blueprint.adds_mask:
        row = checkpoint.vocabulary.mask_id if blueprint.mask_row is None else blueprint.mask_row
        document = tokenizer_json.with_token(document, row, _MASK)
    return json.dumps(document, ensure_ascii=False)
