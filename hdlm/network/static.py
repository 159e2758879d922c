"""StaticBatch: passes of many sequences as one pass of fixed shape, which an accelerator records once and replays.

A slot is one sequence's share of memory that is reserved once. Every call computes all slots, `[slots w]` queries that
attend to the first `r` places of their slot; `w` and `r` are rounded up to powers of two, so that there are few shapes.
Query `i` of a slot writes its key to place `len(cache) + i`:

    place    0 .. len(cache)    .. len(cache) + q    .. len(cache) + w    ..
             kept               this pass            padding              free

Padding, and slots without a pass, are queries without keys (`hdlm.network.attention`), and no query attends to what
they write. But a weight of 0 times a NaN is a NaN, so a slot is filled with zeros before it is assigned, and so is
padding.
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
"""All of a network but `head`: a pass without attention and cache, the rotation, and the attention of each layer."""

_NARROWEST = 8
"""Smallest number of queries in a slot."""
_WIDEST = 128
"""Largest number of queries in a slot: wider passes use an accelerator well without it."""
_NEAREST = 256
"""Smallest number of places that queries attend to."""
_WARM_UP = 3
"""Runs before a recording, in which libraries choose kernels and reserve memory."""


@final
class StaticBatch:
    """One pass for several sequences, each with its own cache and at its own step of generation.

    A slot is assigned to each cache at its first pass, and is free again when the cache is no longer in use. On CUDA
    each shape is recorded as a graph at its first use; elsewhere the same function is called on the same buffers.

    Args:
        config: The configuration of the network.
        weight: Returns a current parameter of the network; buffers use its device and dtype, and another address
            means that the weights were moved.
        slots: Number of sequences, at least 1.
        rotary: Computes rotations of positions.
        body: The layers of the network.

    Attributes:
        slots: Number of sequences.
        records: Whether shapes are recorded as graphs.
        num_calls: Number of calls so far.

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
        self._weight, self._first = weight, like  # kept, so that its address is not used for another weight
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
        """The shapes used so far: queries in a slot, and places that they attend to."""
        return tuple(self._shapes)

    def takes(self, passes: Sequence[Pass]) -> bool:
        """Whether it can run these passes together: one sequence each, with a cache, and with a dense mask or none.

        It cannot if a pass is wider than the widest shape (a long prompt), if there are too few slots or places, if
        gradients are needed, or if the weights have been moved.
        """
        caches = {arguments.cache for arguments in passes if arguments.cache is not None}
        ready = not torch.is_grad_enabled() and self._weight().data_ptr() == self._first.data_ptr()
        if not ready or len(caches) < len(passes) or not all(map(self._fits, passes)):
            return False
        for cache in [cache for cache in self._homes if not cache.lies_in(self._memory)]:
            del self._homes[cache]  # it has outgrown its slot
        return len(caches.union(self._homes)) <= self.slots

    def __call__(self, passes: Sequence[Pass]) -> list[Float[Tensor, "1 _ h"]]:
        """Run passes that it `takes`, at least one.

        Returns:
            The result of `DDiT.features` for each.
        """
        self.num_calls += 1
        by_slot = {
            self._settle(arguments.cache): arguments for arguments in passes if arguments.cache is not None
        }
        self._fill(by_slot)
        width = _rounded(max(arguments.tokens.shape[1] for arguments in passes), _NARROWEST, _WIDEST)
        reach = _rounded(max(arguments.num_keys for arguments in passes), _NEAREST, self._seen.shape[2])
        if (width, reach) not in self._shapes:
            function = functools.partial(self._run, width, reach)
            with torch.cuda.device_of(self._memory):
                self._shapes[width, reach] = recorded(function, self._pool) if self.records else function
        hidden = self._shapes[width, reach]().clone()
        self._keep(by_slot)
        return [hidden[slot : slot + 1, : arguments.tokens.shape[1]] for slot, arguments in by_slot.items()]

    # -- slots ----------------------------------------------------------------------------------------------

    def _fits(self, arguments: Pass) -> bool:
        """Whether a slot can run this pass; errors in a pass are reported by `DDiT.features`."""
        tokens, cache, attention = arguments.tokens, arguments.cache, arguments.attention
        if cache is None or tokens.shape[0] != 1 or cache.num_rows not in (None, 1):
            return False
        width, end = tokens.shape[1], arguments.num_keys
        dense = isinstance(attention, Tensor) and tuple(attention.shape) == (1, width, end)
        return (
            width <= _WIDEST
            and end <= self._capacity
            and (attention is None or dense)
            and (arguments.condition is not None) == self._conditioned
        )

    def _settle(self, cache: KVCache) -> int:
        """The slot of a cache; a cache without a slot gets one."""
        slot = self._homes.get(cache)
        if slot is None:
            slot = min(set(range(self.slots)) - set(self._homes.values()))
            self._memory[:, :, slot].zero_()
            keys, values = self._memory[:, :, slot : slot + 1, :, : self._capacity]
            cache.move(list(zip(keys, values, strict=True)))
            self._homes[cache] = slot
        return slot

    # -- a pass ---------------------------------------------------------------------------------------------

    def _fill(self, by_slot: dict[int, Pass]) -> None:
        """Copy passes into the buffers, each into its slot."""
        for buffer in (self._tokens, self._positions, self._condition, self._blend, self._seen):
            buffer.zero_()
        kept, ends, places = [0] * self.slots, [1] * self.slots, []
        for cache, slot in self._homes.items():
            kept[slot] = len(cache)
        for slot, arguments in by_slot.items():
            width, ends[slot] = arguments.tokens.shape[1], arguments.num_keys
            places.append(torch.arange(width) + slot * _WIDEST)
            attention = arguments.attention
            self._seen[slot, :width, : ends[slot]] = attention[0] if isinstance(attention, Tensor) else True
        self._bounds.copy_(torch.tensor([kept, ends]))
        at, passes = torch.cat(places).to(self._bounds.device), list(by_slot.values())
        _copy(self._tokens, at, [arguments.tokens for arguments in passes], passes)
        _copy(self._positions, at, [arguments.places for arguments in passes], passes)
        _copy(self._condition, at, [arguments.condition for arguments in passes], passes)
        _copy(self._blend, at, [arguments.blend for arguments in passes], passes)

    def _run(self, width: int, reach: int) -> Float[Tensor, "slots q h"]:
        """The pass over the buffers, a fixed sequence of kernels that does not depend on their content."""
        device, heads, dim = self._bounds.device, self._memory.shape[3], self._memory.shape[5]
        kept, end = self._bounds
        places = kept[:, None] + torch.arange(width, device=device)
        at = places[:, None, :, None].expand(-1, heads, -1, dim)
        positions = self._positions[:, :width]
        rotation = self._rotary(positions)
        mask, rotation = unmask_empty_rows(self._seen[:, :width, :reach], rotation)
        mask = mask & (torch.arange(reach, device=device) < end[:, None])[:, None, None]

        def see(layer: int) -> See:
            return functools.partial(self._see, layer, at, mask)

        condition = self._condition[:, :width] if self._conditioned else None
        one = Pass(self._tokens[:, :width], positions, condition, self._blend[:, :width])
        return self._body(one, rotation, see)

    def _see(self, layer: int, at: Tensor, mask: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Write the current keys and values, and attend to the places of the shape."""
        keys, values = self._memory[:, layer]
        keys.scatter_(2, at, key)
        values.scatter_(2, at, value)
        reach = mask.shape[-1]
        return attend(query, keys[:, :, :reach], values[:, :, :reach], mask)

    def _keep(self, by_slot: dict[int, Pass]) -> None:
        """Keep the stored positions in the caches; rows of all layers and slots are moved in one operation."""
        slots, sources, targets = [], [], []
        for slot, arguments in by_slot.items():
            cache, store = arguments.cache, arguments.store
            if cache is None or store is None:
                continue
            slots.append(torch.full_like(store, slot))
            sources.append(store + len(cache))
            targets.append(torch.arange(len(store), device=store.device) + len(cache))
            cache.extend(len(store), arguments.tokens.shape[1])
        if slots:
            rows, old, new = (torch.cat(numbers) for numbers in (slots, sources, targets))
            self._memory[:, :, rows, :, new] = self._memory[:, :, rows, :, old]


def recorded(function: Callable[[], Tensor], pool: Any = None) -> Callable[[], Tensor]:
    """Record a function of CUDA tensors as a graph that repeats it on the same memory in one launch.

    Args:
        function: The function; it must have the same effect at every call.
        pool: Memory for intermediate results; graphs that are never replayed at the same time may share it.

    Returns:
        A function that replays the graph; every call overwrites the result of the one before.
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


def _copy(
    buffer: Tensor, at: Int[Tensor, " n"], values: Sequence[Tensor | None], passes: Sequence[Pass]
) -> None:
    """Copy a value for each query of several passes to places of a buffer; None stands for zeros."""
    rows = [
        buffer.new_zeros(arguments.tokens.shape[1]) if value is None else value.expand_as(arguments.tokens)[0]
        for value, arguments in zip(values, passes, strict=True)
    ]
    buffer.view(-1)[at] = torch.cat(rows).to(buffer.dtype)


def _rounded(number: int, least: int, most: int) -> int:
    """The next power of two, within bounds."""
    return min(max(least, 1 << (number - 1).bit_length()), most)
