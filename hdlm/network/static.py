"""StaticBatch: passes of many sequences as one of fixed shape, which an accelerator records once and replays.

A slot is one sequence's share of memory that is reserved once. Every call computes all slots, `[slots w]` queries that
look at the first `r` places of their own slot; `w` and `r` are rounded up to powers of two, so that a few shapes serve
all. Query `i` of a slot leaves its key at place `len(cache) + i`:

    place    0 .. len(cache)    .. len(cache) + q    .. len(cache) + w    ..
             kept               this pass            padding              free

Padding, and slots that are not asked, are queries that may attend nobody (`hdlm.network.attention`), and nobody attends
to what they leave. A weight of 0 does not silence a NaN: so a slot is wiped before it is lent, and padding is zeros.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hdlm.network.attention import attend, unmask_empty_rows
from hdlm.network.cache import KVCache
from hdlm.network.config import NetworkShape
from hdlm.network.layers import See
from hdlm.network.passes import Pass
from hdlm.network.rotary import Rotary, Rotation

__all__ = ["Body", "StaticBatch", "recorded"]

Body: TypeAlias = Callable[[Pass, Rotation, Callable[[int], See]], Tensor]
"""All of a network but `head`: a pass without attention and cache, the rotation, and how layer `i` attends."""

_NARROWEST = 8
"""Fewest queries a slot."""
_WIDEST = 128
"""Most queries a slot: wider passes keep an accelerator busy as they are."""
_NEAREST = 256
"""Fewest places that queries look at."""
_WARM_UP = 3
"""Runs before a recording, in which libraries choose kernels and reserve memory."""


@final
class StaticBatch:
    """One pass for as many sequences as there are slots, each behind a cache of its own and at a step of its own.

    It lends slots to the caches that it is shown, and has them back when a cache is no longer in use. On CUDA each
    shape is recorded as a graph at its first use; elsewhere the same function is called on the same buffers.

    Args:
        config: The shape of the network.
        weight: Gives one of its weights, which it may have replaced since: memory lies where it lies, in its precision.
        slots: How many sequences, at least 1.
        rotary: Turns positions to rotations.
        body: The layers.

    Attributes:
        slots: As given.
        records: Whether shapes are recorded.
        num_calls: Calls so far.

    Raises:
        ValueError: If there is no slot.
    """

    def __init__(
        self, config: NetworkShape, weight: Callable[[], Tensor], slots: int, rotary: Rotary, body: Body
    ) -> None:
        if slots < 1:
            raise ValueError(f"`slots` must be at least 1, one for each sequence at a time; got {slots}.")
        like = weight().detach()
        self.slots, self.records, self.num_calls = slots, like.is_cuda, 0
        self._rotary, self._body, self._conditioned = rotary, body, config.timestep_embedding
        self._weight, self._first = weight, like  # kept, so that no other weight is given its address
        self._pool = torch.cuda.graph_pool_handle() if like.is_cuda else None
        self._capacity, places = config.max_length, config.max_length + _WIDEST
        zeros = functools.partial(torch.zeros, device=like.device)
        shape = (2, config.num_blocks, slots, config.num_kv_heads, places, config.head_dim)
        self._memory = zeros(shape, dtype=like.dtype)
        precision = torch.promote_types(like.dtype, torch.float32)
        self._tokens, self._positions = (zeros(slots, _WIDEST, dtype=torch.long) for _ in range(2))
        self._condition, self._blend = (zeros(slots, _WIDEST, dtype=precision) for _ in range(2))
        self._seen = zeros(slots, _WIDEST, places, dtype=torch.bool)
        self._bounds = zeros(2, slots, dtype=torch.long)
        self._homes: weakref.WeakKeyDictionary[KVCache, int] = weakref.WeakKeyDictionary()
        self._shapes: dict[tuple[int, int], Callable[[], Tensor]] = {}

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Queries a slot and places in view, of each shape used so far."""
        return tuple(self._shapes)

    def takes(self, passes: Sequence[Pass]) -> bool:
        """Whether it can make these passes together: one sequence each, behind a cache, with a dense mask or none.

        It cannot if one is wider than the widest shape (as a long prompt), if there are too few slots or places, where
        gradients are wanted, and once the weights have been moved.
        """
        caches = {one.cache for one in passes if one.cache is not None}
        ready = not torch.is_grad_enabled() and self._weight().data_ptr() == self._first.data_ptr()
        if not ready or len(caches) < len(passes) or not all(map(self._fits, passes)):
            return False
        moved_out = [
            one for one in self._homes if not one.lies_in(self._memory)
        ]  # rows selected, or outgrown
        for cache in moved_out:
            del self._homes[cache]
        return len(caches.union(self._homes)) <= self.slots

    def __call__(self, passes: Sequence[Pass]) -> list[Float[Tensor, "1 _ h"]]:
        """Make passes that it `takes`, at least one.

        Returns:
            What `DDiT.features` says of each.
        """
        self.num_calls += 1
        asked = {self._settle(one.cache): one for one in passes if one.cache is not None}
        self._fill(asked)
        width = _rounded(max(one.tokens.shape[1] for one in passes), _NARROWEST, _WIDEST)
        reach = _rounded(max(one.num_keys for one in passes), _NEAREST, self._seen.shape[2])
        if (width, reach) not in self._shapes:
            function = functools.partial(self._run, width, reach)
            with torch.cuda.device_of(self._memory):
                self._shapes[width, reach] = recorded(function, self._pool) if self.records else function
        hidden = self._shapes[width, reach]().clone()
        self._keep(asked)
        return [hidden[slot : slot + 1, : one.tokens.shape[1]] for slot, one in asked.items()]

    # -- slots ----------------------------------------------------------------------------------------------

    def _fits(self, one: Pass) -> bool:
        """Whether a slot can make this pass; what is wrong about a pass is left for others to say."""
        if one.cache is None or one.tokens.shape[0] != 1 or one.cache.num_rows not in (None, 1):
            return False
        width, end = one.tokens.shape[1], one.num_keys
        dense = isinstance(one.attention, Tensor) and tuple(one.attention.shape) == (1, width, end)
        return (
            width <= _WIDEST
            and end <= self._capacity
            and (one.attention is None or dense)
            and (one.condition is not None) == self._conditioned
        )

    def _settle(self, cache: KVCache) -> int:
        """The slot of a cache, which moves in if it has none."""
        slot = self._homes.get(cache)
        if slot is None:
            slot = min(set(range(self.slots)) - set(self._homes.values()))
            self._memory[:, :, slot].zero_()
            keys, values = self._memory[:, :, slot : slot + 1, :, : self._capacity]
            cache.move(list(zip(keys, values, strict=True)))
            self._homes[cache] = slot
        return slot

    # -- a pass ---------------------------------------------------------------------------------------------

    def _fill(self, asked: dict[int, Pass]) -> None:
        """Lay passes into the buffers, each into its slot."""
        for buffer in (self._tokens, self._positions, self._condition, self._blend, self._seen):
            buffer.zero_()
        kept, ends, places = [0] * self.slots, [1] * self.slots, []
        for cache, slot in self._homes.items():
            kept[slot] = len(cache)
        for slot, one in asked.items():
            width, ends[slot] = one.tokens.shape[1], one.num_keys
            places.append(torch.arange(width) + slot * _WIDEST)
            self._seen[slot, :width, : ends[slot]] = (
                one.attention[0] if isinstance(one.attention, Tensor) else True
            )
        self._bounds.copy_(torch.tensor([kept, ends]))
        at, passes = torch.cat(places).to(self._bounds.device), list(asked.values())
        _lay(self._tokens, at, [one.tokens for one in passes], passes)
        _lay(self._positions, at, [one.places for one in passes], passes)
        _lay(self._condition, at, [one.condition for one in passes], passes)
        _lay(self._blend, at, [one.blend for one in passes], passes)

    def _run(self, width: int, reach: int) -> Float[Tensor, "slots q h"]:
        """The pass over the buffers: nothing in it depends on what they hold but what it computes."""
        device, heads, dim = self._bounds.device, self._memory.shape[3], self._memory.shape[5]
        kept, end = self._bounds
        places = kept[:, None] + torch.arange(width, device=device)
        at = places[:, None, :, None].expand(-1, heads, -1, dim)
        rotation = self._rotary(self._positions[:, :width])
        mask, rotation = unmask_empty_rows(self._seen[:, :width, :reach], rotation)
        mask = mask & (torch.arange(reach, device=device) < end[:, None])[:, None, None]

        def see(layer: int) -> See:
            return functools.partial(self._see, layer, at, mask)

        condition = self._condition[:, :width] if self._conditioned else None
        one = Pass(self._tokens[:, :width], self._positions[:, :width], condition, self._blend[:, :width])
        return self._body(one, rotation, see)

    def _see(self, layer: int, at: Tensor, mask: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attend to the places in view, after the current keys and values have taken theirs."""
        keys, values = self._memory[:, layer]
        keys.scatter_(2, at, key)
        values.scatter_(2, at, value)
        reach = mask.shape[-1]
        return attend(query, keys[:, :, :reach], values[:, :, :reach], mask)

    def _keep(self, asked: dict[int, Pass]) -> None:
        """Have the caches keep what they are told to; rows of all layers and slots move in one go."""
        slots, sources, targets = [], [], []
        for slot, one in asked.items():
            cache, store = one.cache, one.store
            if cache is None or store is None:
                continue
            slots.append(torch.full_like(store, slot))
            sources.append(store + len(cache))
            targets.append(torch.arange(len(store), device=store.device) + len(cache))
            cache.extend(len(store), one.tokens.shape[1])
        if slots:
            rows, old, new = (torch.cat(numbers) for numbers in (slots, sources, targets))
            self._memory[:, :, rows, :, new] = self._memory[:, :, rows, :, old]


def recorded(function: Callable[[], Tensor], pool: Any = None) -> Callable[[], Tensor]:
    """A function of CUDA tensors as a graph that does the same to the same memory, in one launch.

    Args:
        function: Does no more when it is called more often.
        pool: Memory for intermediate results, which graphs may share that are never replayed at the same time.

    Returns:
        The same function, but for its result, which every call overwrites.
    """
    side, main = torch.cuda.Stream(), torch.cuda.current_stream()
    side.wait_stream(main)
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            function()
    main.wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        result = function()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


def _lay(
    buffer: Tensor, at: Int[Tensor, " n"], values: Sequence[Tensor | None], passes: Sequence[Pass]
) -> None:
    """Lay a value for each query of several passes at places of a buffer; `None` stands for zeros."""
    rows = [
        buffer.new_zeros(one.tokens.shape[1]) if value is None else value.expand_as(one.tokens)[0]
        for value, one in zip(values, passes, strict=True)
    ]
    buffer.view(-1)[at] = torch.cat(rows).to(buffer.dtype)


def _rounded(number: int, least: int, most: int) -> int:
    """The next power of two, within bounds."""
    return min(max(least, 1 << (number - 1).bit_length()), most)
