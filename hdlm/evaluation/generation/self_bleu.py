"""Self-BLEU: how much the samples of a writer resemble one another (arXiv 1802.01886). Low is good.

    self-BLEU = mean over samples i of BLEU-4(sample i; all other samples as its references)        in [0, 1]
    BLEU-4    = min(1, exp(1 - r / h)) * (p_1 p_2 p_3 p_4)^(1/4)

with `h` the length of the sample, `r` the length of the reference that is closest to it (the shorter of two), and `p_n`
the share of its n-grams that are in a reference, none counted more often than the reference that has it most often.
Where no n-gram matches, `p_n` is `1 / (2 n-grams)`, then `1 / (4 n-grams)`, ... (smoothing 3 of NIST, as in sacrebleu).

It uses token ids. sacrebleu compares every sample with every other sample. Here each n-gram stores the two samples that
have it most often, which is enough, so the time grows linearly with the text.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from hdlm.evaluation.generation.metrics import Estimate, jackknife

__all__ = ["self_bleu"]

_ORDERS = (1, 2, 3, 4)


def self_bleu(samples: Sequence[Sequence[int]]) -> Estimate:
    """How much samples resemble one another, with its jackknife error over samples.

    Args:
        samples: Token ids of each sample, at least two samples.

    Raises:
        ValueError: If there are fewer than two samples, or a sample is empty.
    """
    if len(samples) < 2 or not all(samples):
        raise ValueError(
            f"self-BLEU compares samples with one another: give at least two, none empty; got {len(samples)}."
        )
    count = len(samples)
    hits, lost = _matches(samples)
    sizes = np.array([len(sample) for sample in samples])
    totals = np.maximum(sizes[:, None] - np.array(_ORDERS) + 1, 0)
    closest, next_closest, closest_is = _closest(sizes)
    value = float(_bleu(hits, totals, sizes, closest).mean())
    if count < 3:
        return Estimate(value, None)
    without = []
    for left_out in range(count):
        matched = hits.copy()
        for sample, orders in lost[left_out].items():
            matched[sample] -= orders
        length = np.where(closest_is == left_out, next_closest, closest)
        scores = np.delete(_bleu(matched, totals, sizes, length), left_out)
        without.append(float(scores.mean()))
    return jackknife(value, without)


def _matches(
    samples: Sequence[Sequence[int]],
) -> tuple[Float[np.ndarray, "n 4"], list[dict[int, Float[np.ndarray, " 4"]]]]:
    """Matched n-grams of each sample; and for each sample, how many fewer others match when it is left out."""
    hits = np.zeros((len(samples), len(_ORDERS)))
    lost: list[dict[int, Float[np.ndarray, " 4"]]] = [
        defaultdict(lambda: np.zeros(len(_ORDERS))) for _ in samples
    ]
    for order, n in enumerate(_ORDERS):
        holders: dict[tuple[int, ...], list[tuple[int, int]]] = defaultdict(list)
        for index, tokens in enumerate(samples):
            grams = Counter(zip(*(tokens[start:] for start in range(n)), strict=False))
            for gram, times in grams.items():
                holders[gram].append((times, index))
        for held in holders.values():
            most = sorted(held, reverse=True)[:3]
            for times, index in held:
                others = [owner for owner in most if owner[1] != index]
                if not others:
                    continue
                matched = min(times, others[0][0])
                hits[index, order] += matched
                if len(others) < 2 or others[1][0] < matched:
                    kept = others[1][0] if len(others) > 1 else 0
                    lost[others[0][1]][index][order] += matched - kept
    return hits, lost


def _closest(
    sizes: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The length closest to that of each sample among the others, the next closest, and the index of the closest."""
    closest = []
    for index, size in enumerate(sizes.tolist()):
        order = np.lexsort((sizes, np.abs(sizes - size)))
        others = order[order != index]
        closest.append((sizes[others[0]], sizes[others[min(1, len(others) - 1)]], others[0]))
    first, second, whose = np.array(closest).T
    return first, second, whose


def _bleu(
    hits: Float[np.ndarray, "n 4"], totals: np.ndarray, sizes: np.ndarray, references: np.ndarray
) -> Float[np.ndarray, " n"]:
    """BLEU of each sample, over the n-gram orders that the sample is long enough for."""
    missed = (hits <= 0) & (totals > 0)
    smooth = np.power(2.0, np.cumsum(missed, 1))
    share = np.where(missed, 1 / smooth, hits) / np.maximum(totals, 1)
    logs = np.log(np.where(totals > 0, share, 1.0)).sum(1) / (totals > 0).sum(1)
    brevity = np.minimum(0.0, 1 - references / sizes)
    return np.where(hits[:, 0] > 0, np.exp(logs + brevity), 0.0)
