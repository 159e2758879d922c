"""What correction does: how many words a sampler takes back or replaces, when, and whether for the better.

A word is *corrected* when another word takes its place, and *remasked* when a mask does (arXiv 2504.06416). Whether
that helps shows where the right word is known: real text in which a share of the words is taken away and filled in,

    to the data     corrections whose new word is that of the text
    away from it    corrections whose old word was that of the text
    astray          the others: from one wrong word to another

beside the share of gaps that had the word of the text when they were first filled, and at the end. Other words than
those of the text may do as well, so these shares compare samplers and do not grade them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.generation.metrics import Estimate, mean
from hdlm.generation import Settings, complete, planned
from hdlm.randomness import Randomness
from hdlm.sampling import Change, Execution, Frame, Prompt, Trace

__all__ = ["REVISIONS", "fates", "fill_in", "per_step", "revisions"]

REVISIONS = ("corrected", "remasked")
_HOLES = 0xB1
"""Random stream of the gaps."""

Steps = Mapping[str, Mapping[int, int]]


def revisions(changes: Sequence[Change], sequence: int) -> dict[str, dict[int, int]]:
    """Words of one sequence that were taken back, by kind and step."""
    return {
        kind: dict(Counter(c.step for c in changes if c.sequence == sequence and c.reason == kind))
        for kind in REVISIONS
    }


def per_step(samples: Sequence[Steps]) -> dict[str, Any]:
    """What was revised, over samples.

    Args:
        samples: What `revisions` says of each, at least one.

    Returns:
        For each kind the `Estimate` of words a sample, and under `"<kind> by step"` the mean number at each step; as
        many steps as there are until the last revision.
    """
    found: dict[str, Any] = {}
    for kind in REVISIONS:
        found[kind] = mean([float(sum(one[kind].values())) for one in samples])
        total: Counter[int] = Counter()
        for one in samples:
            total.update(one[kind])
        last = max(total, default=-1)
        found[f"{kind} by step"] = [total[step] / len(samples) for step in range(last + 1)]
    return found


def fates(
    changes: Sequence[Change], text: Int[Tensor, "n l"], gaps: Bool[Tensor, "n l"], end: Int[Tensor, "n l"]
) -> dict[str, Estimate]:
    """What became of the gaps of known text: numbers a piece of text, and shares of the gaps.

    Args:
        changes: All that happened; sequences are numbered as the rows.
        text: The real text.
        gaps: What was taken away of it; at least one word of each row.
        end: What stands there at the end.
    """
    names = ("to the data", "away from it", "astray", "remasked")
    counts = [Counter[str]() for _ in text]
    first: dict[tuple[int, int], int] = {}
    for change in changes:
        place = (change.sequence, change.position)
        right = int(text[place])
        if change.reason == "corrected":
            fate = (
                "to the data" if change.new == right else "away from it" if change.old == right else "astray"
            )
            counts[change.sequence][fate] += 1
        elif change.reason == "remasked":
            counts[change.sequence]["remasked"] += 1
        else:
            first.setdefault(place, change.new)
    found = {name: mean([float(count[name]) for count in counts]) for name in names}
    sizes = gaps.sum(1)
    if len(first) == int(sizes.sum()):  # else some began as words, with noise that is not all masks
        hits: Counter[int] = Counter()
        for (row, at), word in first.items():
            hits[row] += word == int(text[row, at])
        found["right when first filled"] = mean([hits[row] / size for row, size in enumerate(sizes.tolist())])
    found["right at the end"] = mean((((end == text) & gaps).sum(1) / sizes).tolist())
    found["gaps"] = mean(sizes.double().tolist())
    return found


def fill_in(
    checkpoint: Checkpoint,
    text: Int[Tensor, "n l"],
    settings: Settings,
    *,
    share: float = 0.5,
    batch_size: int = 16,
    seed: int = 0,
    device: torch.device | str | None = None,
    watch: Callable[[Frame], None] | None = None,
) -> dict[str, Estimate]:
    """Take a share of the words of real text away, let a sampler fill it in, and see what became of the gaps.

    Args:
        checkpoint: The model.
        text: Pieces of real text. The first word of each is kept.
        settings: How to write; its length is that of the text.
        share: Of the words to take away, in (0, 1].
        batch_size: Pieces at a time; it changes nothing.
        seed: Of all randomness.
        device: That of the model by default, and no other.
        watch: Called after every generation step.

    Raises:
        ValueError: If the share is out of range, a setting is, or the text does not fit.
    """
    if not 0 < share <= 1 or text.shape[1] < 2:
        raise ValueError(
            f"the share of words to take away must lie in (0, 1], of at least two words; got {share} of "
            f"{text.shape[1]}."
        )
    rows, columns = torch.arange(len(text)), torch.arange(text.shape[1])
    draw = Randomness(seed).uniform(rows[:, None], 0, columns[None], _HOLES)
    draw[:, 0] = torch.inf
    gaps = draw < share
    gaps[rows, draw.argmin(1)] = True
    trace = Trace(checkpoint.vocabulary.mask_id)

    def seen(frame: Frame) -> None:
        trace(frame)
        if watch is not None:
            watch(frame)

    done = complete(
        checkpoint,
        Prompt(text, ~gaps),
        planned(checkpoint, settings, text.shape[1], infilling=True),
        settings,
        num=len(text),
        seed=seed,
        execution=Execution(batch_size, device=device),
        watch=seen,
    )
    return fates(trace.changes, text, gaps, done.tokens.cpu())
