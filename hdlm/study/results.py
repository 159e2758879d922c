"""The results of a study: means over seeds, with errors between seeds and within seeds.

    mean      the mean of the numbers of the seeds
    between   the standard deviation of these numbers over the square root of their number: what another training seed
              changes; it includes the errors within seeds
    within    sqrt(sum of squared errors) / number of seeds: what other samples or other noise would change, with the
              same models

A difference of two arms is judged by the larger of both errors. With two seeds `between` is a rough estimate.

Arms whose names differ in one part between commas, such as `shifted, full` and `aligned, full`, are compared seed by
seed. Their measurements use equal random numbers, and arms that continue one arm begin with equal weights, so the error
of a difference is smaller than those of the arms.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from hdlm.evaluation.records.protocol import versions
from hdlm.study.jobs import StudyJob

if TYPE_CHECKING:
    from hdlm.study.plan import Study

__all__ = ["arm_differences", "over_seeds", "study_document"]

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


def arm_differences(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What a part of the names of arms changes in the likelihood, by budget, text and metric.

    Args:
        rows: The rows of a document, with numbers over seeds.

    Returns:
        For each two values of a part, the difference `of - minus`: the mean over all pairs of arms that differ in
        nothing else, the error between seeds, and the `least` and the `most` of the pairs, each a mean over seeds.
    """
    pairs: dict[tuple[str, ...], list[dict[str, float]]] = {}
    for one, other in itertools.permutations([row for row in rows if row["kind"] == "likelihood"], 2):
        values = _different_part(one["arm"], other["arm"])
        if values is None or (one["budget"], one["text"]) != (other["budget"], other["text"]):
            continue
        for metric in one["metrics"]:
            here, there = (row["metrics"].get(metric, {}).get("values", {}) for row in (one, other))
            pair = {seed: here[seed] - there[seed] for seed in here if seed in there}
            pairs.setdefault((one["budget"], one["text"], *values, metric), []).append(pair)
    made = [_difference(key, parts) for key, parts in pairs.items()]
    return [entry for entry in made if entry is not None]


def _different_part(one: str, other: str) -> tuple[str, str] | None:
    """The parts in which two names differ, if it is one, and the first one comes later in the alphabet."""
    names = one.split(", "), other.split(", ")
    if len(names[0]) != len(names[1]) or len(names[0]) < 2:
        return None
    differ = [both for both in zip(*names, strict=True) if both[0] != both[1]]
    return differ[0] if len(differ) == 1 and differ[0][0] > differ[0][1] else None


def _difference(key: tuple[str, ...], pairs: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """The mean over pairs, by the seeds that all of them have; None if there is no such seed."""
    seeds = [seed for seed in pairs[0] if all(seed in pair for pair in pairs)]
    if not seeds:
        return None
    by_seed = {seed: {"value": fmean(pair[seed] for pair in pairs), "error": None} for seed in seeds}
    means = [fmean(pair[seed] for seed in seeds) for pair in pairs]
    return {
        **dict(zip(("budget", "text", "of", "minus", "metric"), key, strict=True)),
        **_with_values(by_seed),
        "least": min(means),
        "most": max(means),
        "pairs": len(pairs),
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
        row["results"].append((str(job.labels.get("seed")), result))
        controls |= result.get("controls", {})
    numbers = [_row(row) for row in rows.values()]
    return {
        "kind": "study",
        "title": study.title,
        "description": study.description,
        "seeds": list(study.seeds),
        "judges": [judge.name for judge in study.judges],
        "rows": numbers,
        "differences": arm_differences(numbers),
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
        return row | {name: fmean(result[name] for _, result in results) for name in names}
    metrics: dict[str, dict[str, Any]] = {}
    for seed, result in results:
        for metric, entry in result["numbers"].items():
            metrics.setdefault(metric, {})[seed] = entry
    return row | {"metrics": {metric: _with_values(entries) for metric, entries in metrics.items()}}


def _with_values(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Numbers over seeds, with the number of each seed."""
    values = {seed: entry["value"] for seed, entry in entries.items() if "failed" not in entry}
    return over_seeds(list(entries.values())) | {"values": values}
