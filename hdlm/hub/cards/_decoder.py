"""What formats with the network of Llama, Qwen2, Qwen3 or GPT-2 have in common: configuration, tensors, rows.

Every row of the embedding except that of the mask counts as a word, also a row for which the tokenizer has no token,
because the published losses and samplers normalise over all rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, final

import torch

from hdlm.checkpoint.weights import Stored
from hdlm.hub.card import Evidence
from hdlm.hub.cards._field import unknown
from hdlm.hub.fields import Fields
from hdlm.network import DecoderConfig, RotaryScaling
from hdlm.network.build import build_network
from hdlm.vocabulary import Vocabulary

__all__ = [
    "CANVAS",
    "LLAMA_FAMILY",
    "PIECES",
    "DecoderLayout",
    "MaskedRows",
    "bare",
    "causal_family",
    "gpt2",
    "gpt2_embedding",
    "llama",
    "masked_rows",
    "special_tokens",
]

CANVAS = 1024
"""Positions of the default hyperschedules: the networks read many thousands, few of which a generation needs."""

LLAMA_FAMILY = ("llama", "qwen2", "qwen3")
"""The `model_type` of the families of `transformers` that are named as Llama is."""

PIECES = "hdlm"
"""Key of the table that an export adds to a config of `transformers`: the pieces of a diffusion model."""

_SCALINGS: Mapping[str, Literal["linear", "llama3", "yarn"]] = {
    "linear": "linear",
    "llama3": "llama3",
    "yarn": "yarn",
}
_SILENT = frozenset(
    {
        "attention_dropout",
        "attn_implementation",
        "hidden_act",
        "initializer_range",
        "layer_types",
        "max_window_layers",
        "pretraining_tp",
        "use_cache",
        "use_sliding_window",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "is_llama_config",
        "rope_interleaved",
        "sliding_window",
        PIECES,
    }
)
"""Keys that say nothing about the numbers of a network, or that are checked here."""


@final
class DecoderLayout(NamedTuple):
    """A network in the layout of a family: its shape, and where the file has its parameters.

    Attributes:
        network: Configuration of the network.
        tensors: Name in the file of each parameter.
        unknown: Keys of the config that the family does not know.
        ignored: Tensors of the file that are not needed, and why.
    """

    network: DecoderConfig
    tensors: dict[str, str | Stored]
    unknown: tuple[str, ...]
    ignored: dict[str, str]


@final
class MaskedRows(NamedTuple):
    """The rows of an embedding that has the mask among them, or none.

    Attributes:
        words: How many rows are words.
        mask: Row of the mask, where it is not the last one; else None.
        adds_mask: Whether the file has no row for the mask.
    """

    words: int
    mask: int | None
    adds_mask: bool


def masked_rows(evidence: Evidence, rows: int, mask: int | None, *, what: str) -> MaskedRows:
    """Where the mask is.

    Args:
        evidence: Its config and its tensors.
        rows: Rows of the embedding.
        mask: Row of the mask, as the format says it; the option `mask_id` comes before it.
        what: What to call the format in an error.

    Raises:
        ValueError: If nothing says which row is the mask, or there is no such row.
    """
    given = evidence.config.get("mask_id")
    mask = mask if given is None else given
    if mask is None:
        raise ValueError(
            f"{evidence.origin}: nothing says which of the {rows} rows is the mask of this {what} model: neither its "
            "config nor a token of its tokenizer. Give the row with `mask_id`, an argument of `hdlm.load`."
        )
    if not isinstance(mask, int) or isinstance(mask, bool) or not 0 <= mask < rows:
        raise ValueError(f"{evidence.origin}: the mask must be a row, 0 to {rows - 1}; got {mask!r}.")
    return MaskedRows(rows - 1, None if mask == rows - 1 else mask, adds_mask=False)


def special_tokens(evidence: Evidence, rows: MaskedRows) -> Vocabulary:
    """The vocabulary, with the tokens that begin and end a text where the config names them."""

    def word(key: str) -> int | None:
        value = evidence.config.get(key)
        value = value[0] if isinstance(value, list) and value else value
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= rows.words:
            return None
        if rows.mask is not None and value >= rows.mask:
            return None if value == rows.mask else value - 1
        return value if value < rows.words else None

    return Vocabulary(
        rows.words, bos=word("bos_token_id"), eos=word("eos_token_id"), pad=word("pad_token_id")
    )


def bare(evidence: Evidence) -> str:
    """What stands before the names of the layers in the file: `""` or `"transformer."`."""
    return "transformer." if any(name.startswith("transformer.") for name in evidence.shapes) else ""


_LLAMA_KEYS = frozenset(
    {
        "hidden_size",
        "num_attention_heads",
        "num_hidden_layers",
        "num_key_value_heads",
        "head_dim",
        "intermediate_size",
        "rms_norm_eps",
        "attention_bias",
        "mlp_bias",
        "tie_word_embeddings",
        "max_position_embeddings",
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "vocab_size",
    }
)
_LLAMA_LAYER = {
    "norm1": "input_layernorm",
    "query_norm": "self_attn.q_norm",
    "key_norm": "self_attn.k_norm",
    "attn_out": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}
_LLAMA_TOP = {"vocab_embed": "embed_tokens", "norm_final": "norm", "output_layer": "lm_head"}


def llama(
    evidence: Evidence, rows: int, known: frozenset[str], *, qkv_bias: bool = False, qk_norm: bool = False
) -> DecoderLayout:
    """A network whose config and tensors are named as in `transformers`' Llama, Qwen2 and Qwen3.

    Args:
        evidence: Its config and its tensors.
        rows: Rows of the network: those of the file, and one more if a mask is added.
        known: Other keys that the format is known to have.
        qkv_bias: Whether queries, keys and values have biases, whatever the config says.
        qk_norm: Whether queries and keys are normalised.

    Raises:
        ValueError: If a size is missing or wrong, or the config asks for something that is not known here.
    """
    fields = Fields(evidence.config, evidence.origin)
    hidden, heads = fields.whole("hidden_size"), fields.whole("num_attention_heads")
    if fields.switch("use_sliding_window", False):
        raise ValueError(
            f"{evidence.origin}: `use_sliding_window` is true; sliding windows are not known here."
        )
    fields.choice("hidden_act", ("silu",), "silu")
    attention_bias = fields.switch("attention_bias", False)
    base, scaling = _rotary(fields)
    network = DecoderConfig(
        vocab_size=rows,
        hidden_size=hidden,
        num_blocks=fields.whole("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=fields.whole("num_key_value_heads", heads),
        head_dim=fields.whole("head_dim", max(1, hidden // heads)),
        intermediate_size=fields.whole("intermediate_size"),
        norm_epsilon=fields.number("rms_norm_eps", 1e-6),
        qkv_bias=qkv_bias or attention_bias,
        out_bias=attention_bias,
        mlp_bias=fields.switch("mlp_bias", False),
        qk_norm=qk_norm,
        rotary_base=base,
        rotary_scaling=scaling,
        tied=fields.switch("tie_word_embeddings", False),
        max_length=fields.whole("max_position_embeddings"),
    )

    def stored(module: str, kind: str, block: str) -> str | Stored:
        if not block:
            return f"{_LLAMA_TOP[module]}.{kind}"
        if module == "qkv":
            return Stored(tuple(f"layers.{block}.self_attn.{part}_proj.{kind}" for part in "qkv"))
        return f"layers.{block}.{_LLAMA_LAYER[module]}.{kind}"

    ignored = {name: "computed, not read" for name in evidence.shapes if name.endswith("rotary_emb.inv_freq")}
    if network.tied and "lm_head.weight" in evidence.shapes:
        ignored["lm_head.weight"] = "the output layer uses the matrix of the embedding"
    return DecoderLayout(
        network, key_table(network, stored), unknown(evidence.config, _SILENT | _LLAMA_KEYS | known), ignored
    )


_GPT2_LAYER = {
    "norm1": "ln_1",
    "qkv": "attn.c_attn",
    "attn_out": "attn.c_proj",
    "norm2": "ln_2",
    "up": "mlp.c_fc",
    "down": "mlp.c_proj",
}


def gpt2(evidence: Evidence, rows: int, known: frozenset[str], prefix: str, embedding: str) -> DecoderLayout:
    """A network whose config and tensors are named as in `transformers`' GPT-2.

    Args:
        evidence: Its config and its tensors.
        rows: Rows of the network: those of the file, and one more if a mask is added.
        known: Other keys that the format is known to have.
        prefix: What stands before the names of layers and positions.
        embedding: Name of the embedding.

    Raises:
        ValueError: If a size is missing or wrong, or the config asks for something that is not known here.
    """
    fields = Fields(evidence.config, evidence.origin)
    hidden, heads = fields.whole("n_embd"), fields.whole("n_head")
    fields.choice("activation_function", ("gelu_new",), "gelu_new")
    for key, value in (("scale_attn_weights", True), ("scale_attn_by_inverse_layer_idx", False)):
        if fields.switch(key, value) is not value:
            raise ValueError(f"{evidence.origin}: `{key}` of its config must be {str(value).lower()}.")
    network = DecoderConfig(
        vocab_size=rows,
        hidden_size=hidden,
        num_blocks=fields.whole("n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=max(1, hidden // heads),
        intermediate_size=fields.whole("n_inner", 4 * hidden),
        norm="layer",
        norm_epsilon=fields.number("layer_norm_epsilon", 1e-5),
        activation="gelu_tanh",
        gated=False,
        qkv_bias=True,
        out_bias=True,
        mlp_bias=True,
        learned_positions=True,
        tied=True,
        max_length=fields.whole("n_positions"),
    )
    top = {"vocab_embed": embedding, "positions": f"{prefix}wpe", "norm_final": f"{prefix}ln_f"}

    def stored(module: str, kind: str, block: str) -> str | Stored:
        if not block:
            return f"{top[module]}.{kind}"
        name = f"{prefix}h.{block}.{_GPT2_LAYER[module]}.{kind}"
        transposed = kind == "weight" and not module.startswith("norm")
        return Stored((name,), transposed=True) if transposed else name

    ignored = {
        name: "a causal mask, which is computed"
        for name in evidence.shapes
        if name.endswith((".attn.bias", ".attn.masked_bias"))
    }
    if "lm_head.weight" in evidence.shapes:
        ignored["lm_head.weight"] = "the output layer uses the matrix of the embedding"
    keys = unknown(evidence.config, _SILENT | _GPT2_KEYS | known)
    return DecoderLayout(network, key_table(network, stored), keys, ignored)


_GPT2_KEYS = frozenset(
    {
        "activation_function",
        "attn_pdrop",
        "embd_pdrop",
        "layer_norm_epsilon",
        "n_ctx",
        "n_embd",
        "n_head",
        "n_inner",
        "n_layer",
        "n_positions",
        "reorder_and_upcast_attn",
        "resid_pdrop",
        "scale_attn_by_inverse_layer_idx",
        "scale_attn_weights",
        "summary_activation",
        "summary_first_dropout",
        "summary_proj_to_labels",
        "summary_type",
        "summary_use_proj",
        "task_specific_params",
        "vocab_size",
    }
)


def gpt2_embedding(evidence: Evidence) -> str | None:
    """Name of the embedding of a GPT-2, without its last part."""
    return next((name for name in ("wte", "transformer.wte") if f"{name}.weight" in evidence.shapes), None)


def causal_family(evidence: Evidence, rows: int) -> DecoderLayout:
    """A network in the layout of the causal model of `transformers` that the config names.

    Args:
        evidence: Its config and its tensors.
        rows: Rows of the network: those of the file, and one more if a mask is added.

    Raises:
        ValueError: If it is of another family, or a size is missing or wrong.
    """
    known = frozenset({"mask_token_id"})
    kind = Fields(evidence.config, evidence.origin).choice("model_type", (*LLAMA_FAMILY, "gpt2"))
    if kind == "gpt2":
        embedding = gpt2_embedding(evidence) or "wte"
        return gpt2(evidence, rows, known, embedding.removesuffix("wte"), embedding)
    return llama(evidence, rows, known, qkv_bias=kind == "qwen2", qk_norm=kind == "qwen3")


def key_table(
    network: DecoderConfig, stored: Callable[[str, str, str], str | Stored]
) -> dict[str, str | Stored]:
    """Where the file has each parameter of a network.

    Args:
        network: Configuration of the network.
        stored: Gives the place of a parameter from the name of its layer (`"qkv"`), its kind (`"weight"` or `"bias"`),
            and the number of its block, `""` outside of the blocks.
    """
    with torch.device("meta"):
        names = [name for name, _ in build_network(network).named_parameters()]
    table: dict[str, str | Stored] = {}
    for name in names:
        *above, module, kind = name.split(".")
        table[name] = stored(module, kind, above[1] if above else "")
    return table


def _rotary(fields: Fields) -> tuple[float, RotaryScaling | None]:
    """The base of the rotary frequencies and what changes them; transformers 4 and 5 name them differently."""
    table: Any = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(table, Mapping):
        raise ValueError(f"{fields.origin}: rotary positions of its config must be a table; got {table!r}.")
    base = fields.number("rope_parameters.rope_theta", fields.number("rope_theta", 10_000.0))
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return base, None
    if kind not in _SCALINGS:
        raise ValueError(
            f"{fields.origin}: rotary positions of type {kind!r} are not known here; known: default, "
            f"{', '.join(_SCALINGS)}."
        )
    inside = Fields(table, fields.origin)
    factor = table.get("attention_factor")
    return base, RotaryScaling(
        _SCALINGS[kind],
        inside.number("factor"),
        inside.whole("original_max_position_embeddings", fields.whole("max_position_embeddings")),
        inside.number("low_freq_factor", 1.0),
        inside.number("high_freq_factor", 4.0),
        inside.number("beta_slow", 1.0),
        inside.number("beta_fast", 32.0),
        None if factor is None else inside.number("attention_factor"),
    )
