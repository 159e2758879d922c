"""The `result` of a generation document: one place for its keys, whoever wrote and scored the samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hdlm.evaluation.generation.samples import DRAW_DTYPE
from hdlm.evaluation.generation.scoring import DEFINITIONS, Scores

__all__ = ["common_fields", "generation_result"]


def common_fields() -> dict[str, Any]:
    """What every document about generated text says: the precision of draws, and what each number means."""
    return {"draw_dtype": DRAW_DTYPE, "definitions": dict(DEFINITIONS)}


def generation_result(
    *,
    settings: Mapping[str, Any],
    num_samples: int,
    length: int,
    num_given: int,
    num_evaluations: float,
    tokens_per_second: float,
    metrics: Scores,
    references: Mapping[str, Any],
    controls: Mapping[str, Any],
    telemetry: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """The `result` of the document.

    Args:
        settings: How the samples were written, with their prompt.
        num_samples: How many samples there are.
        length: Tokens in each.
        num_given: How many of the first tokens of each were given.
        num_evaluations: Calls of the network for a batch.
        tokens_per_second: Tokens that were written in a second.
        metrics: Scores of the samples.
        references: Scores of real texts, by name.
        controls: Scores of writers that know nothing, by name.
        telemetry: What correction did, if that was measured.
    """
    return {
        "settings": dict(settings),
        "num_samples": num_samples,
        "length": length,
        "num_given": num_given,
        "num_evaluations": num_evaluations,
        "tokens_per_second": tokens_per_second,
        "metrics": metrics,
        "references": dict(references),
        "controls": dict(controls),
        "telemetry": None if telemetry is None else dict(telemetry),
        **common_fields(),
    }
