"""All measures of samples by name: each number with its error, or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.evaluation.generation.judge import AbstractJudge, generative_perplexity
from hdlm.evaluation.generation.mauve import mauve
from hdlm.evaluation.generation.metrics import DIVERSITY, Estimate
from hdlm.evaluation.generation.self_bleu import self_bleu
from hdlm.generation.passages import text_of

__all__ = [
    "DEFINITIONS",
    "PERPLEXITY",
    "canvases",
    "pieces",
    "score",
    "score_mauve",
    "score_or_failure",
    "score_tokens",
    "text_of",
]

PERPLEXITY = "generative perplexity"

DEFINITIONS: Mapping[str, str] = MappingProxyType(
    {
        "entropy": "-sum_k (c_k / n) log(c_k / n) in nats, c_k the count of token k among the n of a sample; mean over "
        "samples (arXiv 2310.16834, 2409.02908)",
        "distinct-n": "different n-grams of token ids over n-grams, all samples together (arXiv 1510.03055)",
        "repetition-4": "1 - different 4-grams over 4-grams of a sample; mean over samples (arXiv 1908.04319)",
        "self-BLEU": "BLEU-4 of the token ids of each sample with all others as references, in [0, 1]; mean over "
        "samples (arXiv 1802.01886)",
        PERPLEXITY: "exp(nats / tokens) over all samples, tokens and probabilities those of the judge; it means "
        "nothing without the entropy (arXiv 2409.02908), and nothing across judges",
        f"{PERPLEXITY}, mean over samples": "mean of exp(nats / tokens) of each sample",
        "MAUVE": "area under the divergence curve of clustered features of the judge, c = 5, samples / 10 clusters; 1 "
        "is best (arXiv 2102.01454)",
    }
)
"""Definition of every number. Errors are standard errors by the jackknife over samples (over ten groups for MAUVE)."""

Scores = dict[str, dict[str, Any]]


def score_or_failure(
    names: Sequence[str], measure: Callable[[], Mapping[str, Estimate]], **more: Any
) -> Scores:
    """The numbers of a measurement, ready for JSON; if it fails, the reason under each of its names.

    Args:
        names: Names of the numbers.
        measure: Function that measures them.
        **more: Fields to add to every number, such as the judge.
    """
    try:
        return {name: {**asdict(value), **more} for name, value in measure().items()}
    except (ValueError, OverflowError, ModuleNotFoundError) as error:
        return {name: {"failed": " ".join(str(error).split()), **more} for name in names}


def score_tokens(rows: Sequence[Sequence[int]]) -> Scores:
    """Entropy, distinct-n, repetition and self-BLEU of token ids; if samples are too short for one, the reason."""
    scores: Scores = {}
    for name, measure in {**DIVERSITY, "self-BLEU": self_bleu}.items():
        scores |= score_or_failure((name,), partial(_named, name, measure, rows))
    return scores


def _named(
    name: str, measure: Callable[[Sequence[Sequence[int]]], Estimate], rows: Sequence[Sequence[int]]
) -> dict[str, Estimate]:
    return {name: measure(rows)}


def score(
    rows: Sequence[Sequence[int]],
    texts: Sequence[str],
    judges: Mapping[str, AbstractJudge | str] = MappingProxyType({}),
    watch: Callable[[int], None] | None = None,
) -> Scores:
    """All measures that do not need a reference text.

    Args:
        rows: Token ids of each sample.
        texts: Text of each sample.
        judges: Judges by name; a string is the reason why a judge is missing.
        watch: Called with the number of texts that a judge has judged.

    Returns:
        Numbers by name. Names of numbers by the second and later judges contain the judge.
    """
    scores = score_tokens(rows)
    for place, (name, judge) in enumerate(judges.items()):
        label = PERPLEXITY if not place else f"{PERPLEXITY} ({name})"
        if isinstance(judge, str):
            scores[label] = {"failed": judge, "judge": name}
            continue
        judged = score_or_failure(
            (PERPLEXITY,), partial(generative_perplexity, judge, texts, watch), **judge.protocol_fields
        )
        scores |= {key.replace(PERPLEXITY, label): value for key, value in judged.items()}
    return scores


def score_mauve(
    texts: Sequence[str],
    reference: Sequence[str],
    features: Callable[[Sequence[str]], Tensor],
    seed: int,
    judge: AbstractJudge,
) -> Scores:
    """MAUVE of texts.

    Args:
        texts: Texts of the samples.
        reference: Real text of the same length, at least as many pieces.
        features: Computes the judge's features of texts.
        seed: Seed of the clustering.
        judge: The judge that the features belong to.
    """
    return score_or_failure(
        ("MAUVE",),
        lambda: {"MAUVE": mauve(features(texts), features(reference), seed=seed)},
        **judge.protocol_fields,
    )


def pieces(text: Int[Tensor, " n"], num: int, length: int, seed: int = 0) -> Int[Tensor, "num length"]:
    """Random pieces of a text that do not overlap.

    Args:
        text: Tokens of the text.
        num: Number of pieces.
        length: Tokens in each piece.
        seed: Seed of the choice.

    Raises:
        ValueError: If the text is too short.
    """
    there = len(text) // length
    if there < num:
        raise ValueError(
            f"the reference has {len(text)} tokens, {there} pieces of {length}; {num} are needed, one for each sample. "
            "Give more text, or write fewer or shorter samples."
        )
    chosen = torch.randperm(there, generator=torch.Generator().manual_seed(seed))[:num]
    return text[: there * length].view(there, length)[chosen]


def canvases(
    text: Int[Tensor, " n"], num: int, length: int, seed: int, begin: int | None
) -> Int[Tensor, "num length"]:
    """Random pieces of a text on whole canvases, each after the token that begins a text.

    Args:
        text: Tokens of the text.
        num: Number of pieces.
        length: Positions of a canvas.
        seed: Seed of the choice.
        begin: The token that begins a text; None if there is none.

    Raises:
        ValueError: If the text is too short.
    """
    if begin is None:
        return pieces(text, num, length, seed)
    rows = pieces(text, num, length - 1, seed)
    return torch.cat([torch.full((num, 1), begin), rows], 1)
