"""The results of a study: means over seeds, with errors between seeds and within seeds.

    mean      the mean of the numbers of the seeds
    between   the standard deviation of these numbers over the square root of their number: what another training seed
              changes; it includes the errors within seeds
    within    sqrt(sum of squared errors) / number of seeds: what other samples or other noise would change, with the
              same models

A difference of two arms is judged by the larger of both errors. With two seeds `between` is a rough estimate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from hdlm.evaluation.records.protocol import versions
from hdlm.study.jobs import StudyJob

if TYPE_CHECKING:
    from hdlm.study.plan import Study

__all__ = ["over_seeds", "study_document"]

_SEED = frozenset({"seed"})


def over_seeds(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One number from those of several seeds.

    Args:
        entries: A number of each seed with its `value` and its `error`, or with the reason why it `failed`.

    Returns:
        `mean`, `between`, `within` and the number of `seeds`; or `failed` if no seed has a number.
    """
    measured = [entry for entry in entries if "failed" not in entry]
    if not measured:
        return {"failed": str(entries[0]["failed"]), "seeds": 0}
    values = [float(entry["value"]) for entry in measured]
    errors = [entry["error"] for entry in measured]
    count = len(values)
    known = [float(error) for error in errors if error is not None]
    return {
        "mean": fmean(values),
        "between": stdev(values) / math.sqrt(count) if count > 1 else None,
        "within": math.hypot(*known) / count if len(known) == count else None,
        "seeds": count,
    }


def study_document(study: Study, jobs: Sequence[StudyJob], output: Path) -> dict[str, Any]:
    """The document of all results so far.

    Args:
        study: The study that the jobs belong to.
        jobs: All of its jobs.
        output: Folder of the study.
    """
    rows: dict[tuple[Any, ...], dict[str, Any]] = {}
    controls: dict[str, Any] = {}
    failed: list[dict[str, Any]] = []
    missing: list[dict[str, Any]] = []
    for job in jobs:
        result = job.result(output)
        if result is None:
            reason = job.failure(output)
            (missing if reason is None else failed).append({"job": job.name, "reason": reason})
            continue
        labels = {name: value for name, value in job.labels.items() if name not in _SEED}
        row = rows.setdefault((job.kind, *labels.items()), {"kind": job.kind, **labels, "results": []})
        row["results"].append(result)
        controls |= result.get("controls", {})
    return {
        "kind": "study",
        "title": study.title,
        "description": study.description,
        "seeds": list(study.seeds),
        "judges": [judge.name for judge in study.judges],
        "rows": [_row(row) for row in rows.values()],
        "controls": controls,
        "failed": failed,
        "missing": [entry["job"] for entry in missing],
        "versions": versions(),
    }


def _row(row: dict[str, Any]) -> dict[str, Any]:
    """A row with numbers over seeds in place of the results of each seed."""
    results = row.pop("results")
    if row["kind"] == "train":
        names = ("parameters", "steps", "tokens", "flops", "seconds")
        return row | {name: fmean(result[name] for result in results) for name in names}
    metrics = dict.fromkeys(metric for result in results for metric in result["numbers"])
    return row | {
        "metrics": {
            metric: over_seeds(
                [result["numbers"][metric] for result in results if metric in result["numbers"]]
            )
            for metric in metrics
        }
    }
