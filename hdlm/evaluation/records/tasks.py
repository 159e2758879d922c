"""Compare scores of tasks of `lm_eval` on the same questions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hdlm.evaluation.records.comparison import (
    EXACT,
    Cell,
    Comparison,
    ResultDocument,
    check_protocol,
    chosen_metrics,
    independent_rows,
    is_number,
    measured_cell,
    model_notes,
    protocol_differences,
    table_of,
)

__all__ = ["compare_tasks", "task_scores"]


def compare_tasks(documents: Mapping[str, ResultDocument], metrics: tuple[str, ...]) -> Comparison:
    """Compare documents of this kind; see `hdlm.evaluation.records.compare.compare`."""
    measured = {name: task_scores(document, name) for name, document in documents.items()}
    chosen = chosen_metrics(measured, metrics)
    tasks = sorted({metric.split(": ")[0] for metric in chosen})
    asked = {name: _asked(document, tasks, name) for name, document in documents.items()}
    exact = [name for name, fields in asked.items() if fields["replicates"] == EXACT]
    noisy = {name: fields for name, fields in asked.items() if name not in exact}
    some = {name: {**fields, "replicates": "any"} for name, fields in asked.items()} if exact else asked
    check_protocol(protocol_differences(some) + (protocol_differences(noisy) if exact and noisy else []))
    cells = independent_rows(measured, chosen)
    same = "questions are the same, so errors of differences, as if they were not, are too large rather than too small."
    notes = [same, *model_notes(documents)]
    if exact and noisy:
        notes.insert(0, f"exact, where the others are bounds: {', '.join(exact)}.")
    return Comparison("harness", tuple(documents), cells, next(iter(some.values())), tuple(notes))


def task_scores(document: ResultDocument, name: str) -> dict[str, Cell]:
    """Numbers by `task: metric`, each with the standard error of `lm_eval`.

    Args:
        document: A document of `hdlm eval harness`.
        name: Name of the result.

    Raises:
        ValueError: If the document has another kind.
    """
    tasks = table_of(table_of(document, "result", name), "results", f"{name}: result")
    scores = {}
    for task in tasks:
        numbers = table_of(tasks, task, f"{name}: results")
        for key, value in numbers.items():
            metric, comma, kept = key.partition(",")
            if not comma or metric.endswith("_stderr"):
                continue
            label = f"{task}: {metric}" + ("" if kept == "none" else f" ({kept})")
            if isinstance(value, Mapping):
                scores[label] = measured_cell(value, f"{name}: {task}")
            elif is_number(value):
                error = numbers.get(f"{metric}_stderr,{kept}")
                known = float(error) if is_number(error) and error is not None else None
                scores[label] = Cell(float(value), known)
    return scores


def _asked(document: ResultDocument, tasks: list[str], name: str) -> dict[str, Any]:
    """The fields in which tests of two models must agree; sampler and hyperschedule may differ."""
    result = table_of(document, "result", name)
    how = table_of(result, "protocol", f"{name}: result")
    fields = {
        "bound": how.get("bound"),
        "replicates": EXACT if how.get("estimator") == EXACT else how.get("replicates"),
        "limit": result.get("limit"),
        "versions.lm_eval": table_of(document, "versions", name).get("lm_eval"),
    }
    for key in ("versions", "n-shot", "n-samples", "higher_is_better", "questions_sha256"):
        value = result.get(key)
        fields |= {f"{task}: {key}": value.get(task) for task in tasks} if isinstance(value, Mapping) else {}
    return fields
