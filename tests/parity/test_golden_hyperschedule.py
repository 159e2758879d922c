"""The published hyperschedules, step by step, against the published implementation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from hdlm.hyperschedule import AbstractHyperschedule, Block, PublishedSlide, PublishedWave, Slide

PUBLISHED = {"block": Block, "simple": PublishedSlide, "hybrid": PublishedWave}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden" / "metaschedule.json").read_text())


def written(golden: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The entries that text can be written along: not `hybrid` at one level, whose first block begins at level 0."""
    return [entry for entry in golden[kind] if not (kind == "hybrid" and entry["tau"] == 1)]


def ours(kind: str, entry: dict[str, Any]) -> AbstractHyperschedule:
    tau = entry["width"] if entry["tau"] is None else entry["tau"]
    return PUBLISHED[kind](length=entry["seq_len"], width=entry["width"], num_levels=tau)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_hyperschedule_levels_equal_published_at_every_step(golden, kind):
    compared = 0
    for entry in written(golden, kind):
        if "error" in entry:
            with pytest.raises(ValueError, match="ramp"):
                ours(kind, entry)
            continue
        hyperschedule = ours(kind, entry)
        assert hyperschedule.num_levels == entry["worthless"]
        for step in entry["steps"]:
            assert hyperschedule.levels(step["step"]).tolist() == step["levels"], hyperschedule
            compared += 1
    assert compared > 100


def test_the_published_hybrid_of_one_level_is_refused(golden):
    """Its first block stands at level 0 from the beginning, in the published code too."""
    refused = [entry for entry in golden["hybrid"] if entry["tau"] == 1]
    assert refused
    for entry in refused:
        assert entry["steps"][0]["levels"][: entry["width"]] == [0] * min(entry["width"], entry["seq_len"])
        with pytest.raises(ValueError, match="num_levels of at least 2; got 1"):
            ours("hybrid", entry)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_published_max_step_is_num_steps_plus_one(golden, kind):
    """The published loops spend one more step on positions that are at level 0 already.

    `hybrid` counts the steps of a whole last block even where the canvas cuts it short.
    """
    for entry in written(golden, kind):
        if "error" in entry:
            continue
        hyperschedule = ours(kind, entry)
        cut = entry["width"] - 1 - (entry["seq_len"] - 1) % entry["width"] if kind == "hybrid" else 0
        assert entry["max_step"] == hyperschedule.num_steps + 1 + cut


@pytest.mark.parametrize("kind", ["block", "simple"])
def test_published_num_settled_lags_one_step(golden, kind):
    """Published `num_settled` at step n is ours at n - 1: a position at level 0 is visited once more.

    Named exceptions: while its window enters (up to step `width`) `simple` counts nothing as settled, even if
    its ramp begins with several zeros; at the last step `block` counts positions beyond the canvas.
    """
    for entry in written(golden, kind):
        if "error" in entry:
            continue
        hyperschedule = ours(kind, entry)
        for step in entry["steps"][1 : entry["max_step"] + 1]:
            settled = int(hyperschedule.regions(step["step"] - 1).settled.sum())
            if kind == "simple" and step["step"] <= entry["width"]:
                assert step["num_settled"] == 0
                assert settled < hyperschedule.stride
            else:
                assert settled == min(step["num_settled"], entry["seq_len"])


def test_published_hybrid_never_counts_last_block_as_settled(golden):
    """`hybrid` counts a block once the next has opened, so the last one never settles (fault 8)."""
    last_block_open = 0
    for entry in written(golden, "hybrid"):
        final = entry["steps"][entry["max_step"]]
        assert final["levels"] == [0] * entry["seq_len"]
        last_block_open += final["num_settled"] < entry["seq_len"]
        assert ours("hybrid", entry).regions(entry["max_step"]).settled.all()
    assert last_block_open > 0


def test_omitted_tau_equals_width(golden):
    entry = golden["block_tau_none"]
    hyperschedule = ours("block", entry)
    assert [hyperschedule.levels(step["step"]).tolist() for step in entry["steps"]] == [
        step["levels"] for step in entry["steps"]
    ]


def test_hyperschedules_of_realistic_sizes_equal_published(golden):
    for entry in golden["real"]:
        hyperschedule = ours(entry["kind"], entry)
        for spot in entry["spot"]:
            levels = hyperschedule.levels(spot["step"])
            assert levels[:16].tolist() == spot["first16"]
            assert int(levels.sum()) == spot["sum"]


def test_published_slide_with_tau_width_equals_slide():
    for width in (2, 5, 16):
        published, countdown = PublishedSlide(40, width, width), Slide(40, width, width)
        steps = torch.arange(countdown.num_steps + 3)
        assert torch.equal(published.levels(steps), countdown.levels(steps))
