"""The cache is exact: however a sequence is cut into passes, every logit is that of the whole pass."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hdlm.network import DDiT, DDiTConfig, KVCache

LENGTH = 12
WORDS = 13
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}


def random_network(dtype: torch.dtype = torch.float64) -> DDiT:
    torch.manual_seed(0)
    network = DDiT(DDiTConfig(WORDS, 32, 2, 4)).to(dtype).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return network


NETWORKS = {dtype: random_network(dtype) for dtype in TOLERANCE}


def random_tokens(batch: int = 2) -> Tensor:
    return torch.randint(WORDS, (batch, LENGTH), generator=torch.Generator().manual_seed(1))


def no_later(ranks: Tensor) -> Tensor:
    """Everybody attends those of its own rank and of lower ones."""
    return (ranks <= ranks[:, None])[None]


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[expected.dtype], rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    blocks=st.lists(st.integers(1, 4), min_size=1, max_size=LENGTH),
    passes=st.lists(st.integers(1, 3), min_size=1, max_size=LENGTH),
    dtype=st.sampled_from(list(TOLERANCE)),
)
@torch.no_grad()
def test_any_split_under_a_block_causal_mask(blocks, passes, dtype):
    ranks = torch.repeat_interleave(torch.tensor(blocks))[:LENGTH]
    network, tokens = NETWORKS[dtype], random_tokens()[:, : len(ranks)]
    whole = network(tokens, attention=no_later(ranks))
    cache, done, logits = KVCache(), 0, []
    while done < len(ranks):
        last_rank = ranks[done] + passes[len(logits) % len(passes)] - 1
        end = int((ranks <= last_rank).sum())
        mask = no_later(ranks)[:, done:end, :end]
        logits.append(
            network(tokens[:, done:end], attention=mask, cache=cache, store=torch.arange(end - done))
        )
        done = end
        assert len(cache) == done
    assert_same(torch.cat(logits, 1), whole)


@settings(deadline=None, max_examples=60)
@given(ranks=st.lists(st.integers(0, 4), min_size=2, max_size=LENGTH))
@torch.no_grad()
def test_any_order_with_passengers_that_are_not_kept(ranks):
    """Positions settle in any order; those of the next rank ride along and leave nothing behind."""
    ranks = torch.tensor(ranks)
    network, tokens = NETWORKS[torch.float64], random_tokens()[:, : len(ranks)]
    whole = network(tokens, attention=no_later(ranks))
    cache, kept = KVCache(), torch.empty(0, dtype=torch.long)
    for rank in ranks.unique():
        current = torch.where((ranks == rank) | (ranks == rank + 1))[0]
        settling = ranks[current] == rank
        keys = torch.cat([kept, current])
        logits = network(
            tokens[:, current],
            positions=current[None],
            attention=(ranks[keys] <= ranks[current][:, None])[None],
            cache=cache,
            store=torch.where(settling)[0],
        )
        assert_same(logits, whole[:, current])
        kept = torch.cat([kept, current[settling]])
        assert len(cache) == len(kept)


@torch.no_grad()
def test_by_default_everybody_sees_the_kept_positions_and_follows_them():
    network, tokens = NETWORKS[torch.float64], random_tokens()
    cache = KVCache()
    network(tokens[:, :8], cache=cache, store=torch.arange(8))
    mask = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool)
    mask[:, :8, 8:] = False
    whole = network(tokens, attention=mask)
    for _ in range(2):  # a pass that keeps nothing leaves the cache as it was
        assert_same(network(tokens[:, 8:], cache=cache), whole[:, 8:])
        assert len(cache) == 8


@pytest.mark.parametrize("places", [[0, 3, 1], [2], [4, 3, 2, 1, 0], []])
@torch.no_grad()
def test_positions_may_be_forgotten_and_change_places(places):
    network, tokens, cache = NETWORKS[torch.float64], random_tokens(), KVCache()
    network(tokens[:, :5], cache=cache, store=torch.arange(5))
    keys = torch.tensor([place in places for place in range(5)])
    seen = torch.cat([keys, torch.ones(7, dtype=torch.bool)]).expand(1, 7, 12)
    own = torch.arange(5, 12)[None]
    wanted = network(tokens[:, 5:], positions=own, attention=seen, cache=cache)
    cache.retain(torch.tensor(places, dtype=torch.long))
    assert len(cache) == len(places)
    assert_same(network(tokens[:, 5:], positions=own, cache=cache), wanted)


@torch.no_grad()
def test_memory_grows_seldom():
    """One token at a time, memory is taken anew only when it doubles."""
    network, cache, places = NETWORKS[torch.float64], KVCache(), set()
    for length in range(1, 65):
        network(random_tokens()[:, :1], cache=cache, store=torch.arange(1))
        keys, _ = cache.write(0, *[torch.zeros(2, 4, 1, 8, dtype=torch.float64)] * 2)
        places.add(keys.data_ptr())
        assert len(cache) == length
    assert len(places) <= 8


def test_refusals():
    network, tokens, cache = NETWORKS[torch.float64], random_tokens(), KVCache()
    with pytest.raises(ValueError, match="no_grad"):
        network(tokens, cache=cache, store=torch.arange(1))
    with torch.no_grad():
        with pytest.raises(ValueError, match="at most 12 indices, the positions of this pass; got 13"):
            network(tokens, cache=cache, store=torch.arange(13))
        network(tokens, cache=cache, store=torch.arange(2))
        with pytest.raises(ValueError, match=r"holds 2 sequences and the pass 1; use a cache only for"):
            network(tokens[:1], cache=cache)
