"""Laws of attention visibility for every hyperschedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import flex_attention as flex

from hdlm.attention import Active, Context, Visibility, _check_choice, generation_attention, two_stream
from hdlm.hyperschedule import (
    Block,
    PublishedSlide,
    PublishedWave,
    Slide,
    Table,
    Wave,
    autoregressive,
    flat,
)
from hdlm.objective import document_ids

CONTEXTS, ACTIVES = ("full", "causal", "block_causal"), ("full", "causal")
RIGHT_TO_LEFT = Table(torch.tensor([[2, 2, 2, 2], [2, 2, 1, 1], [2, 1, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]))
COUNTDOWNS = (
    autoregressive(7),
    flat(6, num_levels=4),
    Block(9, width=4, num_levels=3),
    Slide(10, width=4, num_levels=6),
    Wave(9, width=4, num_levels=3),
)
EVERY = (
    *COUNTDOWNS,
    PublishedSlide(10, width=4, num_levels=7),
    PublishedWave(9, 4, num_levels=3),
    RIGHT_TO_LEFT,
)


@pytest.mark.parametrize("hyperschedule", EVERY, ids=repr)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("active", ACTIVES)
def test_generation_attention_follows_regions(hyperschedule, context, active):
    for n in range(hyperschedule.num_steps + 1):
        regions = hyperschedule.regions(n)
        seen = generation_attention(hyperschedule, n, context, active).dense()
        assert not seen[regions.worthless].any()
        assert not seen[:, regions.worthless].any()
        assert not seen[regions.settled][:, regions.active].any()
        assert seen[regions.active][:, regions.settled].all()
        assert seen.diagonal()[~regions.worthless].all()
        among = seen[regions.active][:, regions.active]
        assert torch.equal(
            among, torch.ones_like(among).tril() if active == "causal" else torch.ones_like(among)
        )


@pytest.mark.parametrize("hyperschedule", EVERY, ids=repr)
@pytest.mark.parametrize("context", ["causal", "block_causal"])
@pytest.mark.parametrize("active", ACTIVES)
def test_settled_position_has_fixed_attention_in_causal_contexts(hyperschedule, context, active):
    """A cache of keys and values is exact because of this law."""
    for n in range(hyperschedule.num_steps + 1):
        settled = hyperschedule.regions(n).settled
        now = generation_attention(hyperschedule, n, context, active).dense()[settled]
        for later in range(n + 1, hyperschedule.num_steps + 2):
            assert torch.equal(
                generation_attention(hyperschedule, later, context, active).dense()[settled], now
            )


def test_settled_position_attention_changes_in_full_context():
    hyperschedule = Block(4, width=2, num_levels=1)
    early, late = (generation_attention(hyperschedule, n, "full").dense()[0] for n in (1, 2))
    assert early.tolist() == [True, True, False, False]
    assert late.all()


@pytest.mark.parametrize("hyperschedule", COUNTDOWNS, ids=repr)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("active", ACTIVES)
def test_two_stream_noisy_attention_equals_generation(hyperschedule, context, active):
    generator = torch.Generator().manual_seed(1)
    offsets = torch.randint(hyperschedule.num_levels, (hyperschedule.num_epochs,), generator=generator)
    steps = hyperschedule.packed_steps(offsets)
    length = hyperschedule.length
    packed = two_stream(hyperschedule, steps, context, active).dense()
    to_clean, to_noisy = packed[length:, :length], packed[length:, length:]
    for position, n in enumerate(steps.tolist()):
        regions, canvas = (
            hyperschedule.regions(n),
            generation_attention(hyperschedule, n, context, active).dense(),
        )
        assert torch.equal(to_clean[position], canvas[position] & regions.settled)
        assert torch.equal(to_noisy[position], canvas[position] & regions.active)


@pytest.mark.parametrize("hyperschedule", COUNTDOWNS, ids=repr)
@pytest.mark.parametrize("context", CONTEXTS)
def test_two_stream_clean_attention_equals_final_generation(hyperschedule, context):
    length = hyperschedule.length
    packed = two_stream(hyperschedule, hyperschedule.starts, context).dense()
    final = generation_attention(hyperschedule, hyperschedule.num_steps, context).dense()
    assert torch.equal(packed[:length, :length], final)
    assert not packed[:length, length:].any()


def test_generation_attention_is_causal_full_or_block_causal():
    """Autoregressive is causal, flat is full, block is block-causal."""
    ones = torch.ones(6, 6, dtype=torch.bool)
    blocks = torch.arange(6) // 2
    assert torch.equal(generation_attention(autoregressive(6), 6).dense(), ones.tril())
    assert torch.equal(generation_attention(Block(6, 2, 3), 9).dense(), blocks[None, :] <= blocks[:, None])
    for n in (0, 3, 5):
        assert generation_attention(flat(6, num_levels=5), n).is_everything
    assert not generation_attention(autoregressive(6), 3).is_everything


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 6), st.sampled_from([4, 8]), st.data())
@settings(deadline=None, max_examples=20)
def test_block_mask_equals_dense_mask(length, blocks, num_levels, block_size, data):
    """The blocks and the predicate of the block mask together equal the dense mask."""
    hyperschedule = Slide(length, min(length, blocks), num_levels)
    n = torch.tensor(data.draw(st.lists(st.integers(0, hyperschedule.num_steps), min_size=2, max_size=2)))
    context, active = data.draw(st.sampled_from(CONTEXTS)), data.draw(st.sampled_from(ACTIVES))
    offset = torch.tensor([[data.draw(st.integers(0, num_levels - 1))] * hyperschedule.num_epochs])
    packed = two_stream(hyperschedule, hyperschedule.packed_steps(offset), context, active)
    for visibility in (generation_attention(hyperschedule, n, context, active), packed):
        assert_block_mask_is_dense(visibility, block_size)


def assert_block_mask_is_dense(visibility: Visibility, block_size: int) -> None:
    dense = visibility.dense()
    mask = visibility.block_mask(block_size)
    rows, queries, keys = dense.shape
    index = [
        torch.arange(size).reshape(shape)
        for size, shape in ((rows, (-1, 1, 1)), (queries, (1, -1, 1)), (keys, (1, 1, -1)))
    ]
    assert torch.equal(visibility.mask_mod()(index[0], torch.tensor(0), index[1], index[2]), dense)
    reference = torch_block_mask(visibility, rows, block_size)
    visits, needed = mask.to_dense().bool(), reference.to_dense().bool()
    assert (visits | ~needed).all()
    granted = torch.zeros_like(dense)
    for row in range(rows):
        for block in range(mask.full_kv_num_blocks.shape[-1]):
            for place in range(int(mask.full_kv_num_blocks[row, 0, block])):
                other = int(mask.full_kv_indices[row, 0, block, place])
                here, there = (slice(i * block_size, (i + 1) * block_size) for i in (block, other))
                assert here.stop <= queries
                assert there.stop <= keys
                granted[row, here, there] = True
    assert not (granted & ~dense).any()


def torch_block_mask(visibility: Visibility, rows: int | None, block_size: int) -> flex.BlockMask:
    """The block mask that torch computes by evaluating the predicate for every pair."""
    predicate = visibility.mask_mod()
    return flex.create_block_mask(
        lambda batch, head, query, key: predicate(batch, head, query, key),
        rows,
        None,
        visibility.query_rank.shape[-1],
        visibility.key_rank.shape[-1],
        device="cpu",
        BLOCK_SIZE=block_size,
    )


def test_block_mask_of_aligned_blocks_is_as_sparse_as_torch():
    """With aligned blocks no block is visited or marked partial unnecessarily."""
    hyperschedule = Block(64, width=16, num_levels=4)
    steps = hyperschedule.packed_steps(torch.tensor([0, 3, 1, 2]))
    visibility = two_stream(hyperschedule, steps)
    ours = visibility.block_mask(block_size=16)
    torchs = torch_block_mask(visibility, None, block_size=16)
    assert torch.equal(ours.to_dense(), torchs.to_dense())
    assert torch.equal(ours.full_kv_num_blocks, torchs.full_kv_num_blocks)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_flex_attention_agrees_with_dense_attention(monkeypatch):
    """Tests the forward pass, since FlexAttention has no backward pass on the CPU. Checked types do not compile."""
    monkeypatch.setattr(flex, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    hyperschedule = Wave(96, width=24, num_levels=4)
    generator = torch.Generator().manual_seed(0)
    n = hyperschedule.packed_steps(torch.randint(4, (2, hyperschedule.num_epochs), generator=generator))
    visibility = two_stream(hyperschedule, n)
    query, key, value = torch.randn(3, 2, 2, 192, 8, generator=generator)
    sparse = flex.flex_attention(query, key, value, block_mask=visibility.block_mask(block_size=32))
    dense = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=visibility.dense()[:, None]
    )
    torch.testing.assert_close(sparse, dense, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("rows", [None, 3])
@pytest.mark.parametrize("index_rows", [None, 3])
def test_select_is_indexing_of_the_dense_mask(rows, index_rows):
    hyperschedule = Slide(8, width=4, num_levels=4)
    n = 5 if rows is None else torch.tensor([2, 5, 9])
    visibility = generation_attention(hyperschedule, n)
    queries, keys = torch.tensor([6, 1, 4]), torch.tensor([0, 7, 3, 2])
    if index_rows is not None:
        queries, keys = ((x + torch.arange(index_rows)[:, None]) % 8 for x in (queries, keys))
    picked = visibility.select(queries, keys).dense()
    dense = visibility.dense()
    for row in range(rows or index_rows or 1):
        mask = dense if rows is None else dense[row]
        q, k = (queries, keys) if index_rows is None else (queries[row], keys[row])
        assert torch.equal(picked if rows is index_rows is None else picked[row], mask[q][:, k])


def test_select_none_keeps_all():
    visibility = generation_attention(Block(6, 2, 2), 3)
    assert torch.equal(visibility.select(None, None).dense(), visibility.dense())
    assert visibility.select(torch.tensor([3]), None).dense().shape == (1, 6)


def test_attention_options_reject_unknown_choices():
    """Calls the check directly, because type checks in the tests refuse a wrong name earlier."""
    with pytest.raises(ValueError, match="`context` must be one of full, causal, block_causal; got 'blocks'"):
        _check_choice("context", "blocks", Context)
    with pytest.raises(ValueError, match="`active` must be one of full, causal; got 'none'"):
        _check_choice("active", "none", Active)


def test_visibility_within_documents_hides_other_documents():
    """Tests every form of the mask, with blocks inside one document and across documents."""
    hyperschedule = Block(32, width=8, num_levels=2)
    steps = hyperschedule.packed_steps(torch.tensor([0, 1, 1, 0]))
    tokens = torch.randint(0, 9, (2, 32), generator=torch.Generator().manual_seed(0))
    own = document_ids(tokens, 0).repeat(1, 2)
    assert own[0, : 1 + tokens[0].tolist().index(0)].eq(0).all()
    seen = two_stream(hyperschedule, steps)
    apart = seen.within(own)
    assert torch.equal(apart.dense(), seen.dense() & (own[:, :, None] == own[:, None, :]))
    assert_block_mask_is_dense(apart, 8)
    picked = torch.tensor([40, 3, 17])
    assert torch.equal(apart.select(picked, None).dense(), apart.dense()[:, picked])
    assert not generation_attention(flat(4, 2), 1).within(torch.tensor([[0, 0, 1, 1]])).is_everything
