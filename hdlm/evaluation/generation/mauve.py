"""MAUVE: how far samples are from real text, as the area under a curve of divergences (arXiv 2102.01454).

    MAUVE = area under { (exp(-c KL(Q || R)), exp(-c KL(P || R))) : R = a P + (1 - a) Q, 0 < a < 1 },  c = 5

where `P` and `Q` are the histograms of samples and real text over clusters (k-means, samples / 10 clusters) of a
judge's features. 1 is best. The package `mauve-text`, by the authors of the measure, computes it. Numbers for different
judges, numbers of samples or lengths must not be compared.

The error is a jackknife over groups of samples. With each group an equal share of the real text is left out, so the
error includes the noise of the clustering.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hdlm.evaluation.generation.metrics import Estimate, jackknife

__all__ = ["FEWEST", "mauve"]

FEWEST = 20
"""Minimum number of samples for clusters. The authors advise some thousands."""
_GROUPS = 10


def mauve(
    samples: Float[Tensor, "n d"],
    reference: Float[Tensor, "m d"],
    *,
    clusters: int | None = None,
    seed: int = 0,
) -> Estimate:
    """MAUVE of features.

    Args:
        samples: Features of the samples, one row each; see `TransformersJudge.features`.
        reference: Features of real text, at least as many rows as `samples`.
        clusters: Number of clusters; by default a tenth of the number of samples, at least 2.
        seed: Seed of the clustering.

    Raises:
        ValueError: If there are too few samples, or fewer reference texts than samples.
        ModuleNotFoundError: If `mauve-text` is not installed.
    """
    if len(samples) < FEWEST:
        raise ValueError(f"MAUVE needs at least {FEWEST} samples (better 1000 and more); got {len(samples)}.")
    if len(reference) < len(samples):
        raise ValueError(
            f"MAUVE needs at least as many pieces of real text as samples, {len(samples)}; got {len(reference)}. "
            "Give more reference text, or write fewer or shorter samples."
        )
    number = max(2, round(len(samples) / 10)) if clusters is None else clusters
    value = _area(samples, reference, number, seed)
    group = torch.arange(len(samples)) % _GROUPS
    other = torch.arange(len(reference)) % _GROUPS
    without = [_area(samples[group != g], reference[other != g], number, seed) for g in range(_GROUPS)]
    return jackknife(value, without)


def _area(p: Tensor, q: Tensor, clusters: int, seed: int) -> float:
    try:
        import mauve as package
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'MAUVE needs the package mauve-text: pip install "hdlm[eval]"', name=error.name
        ) from error
    with _without_complaints():
        result: Any = package.compute_mauve(
            p_features=p.numpy().astype(np.float32),
            q_features=q.numpy().astype(np.float32),
            num_buckets=clusters,
            seed=seed,
            verbose=False,
        )
    return float(result.mauve)


@contextmanager
def _without_complaints() -> Iterator[None]:
    """Discard standard error: at the authors' number of clusters, faiss always warns that there are too many."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
