"""Measure a model: `hdlm.evaluate.likelihood`, `generation`, `frontier`, `calibration` and `repair`.

`hdlm.evaluate` is this module; a file of that name would hide the package `evaluate` from the scripts in this folder.
Each function runs the same code as its command, such as `hdlm eval likelihood`. `hdlm.compare` puts the results in
their folders side by side.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor

from hdlm.checkpoint import Checkpoint
from hdlm.denoiser import AbstractDenoiser
from hdlm.evaluation.calibration import CalibrationOptions, measured_calibration
from hdlm.evaluation.generation.evaluate import GenerationOptions, GenerationResult, measured_generation
from hdlm.evaluation.generation.frontier import FrontierOptions, measured_frontier
from hdlm.evaluation.likelihood.evaluate import LikelihoodOptions, likelihood_document
from hdlm.evaluation.likelihood.result import LikelihoodResult
from hdlm.evaluation.repair import RepairOptions, measured_repair
from hdlm.generation import Settings
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.regime import Regime
from hdlm.strict_config import read_table

__all__ = [
    "CalibrationOptions",
    "GenerationOptions",
    "LikelihoodOptions",
    "RepairOptions",
    "calibration",
    "evaluate",
    "frontier",
    "generation",
    "likelihood",
    "repair",
]


def likelihood(
    checkpoint: Checkpoint,
    text: object,
    *,
    output: str | Path | None = None,
    progress: bool | None = None,
    **options: Any,
) -> LikelihoodResult:
    """Measure how well a model predicts a text; also a method, `checkpoint.likelihood(text)`.

    Args:
        checkpoint: The model, which has its noise schedule, its context and its hyperschedules.
        text: A file, a folder, a glob or the name of a data set; documents, as a list of strings; or a corpus.
        output: Folder for `results.json`, a report and a picture; a measurement that was interrupted is resumed there.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.
        **options: Fields of `LikelihoodOptions`: `replicates`, `target_error`, `hyperschedule`, `length`, `stride`
            and so on.

    Returns:
        The bound on `-log p` of the text, with `bits_per_byte`, `perplexity` and their standard errors.

    Raises:
        ValueError: If the text cannot be used, or an option is unknown, out of range or does not fit the model.
    """
    document = likelihood_document(
        checkpoint,
        text,
        read_table(LikelihoodOptions, _with_path(options)),
        model=_name(checkpoint),
        output=None if output is None else Path(output),
        progress=progress,
    )
    return LikelihoodResult.from_dict(document["result"])


def generation(
    checkpoint: Checkpoint,
    prompt: str = "",
    *,
    num: int = 100,
    seed: int = 0,
    judges: Sequence[str] = (),
    reference: object = None,
    output: str | Path | None = None,
    progress: bool | None = None,
    measures: Mapping[str, Any] | None = None,
    **settings: Any,
) -> GenerationResult:
    """Generate samples and measure them: variety, repetition, perplexity under judges, MAUVE, and corrections.

    Args:
        checkpoint: Checkpoint of the model.
        prompt: Text that all samples begin with.
        num: Number of samples, at least 1.
        seed: Seed of all random numbers.
        judges: Folders or hub names of causal language models, or names of checkpoints, that judge perplexity.
        reference: Real text to compare with, as for `likelihood`.
        output: Folder for `results.json`, a report, a picture and the samples; the same call resumes there.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.
        measures: Further fields of `GenerationOptions`: `controls`, `mauve`, `infill`, `eta_sweep` and so on.
        **settings: Fields of `hdlm.Settings`, as for `Checkpoint.generate`.

    Returns:
        The samples, the numbers by name in `metrics`, and the whole `document`. A number that cannot be measured is
        replaced by the reason.

    Raises:
        ValueError: If an option is unknown, out of range, or does not fit the model.
    """
    more = _with_path(measures or {})
    unknown = [name for name in more if name not in GenerationOptions.__dataclass_fields__]
    if unknown:
        known = ", ".join(GenerationOptions.__dataclass_fields__)
        raise ValueError(f"unknown measures {', '.join(unknown)}; known are {known}.")
    options = GenerationOptions(
        prompt=prompt, num=num, seed=seed, judges=_words(judges), reference=reference, **more
    )
    return measured_generation(
        checkpoint,
        read_table(Settings, settings),
        options,
        model=_name(checkpoint),
        output=None if output is None else Path(output),
        progress=progress,
    )


def frontier(
    checkpoint: Checkpoint | Mapping[str, Checkpoint],
    *,
    judge: str,
    output: str | Path,
    temperature: Sequence[float] = (),
    top_p: Sequence[float] = (),
    algorithms: Sequence[str] = ("acs",),
    num: int = 50,
    seed: int = 0,
    reference: object = None,
    progress: bool | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Measure generative perplexity over entropy, for samplers and models, over temperature or top-p.

    Args:
        checkpoint: A model, or several by name.
        judge: Folder or hub name of a causal language model, or name of a checkpoint, that judges perplexity.
        output: Folder for `results.json`, a report and a picture. Every point is stored there, and the same call
            resumes.
        temperature: Temperatures of the points.
        top_p: Values of top-p of the points, in place of temperatures.
        algorithms: Names of the samplers; each has a curve.
        num: Number of samples of each point.
        seed: Seed of all random numbers.
        reference: Real text, which is a point of its own.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.
        **settings: Further fields of `hdlm.Settings`, equal at all points.

    Returns:
        The document that is written, with `curves`.

    Raises:
        ValueError: If both or neither of `temperature` and `top_p` are given, an option is unknown or out of range,
            the models cannot be compared, or there is no such judge.
    """
    if bool(temperature) == bool(top_p):
        raise ValueError(
            f"give either temperature or top_p, as a list; got temperature={temperature!r}, top_p={top_p!r}."
        )
    models = dict(checkpoint) if isinstance(checkpoint, Mapping) else {_name(checkpoint): checkpoint}
    options = FrontierOptions(
        swept="temperature" if temperature else "top_p",
        values=tuple(temperature or top_p),
        judge=judge,
        algorithms=_words(algorithms),
        num=num,
        seed=seed,
        reference=reference,
    )
    return measured_frontier(models, read_table(Settings, settings), options, Path(output), progress=progress)


def calibration(
    checkpoint: Checkpoint,
    text: object,
    *,
    output: str | Path | None = None,
    progress: bool | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Measure whether the network's probability that a visible word is wrong is the share of words that are wrong.

    Args:
        checkpoint: The checkpoint of the model.
        text: Text that the model was not trained on, as for `likelihood`.
        output: Folder for `results.json`, a report and a picture.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.
        **options: Fields of `CalibrationOptions`: `num`, `length`, `planted`, `levels` and so on.

    Returns:
        The document that is written; its `result["metrics"]` has the numbers with their errors.

    Raises:
        ValueError: If the text cannot be used, or an option is unknown, out of range or does not fit the model.
    """
    return measured_calibration(
        checkpoint,
        text,
        read_table(CalibrationOptions, _with_path(options)),
        model=_name(checkpoint),
        output=None if output is None else Path(output),
        progress=progress,
    )


def repair(
    checkpoint: Checkpoint,
    text: object,
    *,
    output: str | Path | None = None,
    progress: bool | None = None,
    measures: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Replace a share of the words of a text, let a sampler correct it, and count what is restored and damaged.

    Args:
        checkpoint: The checkpoint of the model.
        text: Text that the model was not trained on, as for `likelihood`.
        output: Folder for `results.json`, a report and a picture.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.
        measures: Fields of `RepairOptions`: `share`, `noise`, `start`, `num` and so on.
        **settings: Fields of `hdlm.Settings`, as for `Checkpoint.generate`.

    Returns:
        The document that is written; its `result` has `metrics` and `controls`.

    Raises:
        ValueError: If the text cannot be used, or an option is unknown, out of range or does not fit the model.
    """
    return measured_repair(
        checkpoint,
        text,
        read_table(Settings, settings),
        read_table(RepairOptions, _with_path(measures or {})),
        model=_name(checkpoint),
        output=None if output is None else Path(output),
        progress=progress,
    )


def _name(checkpoint: Checkpoint) -> str:
    """The name of a model that was given as an object."""
    size = sum(parameter.numel() for parameter in checkpoint.network.parameters())
    return f"{type(checkpoint.denoiser.process).__name__} of {size:,} parameters"


def _words(names: Sequence[str]) -> tuple[str, ...]:
    """Names, which may be given as a single one."""
    return (names,) if isinstance(names, str) else tuple(names)


def _with_path(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the folder of data sets as a path."""
    folder = options.get("data_dir")
    return {**options, **({"data_dir": Path(folder)} if isinstance(folder, str) else {})}


class _Evaluate(ModuleType):
    """The module; calling it is the older form of `hdlm.evaluation.estimate_likelihood`."""

    def __call__(
        self, denoiser: AbstractDenoiser, tokens: Tensor, hyperschedule: AbstractHyperschedule, **options: Any
    ) -> LikelihoodResult:
        from hdlm.evaluation import WindowedText
        from hdlm.evaluation import estimate_likelihood as measure

        along, cut = (
            {name: options.pop(name) for name in names if name in options}
            for names in (("noise_schedule", "context", "active"), ("num_bytes", "stride", "documents"))
        )
        warnings.warn(
            "hdlm.evaluate(denoiser, ...) is hdlm.evaluation.evaluate; for a checkpoint there is "
            "hdlm.evaluate.likelihood(checkpoint, text).",
            DeprecationWarning,
            stacklevel=2,
        )
        regime = Regime(hyperschedule, **along)
        return measure(denoiser, WindowedText(tokens, regime.length, **cut), regime, **options)


sys.modules[__name__].__class__ = _Evaluate
evaluate: ModuleType = sys.modules[__name__]
"""This module, under its public name."""
