"""The result document for samples and their scores: its keys are defined here for all commands that write samples."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.generation.samples import (
    DRAW_DTYPE,
    Sample,
    num_evaluations,
    tokens_per_forward,
    tokens_per_second,
)
from hdlm.evaluation.generation.scoring import DEFINITIONS, Scores
from hdlm.evaluation.records.protocol import describe_protocol

__all__ = ["common_fields", "generation_document", "price_of"]


def common_fields() -> dict[str, Any]:
    """Fields of every document about generated text: the precision of draws, and the definition of each number."""
    return {"draw_dtype": DRAW_DTYPE, "definitions": dict(DEFINITIONS)}


def price_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """The length of the samples and the cost of writing them."""
    return {
        "length": len(samples[0].tokens),
        "num_given": samples[0].given,
        "num_evaluations": num_evaluations(samples),
        "tokens_per_forward": tokens_per_forward(samples),
        "tokens_per_second": tokens_per_second(samples),
    }


def generation_document(
    checkpoint: Checkpoint,
    samples: Sequence[Sample],
    *,
    begin: float,
    settings: Mapping[str, Any],
    seed: int,
    metrics: Scores,
    references: Mapping[str, Any],
    controls: Mapping[str, Any],
    telemetry: Mapping[str, Any] | None,
    model: str,
    weights: Any = "only",
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the document for samples and their scores.

    Args:
        checkpoint: The model, with its tokenizer.
        samples: The samples, at least one.
        begin: Start time of the work, on the clock `time.perf_counter`.
        settings: Settings that the samples were written with, including the prompt.
        seed: Seed of all randomness.
        metrics: Scores of the samples.
        references: Scores of real texts, by name.
        controls: Scores of writers without a model, by name.
        telemetry: Statistics of corrections, if they were measured.
        model: Name of the model in the document.
        weights: Which weights were loaded, if that is known.
        data: The result of `describe_data` for the reference.
    """
    return describe_protocol(
        checkpoint,
        model,
        kind="generation",
        result={
            "settings": dict(settings),
            "num_samples": len(samples),
            **price_of(samples),
            "metrics": metrics,
            "references": dict(references),
            "controls": dict(controls),
            "telemetry": None if telemetry is None else dict(telemetry),
            **common_fields(),
        },
        seed=seed,
        weights=weights,
        data=data,
        wall_seconds=time.perf_counter() - begin,
    )
