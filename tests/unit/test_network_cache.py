"""The cache is exact: for every split into passes the logits equal those of one whole pass."""

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


def rank_causal_mask(ranks: Tensor) -> Tensor:
    """Each position attends to positions of its own rank and of lower ranks."""
    return (ranks <= ranks[:, None])[None]


def assert_close_for_dtype(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[expected.dtype], rtol=0)


@settings(deadline=None, max_examples=60)
@given(
    blocks=st.lists(st.integers(1, 4), min_size=1, max_size=LENGTH),
    passes=st.lists(st.integers(1, 3), min_size=1, max_size=LENGTH),
    dtype=st.sampled_from(list(TOLERANCE)),
)
@torch.no_grad()
def test_cache_equals_whole_pass_for_any_split_of_blocks(blocks, passes, dtype):
    ranks = torch.repeat_interleave(torch.tensor(blocks))[:LENGTH]
    network, tokens = NETWORKS[dtype], random_tokens()[:, : len(ranks)]
    whole = network(tokens, attention=rank_causal_mask(ranks))
    cache, done, logits = KVCache(), 0, []
    while done < len(ranks):
        last_rank = ranks[done] + passes[len(logits) % len(passes)] - 1
        end = int((ranks <= last_rank).sum())
        mask = rank_causal_mask(ranks)[:, done:end, :end]
        logits.append(
            network(tokens[:, done:end], attention=mask, cache=cache, store=torch.arange(end - done))
        )
        done = end
        assert len(cache) == done
    assert_close_for_dtype(torch.cat(logits, 1), whole)


@settings(deadline=None, max_examples=60)
@given(ranks=st.lists(st.integers(0, 4), min_size=2, max_size=LENGTH))
@torch.no_grad()
def test_cache_equals_whole_pass_in_any_order_with_unstored_positions(ranks):
    """Positions settle in any order. Each pass also contains the next rank, which it does not store."""
    ranks = torch.tensor(ranks)
    network, tokens = NETWORKS[torch.float64], random_tokens()[:, : len(ranks)]
    whole = network(tokens, attention=rank_causal_mask(ranks))
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
        assert_close_for_dtype(logits, whole[:, current])
        kept = torch.cat([kept, current[settling]])
        assert len(cache) == len(kept)


@torch.no_grad()
def test_cached_positions_are_visible_and_precede_by_default():
    network, tokens = NETWORKS[torch.float64], random_tokens()
    cache = KVCache()
    network(tokens[:, :8], cache=cache, store=torch.arange(8))
    mask = torch.ones(1, LENGTH, LENGTH, dtype=torch.bool)
    mask[:, :8, 8:] = False
    whole = network(tokens, attention=mask)
    for _ in range(2):  # a pass that keeps nothing leaves the cache as it was
        assert_close_for_dtype(network(tokens[:, 8:], cache=cache), whole[:, 8:])
        assert len(cache) == 8


@pytest.mark.parametrize("places", [[0, 3, 1], [2], [4, 3, 2, 1, 0], []])
@torch.no_grad()
def test_cache_retain_drops_and_reorders_positions(places):
    network, tokens, cache = NETWORKS[torch.float64], random_tokens(), KVCache()
    network(tokens[:, :5], cache=cache, store=torch.arange(5))
    keys = torch.tensor([place in places for place in range(5)])
    seen = torch.cat([keys, torch.ones(7, dtype=torch.bool)]).expand(1, 7, 12)
    own = torch.arange(5, 12)[None]
    wanted = network(tokens[:, 5:], positions=own, attention=seen, cache=cache)
    cache.retain(torch.tensor(places, dtype=torch.long))
    assert len(cache) == len(places)
    assert_close_for_dtype(network(tokens[:, 5:], positions=own, cache=cache), wanted)


@torch.no_grad()
def test_cache_memory_grows_by_doubling():
    """With one token per pass, new memory is allocated only when the capacity doubles."""
    network, cache, places = NETWORKS[torch.float64], KVCache(), set()
    for length in range(1, 65):
        network(random_tokens()[:, :1], cache=cache, store=torch.arange(1))
        keys, _ = cache.write(0, *[torch.zeros(2, 4, 1, 8, dtype=torch.float64)] * 2)
        places.add(keys.data_ptr())
        assert len(cache) == length
    assert len(places) <= 8


def test_cache_rejects_bad_arguments():
    network, tokens, cache = NETWORKS[torch.float64], random_tokens(), KVCache()
    with pytest.raises(ValueError, match="no_grad"):
        network(tokens, cache=cache, store=torch.arange(1))
    with torch.no_grad():
        with pytest.raises(ValueError, match="at most 12 indices, the positions of this pass; got 13"):
            network(tokens, cache=cache, store=torch.arange(13))
        network(tokens, cache=cache, store=torch.arange(2))
        with pytest.raises(ValueError, match=r"holds 2 sequences and the pass 1; use a cache only for"):
            network(tokens[:1], cache=cache)
