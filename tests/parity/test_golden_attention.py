"""Attention visibility compared with the published masks (in which True means: may NOT attend).

Published step n is ours n - 1 (a published position at level 0 is visited once more).  Compared: `block` and
`simple`, every context, every choice for active positions, one canvas and two streams.  Not compared, because
they are faults or another contract:

- `simple` with `block_causal`: settled positions are grouped by fixed blocks of `width`, and the last group
  grows as it settles, so what a settled position sees changes and its cached keys go stale (shown below).
- `hybrid`: its settled count lags one block (fault 8).
- `*_autoregressive` and `blockAR`: made for a canvas that is shifted by one; here that is a parameterization.
- `post_active_context`: lets worthless positions look; here they are absent.
- steps beyond `max_step`, which raise there.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hdlm.attention import generation_attention, two_stream
from hdlm.hyperschedule import Block, PublishedSlide, Slide

FAMILIES = {"block": Block, "simple": PublishedSlide}
LAST_VISIT = 10
"""Published positions at level 0 sit at 10 eps in their last visit; ours are settled by then, at eps."""


@pytest.fixture(scope="module")
def canvas(shared: Path) -> tuple[list[dict[str, Any]], dict[str, np.ndarray]]:
    archive = np.load(shared / "golden" / "metaschedule_attn.npz")
    cases = [
        case
        for case in json.loads(str(archive["index_json"]))
        if case["fn"] == "compute_t_and_attn"
        and case["kind"] in FAMILIES
        and not case["post_active_context"]
        and "error" not in case
    ]
    return cases, dict(archive)


def hyperschedule_of(case: dict[str, Any]) -> Block | PublishedSlide:
    return FAMILIES[case["kind"]](length=case["seq_len"], width=case["width"], num_levels=case["tau"])


def visited(case: dict[str, Any]) -> bool:
    return case["step"] <= hyperschedule_of(case).num_steps


@pytest.mark.parametrize("kind", FAMILIES)
def test_generation_attention_equals_published(canvas, kind):
    cases, arrays = canvas
    compared = set()
    for case in filter(visited, cases):
        choice = case["context_type"], case["block_type"]
        if case["kind"] != kind or (kind == "simple" and choice[0] == "block_causal"):
            continue
        seen = generation_attention(hyperschedule_of(case), case["step"] - 1, *choice).dense()
        assert np.array_equal(seen.numpy(), ~arrays[f"c{case['id']}__attn"]), case
        compared.add((choice, case["step"]))
    assert len(compared) > 20


@pytest.mark.parametrize("kind", FAMILIES)
def test_regions_and_times_equal_published(canvas, kind):
    cases, arrays = canvas
    compared = 0
    for case in filter(visited, cases):
        if case["kind"] != kind:
            continue
        hyperschedule, eps = hyperschedule_of(case), case["eps"]
        regions = hyperschedule.regions(case["step"] - 1)
        assert np.array_equal(regions.settled.numpy(), arrays[f"c{case['id']}__settled"])
        assert np.array_equal(regions.active.numpy(), arrays[f"c{case['id']}__active"])
        times = hyperschedule.times(case["step"], eps)
        times[regions.active & (times == eps)] = LAST_VISIT * eps
        np.testing.assert_allclose(times.numpy(), arrays[f"c{case['id']}__t"], atol=1e-6)
        compared += 1
    assert compared > 40


def test_published_simple_block_causal_attention_of_settled_grows(canvas):
    cases, arrays = canvas
    grown = 0
    for case in cases:
        if (case["kind"], case["context_type"]) != ("simple", "block_causal"):
            continue
        settled = arrays[f"c{case['id']}__settled"]
        for later in cases:
            if later["step"] > case["step"] and {**later, "id": 0, "step": 0} == {**case, "id": 0, "step": 0}:
                before, after = (arrays[f"c{one['id']}__attn"][settled] for one in (case, later))
                grown += (before & ~after).any()
    assert grown > 0


@pytest.mark.parametrize("context", ["block_causal", "causal", "full"])
@pytest.mark.parametrize("active", ["full", "causal"])
def test_two_stream_attention_of_blocks_equals_published(shared, context, active):
    """Where blocks tile the canvas; the published mask leaves what is over (18 positions, 4 blocks) blind."""
    archive = np.load(shared / "golden" / "efficient_masks.npz")
    for length, blocks in ((16, 4), (32, 4), (24, 3), (20, 4), (16, 1), (16, 16)):
        hyperschedule = Block(length, width=length // blocks, num_levels=3)
        offsets = torch.arange(blocks) % 3
        seen = two_stream(hyperschedule, hyperschedule.packed_steps(offsets), context, active).dense()
        golden = archive[f"block_L{length}_N{blocks}__{context}__{active}"]
        assert np.array_equal(seen.numpy(), ~golden)


@pytest.mark.parametrize("context", ["block_causal", "causal", "full"])
@pytest.mark.parametrize("active", ["full", "causal"])
def test_two_stream_attention_of_slide_equals_published(shared, context, active):
    """Published `simple` at tau = width, where it is the countdown; the offset is read off the drawn levels.

    Under `block_causal` only noisy queries are compared: published clean positions are grouped by the random
    tiles of the draw, which is not what generation shows them.  Levels are compared but for the last tile: if
    the canvas cuts it short, the published code draws levels that generation never has there.
    """
    archive = np.load(shared / "golden" / "efficient_masks.npz")
    compared = 0
    for draw in json.loads((shared / "golden" / "efficient.json").read_text()):
        key = f"simple{draw['id']}__{context}__{active}"
        if draw["kind"] != "simple" or draw["width"] != draw["tau"] or key not in archive:
            continue
        hyperschedule = Slide(draw["seq_len"], draw["width"], draw["tau"])
        level = draw["states"][0] + 1
        steps = hyperschedule.packed_steps(torch.tensor([draw["tau"] - level]))
        last_tile = draw["steps"][-1][0]
        assert (hyperschedule.settles - steps - 1).tolist()[:last_tile] == draw["states"][:last_tile]
        rows = slice(draw["seq_len"] if context == "block_causal" else 0, None)
        assert np.array_equal(
            two_stream(hyperschedule, steps, context, active).dense()[rows], ~archive[key][rows]
        )
        compared += 1
    assert compared > 5
