"""Who may look at whom: integer ranks that follow from the hyperschedule alone.

Query `q` sees key `k` iff

    key_rank[k] <= query_rank[q]    or    query_first[q] <= key_slot[k] <= query_last[q]

The first clause is *context*: keys are ranked by when they settle, and a query sees all up to its own rank.
The second is *company*: a query also sees the keys whose slot lies in its interval, those that are noisy
together with it.  Five integers a position say it all: no `l x l` tensor exists until somebody asks for one.

Three contexts say what a settled position sees of the others that are settled:

| context | a settled position sees | its view later |
|---|---|---|
| `block_causal` | what settled no later than itself | never changes |
| `causal` | what comes before it in the order of settling (ties: left to right) | never changes |
| `full` | everything settled | grows |

A view that never changes is what makes a cache of keys and values exact.  Active positions see everything
settled and one another (`full`), or of one another only those to their left and themselves (`causal`).
Worthless positions see nobody and are seen by nobody.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from hdlm.hyperschedule import AbstractHyperschedule, Regions
from hdlm.transfer import moved

Context = Literal["full", "causal", "block_causal"]
Active = Literal["full", "causal"]
MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

NOBODY = -1
"""Rank of a query that sees no context, and slot of a key that keeps no company."""
NEVER = 2**62
"""Rank of a key that is nobody's context."""
DENSE_LIMIT = 2**18
"""Pairs of queries and keys up to which a dense mask is cheaper than a block mask."""


_RANKS = ("query_rank", "key_rank", "query_first", "query_last", "key_slot")


@dataclass(frozen=True)
class Visibility:
    """Who may look at whom, as ranks and slots (int64); leading axes are shared by rows that agree.

    Attributes:
        query_rank: highest rank of context that each query sees.
        key_rank: rank of each key as context.
        query_first: first slot of company that each query sees.
        query_last: last slot of company that each query sees; below `query_first` for none.
        key_slot: slot of each key as company, `NOBODY` for none.
        query_document: document of each query, which sees nobody of another; None if there is only one.
        key_document: document of each key.
    """

    query_rank: Int[Tensor, "*b q"]
    key_rank: Int[Tensor, "*b k"]
    query_first: Int[Tensor, "*b q"]
    query_last: Int[Tensor, "*b q"]
    key_slot: Int[Tensor, "*b k"]
    query_document: Int[Tensor, "#*b q"] | None = None
    key_document: Int[Tensor, "#*b k"] | None = None

    def within(self, document: Int[Tensor, "b n"]) -> Visibility:
        """The same inside each document, and nothing across: text that is packed into one window stays apart.

        Args:
            document: that of each position, which is query and key; any numbers.
        """
        fields = {name: getattr(self, name) for name in _RANKS}
        shared = {name: values.expand(len(document), -1) for name, values in fields.items()}
        return Visibility(**shared, query_document=document, key_document=document)

    def dense(self) -> Bool[Tensor, "*b q k"]:
        """The mask itself, True where the query may look at the key."""
        rank, slot = self.key_rank[..., None, :], self.key_slot[..., None, :]
        context = rank <= self.query_rank[..., None]
        company = (self.query_first[..., None] <= slot) & (slot <= self.query_last[..., None])
        if self.query_document is None or self.key_document is None:
            return context | company
        return (context | company) & (self.query_document[..., None] == self.key_document[..., None, :])

    @property
    def is_everything(self) -> bool:
        """Whether every query sees every key as context, so that no mask is needed."""
        return self.query_document is None and bool(self.key_rank.max() <= self.query_rank.min())

    def select(
        self, query_index: Int[Tensor, "*c p"] | None, key_index: Int[Tensor, "*c r"] | None
    ) -> Visibility:
        """Keep some queries and some keys, in the order given; None keeps all.

        Args:
            query_index: places of the queries, the same for all rows `[p]` or a list a row `[*b p]`.
            key_index: places of the keys, likewise.
        """
        return Visibility(
            query_rank=_take(self.query_rank, query_index),
            key_rank=_take(self.key_rank, key_index),
            query_first=_take(self.query_first, query_index),
            query_last=_take(self.query_last, query_index),
            key_slot=_take(self.key_slot, key_index),
            query_document=None if self.query_document is None else _take(self.query_document, query_index),
            key_document=None if self.key_document is None else _take(self.key_document, key_index),
        )

    def on(self, device: torch.device) -> Bool[Tensor, "#b q k"] | BlockMask | None:
        """The same as a network on `device` takes it.

        Returns:
            None if everybody sees everybody; a dense mask where that is small or the device is a CPU (whose
            FlexAttention has no backward pass); else a block mask.
        """
        if self.is_everything:
            return None
        moved = self.to(device)
        if device.type != "cpu" and self.query_rank.shape[-1] * self.key_rank.shape[-1] > DENSE_LIMIT:
            return moved.block_mask()
        dense = moved.dense()
        return dense if dense.ndim > 2 else dense[None]

    def to(self, device: torch.device | str) -> Visibility:
        """The same ranks and slots on another device."""
        names = (*_RANKS, "query_document", "key_document")
        there: Any = moved([getattr(self, name) for name in names], torch.device(device))
        return Visibility(**dict(zip(names, there, strict=True)))

    def mask_mod(self) -> MaskMod:
        """The predicate `(batch, head, query, key) -> bool` that FlexAttention compiles.

        Raises:
            ValueError: if there is more than one leading axis.
        """
        if self.query_rank.ndim > 2:
            raise ValueError(
                f"FlexAttention knows one batch axis; got leading shape {tuple(self.query_rank.shape[:-1])}. "
                "Flatten it first."
            )
        shared = self.query_rank.ndim == 1

        def mask(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            q, k = (query, key) if shared else ((batch, query), (batch, key))
            slot = self.key_slot[k]
            company = (self.query_first[q] <= slot) & (slot <= self.query_last[q])
            context = self.key_rank[k] <= self.query_rank[q]
            if self.query_document is None or self.key_document is None:
                return context | company
            return (context | company) & (self.query_document[q] == self.key_document[k])

        return mask

    def block_mask(self, block_size: int = 128) -> BlockMask:
        """The same mask for FlexAttention, sparse in blocks, built without an `l x l` tensor.

        A block is skipped when the extremes of its ranks and slots exclude every pair, and computed without
        the predicate when they admit every pair.

        Args:
            block_size: queries and keys a block, a power of two.
        """
        blocks = self._blocks(block_size)
        some, every = blocks.possible(), blocks.certain()
        if self.query_rank.ndim == 1:
            some, every = some[None], every[None]
        counts, indices = _block_lists(some & ~every)
        full_counts, full_indices = _block_lists(every)
        return BlockMask.from_kv_blocks(
            counts[:, None],
            indices[:, None],
            full_counts[:, None],
            full_indices[:, None],
            BLOCK_SIZE=block_size,
            mask_mod=self.mask_mod(),
            seq_lengths=(self.query_rank.shape[-1], self.key_rank.shape[-1]),
        )

    def _blocks(self, block_size: int) -> _Blocks:
        """Least and greatest value of each field in each block; padding sees nobody, nobody sees it."""

        def extremes(values: Tensor, padding: int) -> _Extremes:
            padded = F.pad(values, (0, -values.shape[-1] % block_size), value=padding)
            blocked = padded.reshape(*values.shape[:-1], -1, block_size)
            return _Extremes(blocked.amin(-1), blocked.amax(-1))

        return _Blocks(
            query_rank=extremes(self.query_rank, NOBODY),
            key_rank=extremes(self.key_rank, NEVER),
            query_first=extremes(self.query_first, 0),
            query_last=extremes(self.query_last, NOBODY),
            key_slot=extremes(self.key_slot, NOBODY),
            query_document=None if self.query_document is None else extremes(self.query_document, NOBODY),
            key_document=None if self.key_document is None else extremes(self.key_document, NOBODY),
        )


class _Extremes(NamedTuple):
    """Least and greatest value of a field in each block."""

    least: Int[Tensor, "*b blocks"]
    most: Int[Tensor, "*b blocks"]


@dataclass(frozen=True)
class _Blocks:
    """The fields of a `Visibility`, block by block."""

    query_rank: _Extremes
    key_rank: _Extremes
    query_first: _Extremes
    query_last: _Extremes
    key_slot: _Extremes
    query_document: _Extremes | None
    key_document: _Extremes | None

    def possible(self) -> Bool[Tensor, "*b qb kb"]:
        """Whether the extremes leave room for a pair that sees."""
        context = self.key_rank.least[..., None, :] <= self.query_rank.most[..., None]
        begins = self.query_first.least[..., None] <= self.key_slot.most[..., None, :]
        ends = self.key_slot.least[..., None, :] <= self.query_last.most[..., None]
        if self.query_document is None or self.key_document is None:
            return context | (begins & ends)
        query, key = self.query_document, self.key_document
        meet = (key.least[..., None, :] <= query.most[..., None]) & (
            query.least[..., None] <= key.most[..., None, :]
        )
        return (context | (begins & ends)) & meet

    def certain(self) -> Bool[Tensor, "*b qb kb"]:
        """Whether the extremes leave no room for a pair that does not see."""
        context = self.key_rank.most[..., None, :] <= self.query_rank.least[..., None]
        begins = self.query_first.most[..., None] <= self.key_slot.least[..., None, :]
        ends = self.key_slot.most[..., None, :] <= self.query_last.least[..., None]
        if self.query_document is None or self.key_document is None:
            return context | (begins & ends)
        query, key = self.query_document, self.key_document
        one = (query.least == query.most)[..., None] & (key.least == key.most)[..., None, :]
        return (context | (begins & ends)) & one & (query.least[..., None] == key.least[..., None, :])


def generation_attention(
    hyperschedule: AbstractHyperschedule,
    n: int | Int[Tensor, "*b"],
    context: Context = "block_causal",
    active: Active = "full",
    regions: Regions | None = None,
) -> Visibility:
    """Who sees whom on one canvas in the step from `n` to `n + 1`.

    Args:
        hyperschedule: when each position is noisy.
        n: steps done; one for all rows or one a row.
        context: what settled positions see of one another.
        active: what active positions see of one another.
        regions: `hyperschedule.regions(n)`, from who has it at hand.

    Raises:
        ValueError: if `context` or `active` is no such choice.
    """
    regions = hyperschedule.regions(n) if regions is None else regions
    ranking = _ranking(hyperschedule, context, regions.settled.device)
    together = ranking.rank.max() + 1 + _places(hyperschedule.length, active, ranking.rank.device)
    query_rank = torch.where(regions.settled, ranking.own, together).masked_fill(regions.worthless, NOBODY)
    key_rank = torch.where(regions.settled, ranking.rank, together).masked_fill(regions.worthless, NEVER)
    alone = torch.full_like(key_rank, NOBODY)
    return Visibility(query_rank, key_rank, torch.zeros_like(key_rank), alone, alone)


def two_stream(
    hyperschedule: AbstractHyperschedule,
    n: Int[Tensor, "*b l"],
    context: Context = "block_causal",
    active: Active = "full",
) -> Visibility:
    """Who sees whom in a packed pass over `[clean | noisy]`, each position noisy as at a step of its own.

    Noisy position `i` sees the clean positions that are settled by step `n[i]` and the noisy ones of that
    very step: what it sees in `generation` at step `n[i]`.  Clean positions see clean ones only.

    Args:
        hyperschedule: when each position is noisy.
        n: the step of each noisy position (`hdlm.hyperschedule.packing`); below 0 for one that takes no part.
        context: what clean positions see of one another.
        active: what noisy positions of one step see of one another.

    Returns:
        Visibility over `2 l` positions, clean ones first.

    Raises:
        ValueError: if `context` or `active` is no such choice.
    """
    ranking = _ranking(hyperschedule, context, n.device)
    nobody = torch.full_like(n, NOBODY)
    first = (n * hyperschedule.length).clamp_min(0)
    slot = torch.where(n < 0, nobody, first + _places(hyperschedule.length, active, ranking.rank.device))
    return Visibility(
        query_rank=torch.cat([ranking.own.expand_as(n), ranking.settled_by(n.clamp_min(-1))], dim=-1),
        key_rank=torch.cat([ranking.rank.expand_as(n), torch.full_like(n, NEVER)], dim=-1),
        query_first=torch.cat([torch.zeros_like(n), first], dim=-1),
        query_last=torch.cat([nobody, slot], dim=-1),
        key_slot=torch.cat([nobody, slot], dim=-1),
    )


@dataclass(frozen=True)
class _Ranking:
    """Settled positions as context.

    Attributes:
        rank: rank of each position.
        own: highest rank that each position sees once it is settled.
        settled_by: highest rank settled by a step.
    """

    rank: Int[Tensor, " l"]
    own: Int[Tensor, " l"]
    settled_by: Callable[[Tensor], Tensor]


def _ranking(hyperschedule: AbstractHyperschedule, context: Context, device: torch.device) -> _Ranking:
    _check_choice("context", context, Context)
    settles = hyperschedule.settles_on(device)
    if context == "causal":
        ordered, order = torch.sort(settles, stable=True)
        rank = torch.argsort(order)
        return _Ranking(rank, rank, lambda n: torch.searchsorted(ordered, n, right=True) - 1)
    own = settles if context == "block_causal" else settles.max().expand_as(settles)
    return _Ranking(settles, own, lambda n: n)


def _places(length: int, active: Active, device: torch.device) -> Int[Tensor, " l"]:
    """Order of positions that are active together: 0 for all, or from left to right."""
    _check_choice("active", active, Active)
    return torch.arange(length, device=device) * (active == "causal")


def check_views(context: str, active: str) -> None:
    """Refuse a choice of `context` or `active` that does not exist.

    Raises:
        ValueError: If there is no such choice.
    """
    _check_choice("context", context, Context)
    _check_choice("active", active, Active)


def _check_choice(name: str, value: str, choices: object) -> None:
    allowed = get_args(choices)
    if value not in allowed:
        raise ValueError(f"`{name}` must be one of {', '.join(allowed)}; got {value!r}.")


def _take(values: Int[Tensor, "*b l"], index: Int[Tensor, "*c n"] | None) -> Int[Tensor, "*d n"]:
    if index is None:
        return values
    if index.ndim == 1:
        return values[..., index]
    return values.expand(*index.shape[:-1], -1).gather(-1, index)


def _block_lists(wanted: Bool[Tensor, "*b qb kb"]) -> tuple[Int[Tensor, "*b qb"], Int[Tensor, "*b qb kb"]]:
    """For each block of queries, how many blocks of keys are wanted, and which: those first, in order."""
    order = torch.argsort(wanted.int(), dim=-1, descending=True, stable=True)
    return wanted.sum(-1, dtype=torch.int32), order.int()
