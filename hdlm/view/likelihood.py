"""A measured likelihood for people: one line, a report, and a picture of how the estimate converged.

All are made from the document of `hdlm eval likelihood`, so that they show what was written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from hdlm.checkpoint import description_text
from hdlm.student import student_quantile
from hdlm.view.palette import INK, MUTED, RULE, SERIES
from hdlm.view.report import write_report

__all__ = ["draw_replicates", "interval", "likelihood_table", "write_likelihood"]

FEWEST = 4
"""Number of replicates from which an interval is drawn; that of fewer is too wide for a picture."""
_LARGEST_EXPONENT = 700
_LEVEL = 0.95
"""Probability with which an interval holds the bound."""

DEFINITIONS: Mapping[str, str] = {
    "absorbing": "B bounds -log p from above: the integral over u in (0, 1) of E[sum over masked positions of -log "
    "p(x_0 | x_u)] / u, with masks alone as noise (the protocol of the paper, arXiv:2504.06416).",
    "hybrid": "B bounds -log p from above: the score entropy of the model's own process, integrated over its noise, "
    "plus KL(q(x_1 | x_0) || prior), plus E[-log p(x_0 | x_0+)] where the noise does not come gradually.",
    "exact": "One position at a time, left to right: B is -log p itself.",
    "count": "The number k of masks is uniform on 1..w in each epoch of w positions; weight w / k. Unbiased.",
    "stratified": "Times are spread evenly over [0, 1) by the windows of a replicate. Unbiased.",
    "random": "Times are drawn independently and uniformly. Unbiased.",
}


def _number(value: float, error: float | None, digits: int) -> str:
    """A number with its standard error, if that is known and not 0."""
    if value > 1e6:
        return f"{value:.3e}" + (f" ± {error:.1e}" if error else "")
    return f"{value:,.{digits}f}" + (f" ± {error:,.{digits}f}" if error else "")


def likelihood_table(documents: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table with one data set per line; a failed one has its reason."""
    rows = [("data", "tokens", "bound", "estimator", "perplexity", "bits per token", "bits per byte")]
    for name, document in documents.items():
        if "failed" in document:
            rows.append((name, "failed:", str(document["failed"]), "", "", "", ""))
            continue
        result = document["result"]
        rows.append(
            (
                name,
                f"{result['num_tokens']:,}",
                result["bound"],
                f"{result['estimator']} x {len(result['estimates'])}",
                *(_cell(result, key, digits) for key, digits in _MEASURES),
            )
        )
    columns = range(len(rows[0]))
    widths = [max(len(row[column]) for row in rows if row[1] != "failed:") for column in columns]
    lines = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (w + 2) for w in widths) + "|", *lines[1:]])


_MEASURES = (("perplexity", 3), ("bits_per_token", 4), ("bits_per_byte", 4))


def _cell(result: Mapping[str, Any], key: str, digits: int) -> str:
    value = result[key]
    return "unknown" if value is None else _number(value, result[f"{key}_error"], digits)


def _bits(result: Mapping[str, Any]) -> Float[np.ndarray, " n"]:
    """Every estimate, in bits per token."""
    estimates = np.array(result["estimates"], dtype=np.float64)
    return estimates / (int(result["num_tokens"]) * math.log(2))


def _interval(result: Mapping[str, Any]) -> str:
    """The 95% interval, if there is more than one estimate."""
    if result["estimator"] == "exact":
        return "exact"
    means, reach = interval(_bits(result))
    if math.isnan(reach[-1]):
        return "unknown: there is one replicate"
    return f"{means[-1] - reach[-1]:,.5f} to {means[-1] + reach[-1]:,.5f}"


def _per_word(result: Mapping[str, Any], words: int | None) -> str:
    """Perplexity per word, if a float can hold it."""
    if not words or result["nats"] / words > _LARGEST_EXPONENT:
        return "unknown"
    value = math.exp(result["nats"] / words)
    error = result["standard_error"]
    return _number(value, None if error is None else value * error / words, 2)


def write_likelihood(folder: Path, name: str, document: Mapping[str, Any]) -> None:
    """Write `report.md` and `replicates.png` into the folder of the document."""
    result, data = document["result"], document["data"]
    error = result["standard_error"]
    numbers = {
        "perplexity per token, exp(B / tokens)": _cell(result, "perplexity", 4),
        "bits per token, B / (tokens log 2)": _cell(result, "bits_per_token", 5),
        "bits per byte, B / (bytes log 2)": _cell(result, "bits_per_byte", 5),
        "perplexity per word, exp(B / words)": _per_word(result, data.get("words")),
        "B, nats": _number(result["nats"], error, 2),
        "bits per token, 95% interval": _interval(result),
    }
    made = {
        **{key: document[key] for key in ("model", "weights", "weights_sha256", "dtype", "device", "seed")},
        **{f"data {key}": value for key, value in data.items()},
        **{key: description_text(value) for key, value in result.items() if key in _PROTOCOL},
        **{f"version of {key}": value for key, value in document["versions"].items()},
        "tokenizer_sha256": document["tokenizer_sha256"],
        "wall_seconds": document["wall_seconds"],
    }
    about = [DEFINITIONS[result["estimator"]]]
    if result["estimator"] != "exact":
        about = [DEFINITIONS[result["bound"]], *about]
        about.append(
            "± is the standard error over independent replicates, each a pass over all windows. The 95% "
            "interval is that of Student's t."
        )
    write_report(
        folder / "report.md",
        f"Likelihood of {name}",
        {
            "Result": f"{_pairs(numbers)}\n\n![the estimate by replicate](replicates.png)",
            "What it says": "\n\n".join(about),
            "How it was measured": _pairs(made),
        },
    )
    draw_replicates(document, folder / "replicates.png", name)


_PROTOCOL = (
    "bound",
    "estimator",
    "replicates",
    "hyperschedule",
    "noise_schedule",
    "context",
    "active",
    "stride",
    "num_tokens",
    "num_windows",
    "within_documents",
)


def _pairs(table: Mapping[str, Any]) -> str:
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in table.items())])


def interval(
    estimates: Float[np.ndarray, " n"],
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """The mean of the first `k` estimates and the half-width of its 95% interval, for each `k`.

    The interval is that of Student's t. For a single estimate the half-width is NaN.
    """
    counts = np.arange(1, len(estimates) + 1)
    means = np.cumsum(estimates) / counts
    reach = np.full(len(estimates), np.nan)
    for k in range(2, len(estimates) + 1):
        reach[k - 1] = student_quantile(_LEVEL, k - 1) * estimates[:k].std(ddof=1) / math.sqrt(k)
    return means, reach


def draw_replicates(document: Mapping[str, Any], output: Path, name: str) -> None:
    """Draw every estimate, and the running mean with its 95% interval."""
    from matplotlib.ticker import MaxNLocator

    from hdlm.view.figures import figure, only_ticks

    result = document["result"]
    bits = _bits(result)
    counts = np.arange(1, len(bits) + 1)
    means, reach = interval(bits)
    with figure(6.4, 3.6, output) as drawing:
        axes = drawing.subplots()
        axes.scatter(counts, bits, s=12, color=MUTED, alpha=0.6, linewidths=0, label="one replicate")
        axes.plot(counts, means, color=SERIES[0], linewidth=1.8, label="mean so far")
        known = counts >= FEWEST
        if known.sum() == 1:
            axes.errorbar(counts[known], means[known], reach[known], color=SERIES[0], label="95% interval")
        elif known.any():
            low, high = (means - reach)[known], (means + reach)[known]
            axes.fill_between(
                counts[known], low, high, color=SERIES[0], alpha=0.15, linewidth=0, label="95% interval"
            )
        if len(bits) == 1:
            axes.axhline(bits[0], color=INK, linewidth=0.9)
        axes.set_title(f"{name}, {result['bound']} bound")
        axes.set_xlabel("replicates")
        axes.set_ylabel("bits per token")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.grid(axis="y", color=RULE, linewidth=0.6)
        axes.set_axisbelow(True)
        only_ticks(axes)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
