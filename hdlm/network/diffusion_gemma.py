"""DiffusionGemma: a mixture of experts that encodes settled text causally and writes a canvas behind it.

The modules are those of `transformers` (5.23 or newer), which is imported when such a network is made. There are two
stacks. Settled positions pass through the *encoder*, in which a position sees those before it. Positions of the canvas
pass through the *decoder*, in which they see one another and the keys and values of the encoder. The two stacks have
the same weights, except one factor for each layer. In the sliding layers, an encoded position sees `window - 1`
positions before it, and every position of a canvas sees the last `window - 1` positions before the canvas.

The network is *self-conditioned*: the embedding of a position of the canvas also depends on the distribution that the
call before has given for it, if there was one.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_mask

from hdlm.network.attention import Attention
from hdlm.network.cache import KVCache
from hdlm.network.passes import Pass, Previous
from hdlm.network.transformer import AbstractNetwork
from hdlm.strict_config import OptionError, require

__all__ = ["DiffusionGemma", "DiffusionGemmaConfig", "PrefixCache"]


_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_blocks": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_length": "max_position_embeddings",
}
"""Names in `text_config` of the sizes that the rest of the package reads."""


@final
@dataclass(frozen=True)
class DiffusionGemmaConfig:
    """The configuration of a DiffusionGemma, as its `config.json` has it.

    Attributes:
        table: Content of the `config.json`, with the table `text_config`.
        vocab_size: Rows of the embedding; each is a word.
        hidden_size: Width of the residual stream.
        num_blocks: Number of layers.
        num_heads: Number of heads of queries.
        num_kv_heads: Number of heads of keys and values in a sliding layer.
        head_dim: Width of a head in a sliding layer.
        max_length: Number of positions that the network is meant for.

    Raises:
        ValueError: If a size is missing or not a positive integer.
    """

    table: Mapping[str, Any]
    vocab_size: int = field(init=False)
    hidden_size: int = field(init=False)
    num_blocks: int = field(init=False)
    num_heads: int = field(init=False)
    num_kv_heads: int = field(init=False)
    head_dim: int = field(init=False)
    max_length: int = field(init=False)

    def __post_init__(self) -> None:
        text = self.table.get("text_config")
        if not isinstance(text, Mapping):
            raise OptionError("text_config", text, "be a table")
        for name, stored in _SIZES.items():
            value = text.get(stored)
            counts = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            require(counts, f"text_config.{stored}", "a positive integer", value)
            object.__setattr__(self, name, value)

    @property
    def timestep_embedding(self) -> bool:
        """Whether the network gets the noise level: never."""
        return False

    def to_dict(self) -> dict[str, Any]:
        """The type of the network, and its table; the inverse of `from_dict`."""
        return {"type": "DiffusionGemma", "table": dict(self.table)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> DiffusionGemmaConfig:
        """Build a config from what `to_dict` gave.

        Raises:
            ValueError: If it is not one table, or a size is missing.
        """
        rest = {name: value for name, value in fields.items() if name != "type"}
        if set(rest) != {"table"} or not isinstance(rest["table"], Mapping):
            raise OptionError("table", rest, "be the only field, the config.json of a model")
        return cls(rest["table"])


@final
class PrefixCache:
    """Keys and values of settled positions, with the positions, on which sliding windows depend."""

    def __init__(self) -> None:
        self.keys = KVCache()
        self.places: Int[Tensor, "#b c"] | None = None

    def __len__(self) -> int:
        """Number of stored positions."""
        return len(self.keys)

    def keep(self, store: Int[Tensor, " n"], places: Int[Tensor, "#b q"]) -> None:
        """Keep encoded positions of the last pass; see `KVCache.keep`.

        Args:
            store: Indices of the encoded positions.
            places: Positions of all encoded ones.
        """
        self.keys.keep(store, places.shape[1])
        kept = places[:, store]
        self.places = kept if self.places is None else torch.cat([self.places, kept], 1)

    def retain(self, places: Int[Tensor, " n"]) -> None:
        """Keep some of the stored positions, in the given order."""
        self.keys.retain(places)
        self.places = None if self.places is None else self.places[:, places]


@final
class _LayerKeys:
    """The keys and values of each layer in one pass; the layers of `transformers` call `update`.

    The encoder writes its keys after those of the cache. A canvas attends to both and to its own keys, which are not
    stored.

    Args:
        cache: The cache of the pass, or None.
    """

    def __init__(self, cache: PrefixCache | None) -> None:
        self._cache = None if cache is None else cache.keys
        self._prefix: list[tuple[Tensor, Tensor]] = []
        if self._cache:
            self._prefix = [self._cache.read(layer) for layer in range(self._cache.num_layers)]
        self.encodes = True

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """The keys and values that the current positions attend to."""
        if not self.encodes:
            before = self._prefix[layer : layer + 1]
            keys, values = zip(*before, (key, value), strict=True)
            return torch.cat(keys, 2), torch.cat(values, 2)
        both = (key, value) if self._cache is None else self._cache.write(layer, key, value)
        self._prefix[layer : layer + 1] = [both]
        return both


class _Masks(NamedTuple):
    """The keys that each query may attend to, in the full layers and in the sliding ones."""

    full: Bool[Tensor, "#b q k"]
    sliding: Bool[Tensor, "#b q k"]

    def of(self, kind: str) -> Tensor | None:
        """The mask of a kind of layer; None if every query attends to every key."""
        mask = self.full if kind == "full_attention" else self.sliding
        return None if bool(mask.all()) else mask[:, None]


@final
class DiffusionGemma(AbstractNetwork):
    """The network of a DiffusionGemma, with the modules of `transformers`.

    Args:
        config: Sizes and switches, as published.

    Raises:
        ValueError: If `transformers` is missing or too old, or refuses the configuration.
    """

    config: DiffusionGemmaConfig
    vocab_embed: Any
    token_rows: ClassVar[tuple[str, ...]] = ("vocab_embed.weight",)
    self_conditioned: ClassVar[bool] = True
    shards: ClassVar[bool] = False
    """FSDP gathers the parameters of a layer when the layer is called, and so undoes the exchange of its factor."""

    def __init__(self, config: DiffusionGemmaConfig) -> None:
        super().__init__()
        self.config = config
        published = _published(config)
        text = published.config.text_config
        self.kinds: tuple[str, ...] = tuple(text.layer_types)
        self.window, self.softcap = int(text.sliding_window), float(published.final_logit_softcapping)
        encoder, decoder = published.model.encoder, published.model.decoder
        self.vocab_embed, self.self_conditioning = decoder.embed_tokens, decoder.self_conditioning
        self.blocks, self.norm = encoder.language_model.layers, decoder.norm
        self.canvas_scalars = nn.ParameterList(layer.layer_scalar for layer in decoder.layers)
        self.positions = decoder.rotary_emb
        # The vision tower is kept for the export.
        self.vision_tower, self.embed_vision = encoder.vision_tower, encoder.embed_vision
        for layer in encoder.language_model.layers:
            layer.self_attn.is_causal = False  # the masks say what is causal
        _freeze_buffers(self)
        for frozen in (self.canvas_scalars, self.vision_tower, self.embed_vision):
            frozen.requires_grad_(False)

    def features(
        self,
        tokens: Int[Tensor, "b q"],
        *,
        positions: Int[Tensor, "#b q"] | None = None,
        condition: Float[Tensor, "#b #q"] | None = None,
        blend: Float[Tensor, "#b #q"] | None = None,
        attention: Attention = None,
        cache: PrefixCache | None = None,
        store: Int[Tensor, " n"] | None = None,
        settled: Bool[Tensor, " q"] | None = None,
        previous: Previous | None = None,
    ) -> Float[Tensor, "b q h"]:
        """The hidden states before the vocabulary projection.

        Args:
            tokens: Ids of words, in `[0, vocab_size)`.
            positions: Position of each token; by default those after the cached ones.
            condition: Must be None: the network gets no noise level.
            blend: Must be None: there is no mask.
            attention: Which keys each query may attend to. Encoded positions never attend to later ones or to a canvas.
            cache: Keys and values of earlier settled positions.
            store: Indices of the settled positions that the cache keeps after this pass; by default none.
            settled: Which positions are encoded; the others are a canvas. By default none is.
            previous: Distributions of the call before, for self-conditioning; by default there are none.

        Raises:
            ValueError: If the network is in float64, gets a noise level, or is to store positions of a canvas.
        """
        if self.vocab_embed.weight.dtype == torch.float64:
            raise ValueError("The experts of DiffusionGemma do not compute in float64: load it in float32.")
        if condition is not None or blend is not None:
            raise ValueError("DiffusionGemma gets no noise level: use `Mean()` or `LeaveOneOut()`.")
        cached = 0 if cache is None else len(cache)
        if positions is None:
            positions = torch.arange(cached, cached + tokens.shape[1], device=tokens.device)[None]
        if settled is None:
            settled = torch.zeros(tokens.shape[1], dtype=torch.bool, device=tokens.device)
        if store is not None and not bool(settled[store].all()):
            raise ValueError(
                "DiffusionGemma keeps keys and values of settled positions only: leave `active` out of the "
                "approximate cache."
            )
        encoded, canvas = settled.nonzero()[:, 0], (~settled).nonzero()[:, 0]
        self._choose_kernel()
        seen = _Seen.of(attention, positions, cached, cache)
        keys, parts = _LayerKeys(cache), []
        if len(encoded):
            masks = seen.causal(encoded, self.window)
            x = self.vocab_embed(tokens[:, encoded])
            parts.append(self._through(x, positions[:, encoded], masks, keys))
        if len(canvas):
            keys.encodes = False
            masks = seen.behind(encoded, canvas, self.window)
            x = self._conditioned(tokens[:, canvas], previous, canvas)
            parts.append(self._through(x, positions[:, canvas], masks, keys))
        if cache is not None and store is not None and len(store):
            cache.keep((settled.cumsum(0) - 1)[store], positions[:, encoded])
        return torch.cat(parts, 1)[:, torch.cat([encoded, canvas]).argsort()]

    def features_of_many(self, passes: Sequence[Pass]) -> list[Tensor]:
        """The result of `features` for each pass; each is computed apart, so no digit depends on the others."""
        hidden = []
        for asked in passes:
            given = {name: value for name, value in asked._asdict().items() if value is not None}
            hidden.append(self.features(given.pop("tokens"), **given))
        return hidden

    def head(self, hidden: Float[Tensor, "*n h"]) -> Float[Tensor, "*n v"]:
        logits = nn.functional.linear(hidden, self.vocab_embed.weight).float()
        return (logits / self.softcap).tanh() * self.softcap

    def projection(self) -> None:
        """None: the logits are bounded after the projection."""

    def speed_up(self, *, compiled: bool = False, slots: int = 0, batch_invariant: bool = False) -> None:
        """Prepare the network for generation: nothing is to be done, because each pass is computed apart.

        Raises:
            ValueError: If compilation or static buffers are asked for.
        """
        if compiled or slots:
            raise ValueError("DiffusionGemma is neither compiled nor has static buffers: leave both out.")

    def new_cache(self) -> PrefixCache:
        return PrefixCache()

    def compute_buffers(self) -> None:
        scale = torch.tensor(self.vocab_embed.scalar_embed_scale)
        self.vocab_embed.register_buffer("embed_scale", scale, persistent=False)
        for module in list(self.modules()):
            if any(buffer.is_meta for buffer in module.buffers(recurse=False)):
                fresh = type(module)(module.config)  # rotary positions
                for name, value in fresh.named_buffers(recurse=False):
                    module.register_buffer(name, value, persistent=False)

    def _choose_kernel(self) -> None:
        """Compute experts one by one if their rows do not begin at multiples of 16 bytes, which the kernel needs."""
        experts: Any = self.blocks[0].experts
        rows = (weight.shape[-1] * weight.element_size() for weight in experts.parameters(recurse=False))
        experts.config._experts_implementation = "eager" if any(row % 16 for row in rows) else "grouped_mm"

    def _conditioned(
        self, tokens: Int[Tensor, "b c"], previous: Previous | None, canvas: Int[Tensor, " c"]
    ) -> Float[Tensor, "b c h"]:
        """The embedding of a canvas, with the distributions of the call before."""
        x = self.vocab_embed(tokens)
        signal = torch.zeros_like(x)
        if previous is not None:
            table, scale = self.vocab_embed.weight, self.vocab_embed.embed_scale.to(x.dtype)
            p = previous.log_p[:, : len(table)].softmax(-1, dtype=torch.float32).to(table.dtype)
            place = previous.place[:, canvas]
            soft = (p @ table).to(x.dtype) * scale
            signal[place >= 0] = soft[place[place >= 0]]
        conditioned: Tensor = self.self_conditioning(x, signal)
        return conditioned

    def _through(self, x: Tensor, places: Tensor, masks: _Masks, keys: _LayerKeys) -> Float[Tensor, "b q h"]:
        """The layers of a stack, and the final norm."""
        rotations = {kind: self.positions(x, places, kind) for kind in set(self.kinds)}
        seen = {kind: masks.of(kind) for kind in set(self.kinds)}
        for layer, scalar, kind in zip(self.blocks, self.canvas_scalars, self.kinds, strict=True):
            given = {
                "position_embeddings": rotations[kind],
                "attention_mask": seen[kind],
                "past_key_values": keys,
            }
            own = {} if keys.encodes else {"layer_scalar": scalar}
            x = torch.func.functional_call(layer, own, (x,), given)
        normed: Tensor = self.norm(x)
        return normed


@final
@dataclass(frozen=True)
class _Seen:
    """Which keys each position of a pass may attend to.

    Attributes:
        mask: The mask of the caller, over cached keys followed by current ones; None if all attend to all.
        query: The position of each query.
        key: The position of each key.
        cached: How many of the keys are cached.
    """

    mask: Bool[Tensor, "#b q k"] | None
    query: Int[Tensor, "#b q"]
    key: Int[Tensor, "#b k"]
    cached: int

    @classmethod
    def of(
        cls, attention: Attention, places: Int[Tensor, "#b q"], cached: int, cache: PrefixCache | None
    ) -> _Seen:
        """The mask of a pass.

        Raises:
            ValueError: If the mask is for other numbers of queries or keys.
        """
        key = places if cache is None or cache.places is None else torch.cat([cache.places, places], 1)
        if attention is None:
            return cls(None, places, key, cached)
        size = places.shape[1], key.shape[1]
        if isinstance(attention, BlockMask):
            rows = attention.shape[0]
            mask = create_mask(attention.mask_mod, rows, 1, *size, device=str(places.device))[:, 0]
        else:
            mask = attention
        if tuple(mask.shape[-2:]) != size:
            raise ValueError(
                f"`attention` must have shape [.., {size[0]}, {size[1]}]; got {tuple(mask.shape)}."
            )
        return cls(mask, places, key, cached)

    def causal(self, encoded: Int[Tensor, " s"], window: int) -> _Masks:
        """The masks of the encoder."""
        may, query, key = self._between(encoded, self._prefix(encoded))
        may = (may & (key < query)) | (key == query)  # a position sees itself, also if it is padding
        return _Masks(may, may & (key > query - window))

    def behind(self, encoded: Int[Tensor, " s"], canvas: Int[Tensor, " c"], window: int) -> _Masks:
        """The masks of a canvas."""
        may, _, key = self._between(canvas, self._prefix(encoded))
        last = torch.where(may, key, -1).amax(2, keepdim=True) if may.shape[2] else key
        own, _, _ = self._between(canvas, canvas + self.cached)
        near = may & (key > last - window + 1)
        return _Masks(torch.cat([may, own], 2), torch.cat([near, own], 2))

    def _prefix(self, encoded: Tensor) -> Int[Tensor, " p"]:
        """The cached keys and those that this pass encodes."""
        return torch.cat([torch.arange(self.cached, device=encoded.device), encoded + self.cached])

    def _between(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The mask of the caller for some queries and keys, and their positions, `[b q 1]` and `[b 1 k]`."""
        query, key = self.query[:, queries, None], self.key[:, None, keys]
        if self.mask is None:
            return torch.ones_like(query + key, dtype=torch.bool), query, key
        return self.mask[:, queries][:, :, keys], query, key


def _published(config: DiffusionGemmaConfig) -> Any:
    """The model of `transformers`."""
    try:
        package = importlib.import_module("transformers")
        model, settings = package.DiffusionGemmaForBlockDiffusion, package.DiffusionGemmaConfig
        refused = importlib.import_module("huggingface_hub.errors").StrictDataclassError
    except (ImportError, AttributeError) as error:
        raise ValueError(
            "DiffusionGemma needs transformers 5.23 or newer, whose modules are its network: "
            f"pip install 'hdlm[gemma]' ({error})."
        ) from error
    try:
        made = model(settings.from_dict(copy.deepcopy(dict(config.table))))
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, refused) as error:
        raise ValueError(f"transformers refuses the config: {' '.join(str(error).split())}") from error
    _check(made.config.text_config)
    return made


def _check(text: Any) -> None:
    """Refuse values that transformers accepts although the network cannot compute with them."""
    window, cap, top = text.sliding_window, text.final_logit_softcapping, text.top_k_experts
    require(window >= 1, "text_config.sliding_window", "at least 1", window)
    is_number = isinstance(cap, int | float)
    require(is_number and 0 < cap < float("inf"), "text_config.final_logit_softcapping", "positive", cap)
    most = text.num_experts
    is_count = isinstance(top, int) and 1 <= top <= most
    require(is_count, "text_config.top_k_experts", f"an integer in [1, {most}], the number of experts", top)


def _freeze_buffers(network: nn.Module) -> None:
    """Make parameters that are not trained of the buffers that a file holds, so that they are read like the others."""
    for module in list(network.modules()):
        for name, buffer in list(module.named_buffers(recurse=False)):
            if name not in module._non_persistent_buffers_set:
                delattr(module, name)
                module.register_parameter(name, nn.Parameter(buffer, requires_grad=False))
