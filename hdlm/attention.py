"""Attention masks as integer ranks that follow from the hyperschedule alone.

Query `q` attends to key `k` if and only if

    key_rank[k] <= query_rank[q]    or    query_first[q] <= key_slot[k] <= query_last[q]

The first clause is *context*: keys are ranked by when they settle, and a query attends to all up to its own rank. The
second is *company*: a query also attends to the keys whose slot lies in its interval, which are noisy together with it.
Five integers per position describe the mask: an `l x l` tensor is made only on request.

Three contexts define which settled positions a settled position attends to:

| context | a settled position attends to | later steps |
|---|---|---|
| `block_causal` | positions that settled no later than itself | change nothing |
| `causal` | positions before it in the order of settling (ties: left to right) | change nothing |
| `full` | all settled positions | add positions |

A cache of keys and values is exact if later steps change nothing. Active positions attend to all settled ones and to
one another (`full`), or among themselves only to those on their left and to themselves (`causal`). Worthless positions
attend to no position, and no position attends to them.
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
"""Rank of a query without context, and slot of a key without company."""
NEVER = 2**62
"""Rank of a key that is not context of any query."""
DENSE_LIMIT = 2**18
"""Largest number of pairs of queries and keys for which a dense mask is cheaper than a block mask."""


_RANKS = ("query_rank", "key_rank", "query_first", "query_last", "key_slot")


@dataclass(frozen=True)
class Visibility:
    """An attention mask as ranks and slots (int64); leading axes are shared by equal rows.

    Attributes:
        query_rank: Highest rank of context of each query.
        key_rank: Rank of each key as context.
        query_first: First slot of company of each query.
        query_last: Last slot of company of each query; below `query_first` for none.
        key_slot: Slot of each key as company, otherwise `NOBODY`.
        query_document: Document of each query, which attends only to it; None if there is only one.
        key_document: Document of each key.
    """

    query_rank: Int[Tensor, "*b q"]
    key_rank: Int[Tensor, "*b k"]
    query_first: Int[Tensor, "*b q"]
    query_last: Int[Tensor, "*b q"]
    key_slot: Int[Tensor, "*b k"]
    query_document: Int[Tensor, "#*b q"] | None = None
    key_document: Int[Tensor, "#*b k"] | None = None

    def within(self, document: Int[Tensor, "b n"]) -> Visibility:
        """A copy that is limited to pairs in one document, for text that is packed into one window.

        Args:
            document: Document of each position, which is query and key; any numbers.
        """
        fields = {name: getattr(self, name) for name in _RANKS}
        shared = {name: values.expand(len(document), -1) for name, values in fields.items()}
        return Visibility(**shared, query_document=document, key_document=document)

    def dense(self) -> Bool[Tensor, "*b q k"]:
        """The mask as a tensor, True if the query may attend to the key."""
        rank, slot = self.key_rank[..., None, :], self.key_slot[..., None, :]
        context = rank <= self.query_rank[..., None]
        company = (self.query_first[..., None] <= slot) & (slot <= self.query_last[..., None])
        if self.query_document is None or self.key_document is None:
            return context | company
        return (context | company) & (self.query_document[..., None] == self.key_document[..., None, :])

    @property
    def num_queries(self) -> int:
        """Number of queries."""
        return self.query_rank.shape[-1]

    @property
    def is_everything(self) -> bool:
        """Whether every query attends to every key as context, so that no mask is needed."""
        return self.query_document is None and bool(self.key_rank.max() <= self.query_rank.min())

    def select(
        self, query_index: Int[Tensor, "*c p"] | None, key_index: Int[Tensor, "*c r"] | None
    ) -> Visibility:
        """Keep some queries and some keys, in the given order; None keeps all.

        Args:
            query_index: Places of the queries, one list for all rows `[p]` or one for each row `[*b p]`.
            key_index: Places of the keys, in the same form.
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
        """The mask in the form for a network on `device`.

        Returns:
            None if every query attends to every key; a dense mask if it is small or the device is a CPU (whose
            FlexAttention has no backward pass); otherwise a block mask.
        """
        if self.is_everything:
            return None
        visibility = self.to(device)
        if device.type != "cpu" and self.query_rank.shape[-1] * self.key_rank.shape[-1] > DENSE_LIMIT:
            return visibility.block_mask()
        dense = visibility.dense()
        return dense if dense.ndim > 2 else dense[None]

    def to(self, device: torch.device | str) -> Visibility:
        """A copy of the ranks and slots on another device."""
        names = (*_RANKS, "query_document", "key_document")
        values: Any = moved([getattr(self, name) for name in names], torch.device(device))
        return Visibility(**dict(zip(names, values, strict=True)))

    def mask_mod(self) -> MaskMod:
        """The predicate `(batch, head, query, key) -> bool` that FlexAttention compiles.

        Raises:
            ValueError: If there is more than one leading axis.
        """
        if self.query_rank.ndim > 2:
            raise ValueError(
                f"FlexAttention supports one batch axis; got leading shape {tuple(self.query_rank.shape[:-1])}. "
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
        """The mask for FlexAttention, sparse in blocks, made without an `l x l` tensor.

        A block is skipped if the extremes of its ranks and slots exclude every pair, and computed without the predicate
        if they admit every pair.

        Args:
            block_size: Queries and keys of a block, a power of two.
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
        """Least and greatest value of each field in each block; padding attends to nothing and is not attended to."""

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
        """Whether the extremes allow a pair that attends."""
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
        """Whether the extremes exclude every pair that does not attend."""
        context = self.key_rank.most[..., None, :] <= self.query_rank.least[..., None]
        begins = self.query_first.most[..., None] <= self.key_slot.least[..., None, :]
        ends = self.key_slot.most[..., None, :] <= self.query_last.least[..., None]
        if self.query_document is None or self.key_document is None:
            return context | (begins & ends)
        query, key = self.query_document, self.key_document
        single = (query.least == query.most)[..., None] & (key.least == key.most)[..., None, :]
        return (context | (begins & ends)) & single & (query.least[..., None] == key.least[..., None, :])


def generation_attention(
    hyperschedule: AbstractHyperschedule,
    n: int | Int[Tensor, "*b"],
    context: Context = "block_causal",
    active: Active = "full",
    regions: Regions | None = None,
) -> Visibility:
    """The attention mask of one canvas in the step from `n` to `n + 1`.

    Args:
        hyperschedule: Hyperschedule of the positions.
        n: Number of steps done; one for all rows or one per row.
        context: Attention between settled positions.
        active: Attention between active positions.
        regions: `hyperschedule.regions(n)`, if it is already known.

    Raises:
        ValueError: If `context` or `active` is not a valid choice.
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
    """The attention mask of a packed pass over `[clean | noisy]`, with a step for each noisy position.

    Noisy position `i` attends to the clean positions that are settled by step `n[i]` and to the noisy ones of that
    step, as in generation at step `n[i]`. Clean positions attend to clean ones only.

    Args:
        hyperschedule: Hyperschedule of the positions.
        n: The step of each noisy position (`hdlm.hyperschedule.packing`); below 0 for one that is not in the pass.
        context: Attention between clean positions.
        active: Attention between noisy positions of one step.

    Returns:
        Visibility over `2 l` positions, clean ones first.

    Raises:
        ValueError: If `context` or `active` is not a valid choice.
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
    """The ranks of settled positions as context.

    Attributes:
        rank: Rank of each position.
        own: Highest rank that each position attends to once it is settled.
        settled_by: Returns the highest rank that is settled by a step.
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
    """For each block of queries, the number of wanted blocks of keys, and their indices first, in order."""
    order = torch.argsort(wanted.int(), dim=-1, descending=True, stable=True)
    return wanted.sum(-1, dtype=torch.int32), order.int()
