"""Corrections: how many words a sampler takes back or replaces, in which steps, and whether the text improves.

A word is *corrected* when another word replaces it, and *remasked* when a mask replaces it (arXiv 2504.06416). Real
text shows whether that helps: a share of its words is removed, and the sampler fills the gaps. Corrections go

    to the data     if the new word is the word of the text
    away from it    if the old word was the word of the text
    astray          otherwise: from one wrong word to another

Also reported is the share of gaps with the right word, when they were first filled and at the end. Words that differ
from the text may be good as well, so these shares compare samplers and do not grade them.

A sampler can also correct a finished text (`correct_tokens`): it begins with the words of the text instead of noise, at
a chosen noise fraction, and takes its usual steps down to 0.
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
from hdlm.generation.correction import correction_regime
from hdlm.randomness import Randomness
from hdlm.sampling import Change, Execution, Frame, Generation, Prompt, Trace

__all__ = ["REVISIONS", "correct_tokens", "fates", "fill_in", "per_step", "revisions"]

REVISIONS = ("corrected", "remasked")
_HOLES, _MASKS = 0xB1, 0xB2
"""Random streams for choosing the gaps, and the words of a draft that become masks."""

Steps = Mapping[str, Mapping[int, int]]


def revisions(changes: Sequence[Change], sequence: int) -> dict[str, dict[int, int]]:
    """Words of one sequence that were taken back, by kind and step."""
    return {
        kind: dict(Counter(c.step for c in changes if c.sequence == sequence and c.reason == kind))
        for kind in REVISIONS
    }


def per_step(samples: Sequence[Steps]) -> dict[str, Any]:
    """Mean numbers of revisions over samples.

    Args:
        samples: The result of `revisions` for each sample, at least one sample.

    Returns:
        For each kind the `Estimate` of words per sample. Under `"<kind> by step"`, the mean number at each step, up to
        the last step with a revision.
    """
    report: dict[str, Any] = {}
    for kind in REVISIONS:
        report[kind] = mean([float(sum(counts[kind].values())) for counts in samples])
        total: Counter[int] = Counter()
        for counts in samples:
            total.update(counts[kind])
        last = max(total, default=-1)
        report[f"{kind} by step"] = [total[step] / len(samples) for step in range(last + 1)]
    return report


def fates(
    changes: Sequence[Change], text: Int[Tensor, "n l"], gaps: Bool[Tensor, "n l"], end: Int[Tensor, "n l"]
) -> dict[str, Estimate]:
    """Outcomes for the gaps of known text: numbers per piece of text, and shares of the gaps.

    Args:
        changes: All changes; sequences are numbered as the rows.
        text: The real text.
        gaps: The positions that were removed, at least one in each row.
        end: The tokens after the last step.
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
    outcomes = {name: mean([float(count[name]) for count in counts]) for name in names}
    sizes = gaps.sum(1)
    if len(first) == int(sizes.sum()):  # otherwise some gaps began as words: the noise is not all masks
        hits: Counter[int] = Counter()
        for (row, at), word in first.items():
            hits[row] += word == int(text[row, at])
        outcomes["right when first filled"] = mean(
            [hits[row] / size for row, size in enumerate(sizes.tolist())]
        )
    outcomes["right at the end"] = mean((((end == text) & gaps).sum(1) / sizes).tolist())
    outcomes["gaps"] = mean(sizes.double().tolist())
    return outcomes


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
    """Remove a share of the words of real text, let a sampler fill the gaps, and count the outcomes.

    Args:
        checkpoint: The checkpoint of the model.
        text: Pieces of real text. The first word of each is kept.
        settings: Settings of the sampler; their length is the length of the text.
        share: Share of the words to remove, in (0, 1].
        batch_size: Pieces per batch; it does not change the result.
        seed: Seed of all randomness.
        device: The device of the model, which is the default; another device is refused.
        watch: Called after every generation step.

    Raises:
        ValueError: If the share or a setting is out of range, or the text does not fit.
    """
    if not 0 < share <= 1 or text.shape[1] < 2:
        raise ValueError(
            f"the share of words to remove must lie in (0, 1], and the text must have at least two words; got "
            f"the share {share} and {text.shape[1]} words."
        )
    rows, columns = torch.arange(len(text)), torch.arange(text.shape[1])
    draw = Randomness(seed).uniform(rows[:, None], 0, columns[None], _HOLES)
    draw[:, 0] = torch.inf
    gaps = draw < share
    gaps[rows, draw.argmin(1)] = True
    trace = Trace(checkpoint.vocabulary.mask_id, alternatives=None)

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


def correct_tokens(
    checkpoint: Checkpoint,
    text: Int[Tensor, "n l"],
    settings: Settings,
    *,
    noise: float,
    masks: bool = False,
    batch_size: int = 16,
    seed: int = 0,
    watch: Callable[[Frame], None] | None = None,
) -> Generation:
    """Let a sampler correct a finished text: it begins at a noise fraction with the words of the text.

    The steps are those of generation along the hyperschedule of the settings; by default all positions take them
    together. The noise falls from `noise` to 0 in proportion to the levels.

    Args:
        checkpoint: The checkpoint of the model.
        text: Pieces of text. The first word of each is kept.
        settings: Settings of the sampler; their length is the length of the text.
        noise: Noise fraction at which every position begins, in (0, 1].
        masks: Whether words become masks first, as often as the process of the model masks at this noise.
        batch_size: Pieces per batch; it does not change the result.
        seed: Seed of all randomness.
        watch: Called after every generation step.

    Raises:
        ValueError: If the noise or a setting is out of range, or the text does not fit.
    """
    regime = correction_regime(checkpoint, settings, text.shape[1], noise)
    fixed = torch.zeros_like(text, dtype=torch.bool)
    fixed[:, 0] = True
    draft = text
    if masks:
        rows, columns = torch.arange(len(text)), torch.arange(text.shape[1])
        draw = Randomness(seed).uniform(rows[:, None], 0, columns[None], _MASKS)
        share = checkpoint.denoiser.process.weights(torch.tensor(noise, dtype=torch.float64)).mask
        draft = torch.where((draw < share) & ~fixed, checkpoint.vocabulary.mask_id, text)
    return complete(
        checkpoint,
        Prompt(draft, fixed, is_draft=True),
        regime,
        settings,
        num=len(text),
        seed=seed,
        execution=Execution(batch_size),
        watch=watch,
    )
