"""Calibration: whether the network's probability that a visible word is wrong is the share of words that are wrong.

Held-out text is noised by the process of the model, along the hyperschedule of the model. At every visible position
with noise the network gives `1 - p(x_0 = x_t | x_t)`, the probability that noise has replaced the word. The truth is
known: the word differs from the text. A corrector that redraws words needs these probabilities to be right.

The text is measured twice, with equal random numbers: with the noise of the process alone (`own noise`), and with a
planted share of further uniform replacements (`planted errors`). A network cannot be calibrated to errors that its
process does not make, so the second measurement is for the area under the ROC curve: how well the probability
separates replaced words from others.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hdlm.checkpoint import Checkpoint
from hdlm.denoiser import AbstractDenoiser, resolve_device
from hdlm.evaluation.generation.metrics import Estimate
from hdlm.evaluation.generation.scoring import pieces
from hdlm.evaluation.likelihood.bounds import HybridBound
from hdlm.evaluation.likelihood.defaults import plan_of
from hdlm.evaluation.records import protocol
from hdlm.evaluation.text import Text
from hdlm.evaluation.text_document import document_of_text
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.objective import Canvas, stratified_times
from hdlm.progress import share_bar
from hdlm.randomness import Randomness
from hdlm.regime import Regime

__all__ = ["CONDITIONS", "CalibrationOptions", "Doubts", "doubts", "measured_calibration", "reliability"]

CONDITIONS = ("own noise", "planted errors")
"""The two measurements: by the noise of the process, and with planted replacements."""
DEFINITIONS: Mapping[str, str] = {
    "calibration error": "sum over bins of (share of words in the bin) * |mean probability - share of wrong words| "
    "(arXiv 1706.04599); bins of the probability end at 0.01, 0.03, 0.1, 0.2, ..., 1",
    "calibration error by chance": "mean calibration error if each word were wrong with exactly the network's "
    "probability: a finite number of words has an error above 0 even if the network is perfectly calibrated",
    "bias": "mean probability that a word is wrong, minus the share of wrong words; above 0, the network doubts too "
    "much",
    "area under the curve": "probability that a random wrong word has a higher probability of being wrong than a "
    "random right word; ties count half",
}
"""Definitions of the numbers. Errors are standard errors by the bootstrap over pieces of text."""
EDGES = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
FILES = ("results.json", "report.md", "calibration.png")
_ROWS = 1024
"""Positions whose distribution over the vocabulary is in memory at a time."""
_NOISE, _PLANT, _WORD = 0xCA1, 0xCA2, 0xCA3
"""Random streams: the noise of the process, the places of planted errors, and their words."""


@final
@dataclass(frozen=True)
class CalibrationOptions:
    """How calibration is measured.

    Attributes:
        part: Part of a named data set.
        data_dir: Folder of data sets; by default that of the environment, $HDLM_DATA_DIR.
        num: Number of pieces of text.
        length: Number of tokens in a piece; the model's context by default.
        replicates: Number of times that each piece is noised.
        levels: Upper ends of the ranges of noise that are reported one by one; the last one is 1.
        planted: Share of the visible words that is replaced by uniform words in the second measurement.
        hyperschedule: The family to noise along: autoregressive, flat, block, slide or wave; by default the one that
            the checkpoint lists first.
        width: Number of positions that are noisy together.
        steps: Number of steps that each position takes from noise to word.
        resamples: Number of bootstrap samples for the errors.
        batch_size: Number of pieces in a pass; it does not change the result.
        seed: Seed of all random numbers.

    Raises:
        ValueError: If an option is out of range.
    """

    part: str = "test"
    data_dir: Path | None = None
    num: int = 100
    length: int | None = None
    replicates: int = 4
    levels: tuple[float, ...] = (0.1, 0.3, 0.6, 1.0)
    planted: float = 0.05
    hyperschedule: str | None = None
    width: int | None = None
    steps: int | None = None
    resamples: int = 200
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num", 2), ("replicates", 1), ("resamples", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(self, name)}.")
        ends = (0.0, *self.levels)
        if ends[-1] != 1 or any(a >= b for a, b in itertools.pairwise(ends)):
            raise ValueError(f"`levels` must rise from above 0 to exactly 1; got {self.levels}.")
        if not 0 < self.planted < 1:
            raise ValueError(f"`planted` is a share in (0, 1); got {self.planted}.")


@final
@dataclass(frozen=True, eq=False)
class Doubts:
    """The network's probability that each visible word is wrong, and the truth.

    Attributes:
        piece: Index of the piece of text of each word.
        noise: Noise fraction at each word.
        wrong: Probability that the word is wrong, by the network.
        truth: Whether the word is wrong.
    """

    piece: Int[Tensor, " n"]
    noise: Float[Tensor, " n"]
    wrong: Float[Tensor, " n"]
    truth: Bool[Tensor, " n"]

    def between(self, low: float, high: float) -> Doubts:
        """The words whose noise lies in (low, high]."""
        chosen = (self.noise > low) & (self.noise <= high)
        return Doubts(*(values[chosen] for values in (self.piece, self.noise, self.wrong, self.truth)))


@torch.no_grad()
def doubts(
    denoiser: AbstractDenoiser,
    text: Int[Tensor, "n l"],
    regime: Regime,
    *,
    planted: float = 0.05,
    replicates: int = 1,
    batch_size: int = 16,
    seed: int = 0,
    watch: Callable[[float], None] = lambda share: None,
) -> dict[str, Doubts]:
    """Noise a text, and read at every visible word how likely the network finds it wrong.

    Args:
        denoiser: Denoiser of the model.
        text: Pieces of text, as long as the regime.
        regime: When positions are noisy, and the attention.
        planted: Share of the visible words that is replaced by uniform words in the second measurement.
        replicates: Number of times that each piece is noised.
        batch_size: Number of pieces in a pass.
        seed: Seed of all random numbers.
        watch: Called with the share of the work that is done.

    Returns:
        The words of each of `CONDITIONS`.
    """
    device, randomness = resolve_device(denoiser, None), Randomness(seed)
    bound = HybridBound(denoiser, regime, "stratified")
    parts: dict[str, list[tuple[Tensor, ...]]] = {name: [] for name in CONDITIONS}
    columns = torch.arange(text.shape[1])
    for replicate in range(replicates):
        times = stratified_times(randomness, replicate, len(text), bound.corruption.num_times)
        for start in range(0, len(text), batch_size):
            rows = torch.arange(start, min(start + batch_size, len(text)))

            def draw(stream: int, rows: Tensor = rows, replicate: int = replicate) -> Tensor:
                return randomness.uniform(rows[:, None], replicate, columns[None], stream).to(device)

            canvas = bound.corruption(text[rows].to(device), times[rows].to(device), draw(_NOISE))
            word = (draw(_WORD) * denoiser.process.num_words).long()
            replaced = (draw(_PLANT) < planted) & _questioned(canvas, denoiser)
            canvases = (canvas, replace(canvas, x_t=torch.where(replaced, word, canvas.x_t)))
            for name, noised in zip(CONDITIONS, canvases, strict=True):
                parts[name].append(_read(denoiser, noised, rows))
            watch((replicate + rows[-1].item() / len(text)) / replicates)
    return {name: Doubts(*map(torch.cat, zip(*read, strict=True))) for name, read in parts.items()}


def _questioned(canvas: Canvas, denoiser: AbstractDenoiser) -> Bool[Tensor, "b l"]:
    """Visible words at positions with noise that the network predicts."""
    measure = canvas.without_lookback_positions(denoiser).measure
    return (measure > 0) & (canvas.x_t != denoiser.process.mask_id)


def _read(denoiser: AbstractDenoiser, canvas: Canvas, rows: Tensor) -> tuple[Tensor, ...]:
    """Piece, noise, probability and truth at the visible words of a canvas."""
    at = _questioned(canvas, denoiser).flatten().nonzero()[:, 0]
    prediction = canvas.predict(denoiser)
    own = [
        prediction.log_clean(some).gather(1, canvas.x_t.flatten()[some][:, None])[:, 0].double().exp()
        for some in at.split(_ROWS)
    ]
    right = torch.cat(own) if own else torch.zeros(0, dtype=torch.float64, device=at.device)
    truth = (canvas.x_t != canvas.x_0).flatten()[at]
    piece = rows.to(at.device)[at // canvas.x_t.shape[1]]
    return piece.cpu(), canvas.t.flatten()[at].cpu(), (1 - right).clamp(0, 1).cpu(), truth.cpu()


def reliability(words: Doubts, num_pieces: int, resamples: int = 200, seed: int = 0) -> dict[str, Any]:
    """The numbers of `DEFINITIONS`, each with a standard error, and the bins of the reliability curve.

    Args:
        words: The words to be measured.
        num_pieces: Number of pieces of text, which the bootstrap draws.
        resamples: Number of bootstrap samples.
        seed: Seed of the bootstrap.
    """
    random = np.random.default_rng(seed)
    wrong, truth = words.wrong.numpy(), words.truth.numpy().astype(float)
    if not len(wrong):
        return {"num_words": 0, "num_wrong": 0, "metrics": {}, "bins": []}
    weights = random.multinomial(num_pieces, [1 / num_pieces] * num_pieces, resamples).astype(float)
    place = np.clip(np.searchsorted(EDGES, wrong, side="left") - 1, 0, len(EDGES) - 2)
    sums = _sums(words.piece.numpy(), num_pieces, place, wrong, truth)
    whole, drawn = sums.sum(0), np.einsum("rp,pbk->rbk", weights, sums)
    chance = [
        _calibration_error(_sums(np.zeros_like(place), 1, place, wrong, random.random(len(wrong)) < wrong)[0])
        for _ in range(resamples)
    ]
    metrics = {
        "calibration error": _estimate(_calibration_error, whole, drawn),
        "calibration error by chance": {"value": float(np.mean(chance)), "error": None},
        "bias": _estimate(_bias, whole, drawn),
        "area under the curve": _area(wrong, truth, weights[:, words.piece.numpy()]),
    }
    return {
        "num_words": len(wrong),
        "num_wrong": int(truth.sum()),
        "metrics": metrics,
        "bins": _bins(whole, drawn),
    }


def _sums(piece: Any, num_pieces: int, place: Any, wrong: Any, truth: Any) -> Any:
    """For each piece and bin: the number of words, the sum of probabilities, and the number of wrong words."""
    sums = np.zeros((num_pieces, len(EDGES) - 1, 3))
    for column, values in enumerate((np.ones_like(wrong), wrong, truth)):
        np.add.at(sums[..., column], (piece, place), values)
    return sums


def _calibration_error(sums: Any) -> float:
    return float(np.abs(sums[:, 1] - sums[:, 2]).sum() / max(sums[:, 0].sum(), 1.0))


def _bias(sums: Any) -> float:
    return float((sums[:, 1] - sums[:, 2]).sum() / max(sums[:, 0].sum(), 1.0))


def _estimate(measure: Callable[[Any], float], whole: Any, drawn: Any) -> dict[str, Any]:
    """A number and its standard error by the bootstrap."""
    return asdict(Estimate(measure(whole), float(np.std([measure(sums) for sums in drawn], ddof=1))))


def _bins(whole: Any, drawn: Any) -> list[dict[str, Any]]:
    """The bins that hold words: the mean probability, and the share of wrong words with its error."""
    bins = []
    for index, (count, total, wrong) in enumerate(whole.tolist()):
        if count:
            often = drawn[:, index, 0] > 0
            shares = drawn[often, index, 2] / drawn[often, index, 0]
            bins.append(
                {
                    "from": EDGES[index],
                    "to": EDGES[index + 1],
                    "num_words": int(count),
                    "probability": total / count,
                    "wrong": wrong / count,
                    "error": float(shares.std(ddof=1)) if len(shares) > 1 else None,
                }
            )
    return bins


def _area(wrong: Any, truth: Any, weights: Any) -> dict[str, Any]:
    """Area under the ROC curve with its error, or the reason why there is none."""
    if not 0 < truth.sum() < len(truth):
        kind = "right" if not truth.any() else "wrong"
        return {"failed": f"all {len(truth)} words are {kind}, so there is nothing to separate"}
    values, rank = np.unique(wrong, return_inverse=True)

    def area(weight: Any) -> float:
        bad = np.bincount(rank, weight * truth, len(values))
        good = np.bincount(rank, weight * (1 - truth), len(values))
        pairs = bad.sum() * good.sum()
        return float((bad * (good.cumsum() - good / 2)).sum() / pairs) if pairs else float("nan")

    drawn = [area(weight) for weight in weights]
    return asdict(Estimate(area(np.ones_like(wrong)), float(np.nanstd(drawn, ddof=1))))


def measured_calibration(
    checkpoint: Checkpoint,
    text: object,
    options: CalibrationOptions,
    *,
    model: str = "a checkpoint",
    weights: Any = "only",
    output: Path | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Measure the calibration of a model; returns the document of `hdlm eval calibration`.

    Args:
        checkpoint: The checkpoint of the model.
        text: The text, as for `hdlm.evaluation.text.find_text`.
        options: Options of the measurement.
        model: Name of the model in the document.
        weights: Which weights were loaded, `"averaged"` or `"raw"`, if that is known.
        output: Folder for the document, a report and a picture.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.

    Raises:
        ValueError: If the text cannot be used, or an option does not fit the model.
    """
    from hdlm.view.calibration import write_calibration

    names = ("hyperschedule", "width", "steps")
    plan = plan_of(checkpoint, options.length, **{name: getattr(options, name) for name in names})
    return document_of_text(
        checkpoint,
        text,
        options,
        lambda read: _calibrated(checkpoint, read, plan, options, progress),
        kind="calibration",
        model=model,
        weights=weights,
        output=output,
        files=FILES,
        write=write_calibration,
    )


def _calibrated(
    checkpoint: Checkpoint,
    text: Text,
    plan: AbstractHyperschedule,
    options: CalibrationOptions,
    progress: bool | None,
) -> dict[str, Any]:
    """The result of a calibration: the numbers of each condition and each range of noise."""
    rows = pieces(text.tokens, options.num, plan.length, options.seed)
    with share_bar("noising", shown=progress) as bar:
        measured = doubts(
            checkpoint.denoiser,
            rows,
            checkpoint.regime(plan),
            planted=options.planted,
            replicates=options.replicates,
            batch_size=options.batch_size,
            seed=options.seed,
            watch=lambda share: bar(share, "noising the text"),
        )
    conditions = {
        name: _levels(words, options, len(rows)) | {"all": reliability(words, len(rows), options.resamples)}
        for name, words in measured.items()
    }
    return {
        "protocol": {
            **{name: getattr(options, name) for name in ("num", "replicates", "planted", "resamples")},
            "length": plan.length,
        },
        "hyperschedule": protocol.describe_piece(plan),
        "metrics": {
            f"{metric}, {name}": value
            for name, levels in conditions.items()
            for metric, value in levels["all"]["metrics"].items()
        },
        "conditions": conditions,
        "definitions": dict(DEFINITIONS),
    }


def _levels(words: Doubts, options: CalibrationOptions, num_pieces: int) -> dict[str, Any]:
    """The numbers of each range of noise."""
    ends = (0.0, *options.levels)
    return {
        f"{low:g} to {high:g}": reliability(words.between(low, high), num_pieces, options.resamples)
        for low, high in itertools.pairwise(ends)
    }
