"""Measures a model during its training, under its averaged weights: the bound on validation text, and its samples.

    metrics.jsonl      {"step", "validation", "validation_error", "bound", "validation_tokens"}     nats a token
                       {"step", "entropy", "entropy_error", "distinct-1", ..., "generative perplexity", ...}
    samples/STEP.txt   the samples

Nothing here changes a weight or a random number of the run. A measurement that fails is reported; training continues.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, final, runtime_checkable

import torch

from hdlm.atomic import replacing
from hdlm.denoiser import Denoiser
from hdlm.evaluation.generation.judge import AbstractJudge, generative_perplexity
from hdlm.evaluation.generation.judges import judges_of
from hdlm.evaluation.generation.metrics import Estimate, diversity
from hdlm.evaluation.likelihood.defaults import bound_of
from hdlm.evaluation.likelihood.estimator import estimate_likelihood
from hdlm.evaluation.likelihood.result import LikelihoodResult
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.parameterization import AbstractParameterization, LogScore
from hdlm.sampling import Execution, Prompt, algorithm, sample
from hdlm.training import Session, StepReport, TrainingSetup
from hdlm.training.recipe import WatchSettings

__all__ = ["LogFunction", "Observer"]

_DIVIDER = "\n\n----\n\n"
_FAILURES = (ValueError, OverflowError, torch.OutOfMemoryError)
"""Errors of a measurement that do not stop the training, which keeps the memory that it needs."""


@runtime_checkable
class LogFunction(Protocol):
    """Reports a line of text to a person."""

    def __call__(self, line: str, /) -> object:
        """Report one line."""


@final
class Observer:
    """A callback that measures. Every process has one; the main process does the work.

    Args:
        run: The run that is trained.
        session: The training session of the run.
        folder: The folder for samples.
        say: Called with each result as a line of text.
        settings: When and how much is measured; by default as in the recipe.
        plan: The hyperschedule to measure along; by default the first hyperschedule of the recipe.
        writing: The hyperschedule for samples; by default `plan`.
        sampler: Name of the sampling algorithm; by default the ancestral sampler of the family.
    """

    def __init__(
        self,
        run: TrainingSetup,
        session: Session,
        folder: Path,
        say: LogFunction,
        *,
        settings: WatchSettings | None = None,
        plan: AbstractHyperschedule | None = None,
        writing: AbstractHyperschedule | None = None,
        sampler: str | None = None,
    ) -> None:
        self._run, self._session, self._folder, self._say = run, session, folder, say
        self._settings = run.recipe.watch if settings is None else settings
        self._plan = run.mixture.hyperschedules[0] if plan is None else plan
        self._writing = self._plan if writing is None else writing
        self._sampler = _family(run.denoiser.parameterization) if sampler is None else sampler
        self._judge: AbstractJudge | str | None = None
        self._nobody = not self._settings.judge
        self._tried: dict[str, int] = {}

    def __call__(self, report: StepReport) -> None:
        """Do the measurements that are due after this step."""
        if _is_due(report.step, self._settings.validate_every):
            self.validate(report.step)
        if _is_due(report.step, self._settings.sample_every):
            self.write(report.step)

    def finish(self, step: int) -> None:
        """Measure the model of the last step, unless an earlier session of the run measured it."""
        if self._settings.validate_every is not None and not self._was_measured(step, "validation"):
            self.validate(step)
        if self._settings.sample_every is not None and not self._was_measured(step, "entropy"):
            self.write(step)

    def _was_measured(self, step: int, name: str) -> bool:
        return self._tried.get(name) == step or self._session.has(step, name)

    def validate(self, step: int) -> None:
        """Log the bound on validation text; the checkpoint is kept while its bound is the best."""
        self._tried["validation"] = step
        bound = None
        with self._session.gauge.paused(), self._session.trainer.averaged_model() as denoiser:
            if denoiser is not None:
                bound = self._measured(denoiser, step)
        self._session.offer(step, bound)

    def write(self, step: int) -> None:
        """Write samples, and log how varied and how likely they are."""
        self._tried["entropy"] = step
        with self._session.gauge.paused(), self._session.trainer.averaged_model() as denoiser:
            if denoiser is None:
                return
            try:
                tokens = self._generated(denoiser)
            except _FAILURES as error:
                self._say(f"step {step}: no samples: {error}")
                return
        texts = [self._run.tokenizer.decode(row) for row in tokens]
        with replacing(self._folder / "samples" / f"{step}.txt") as aside:
            aside.write_text(_DIVIDER.join(texts) + "\n", encoding="utf-8")
        written = [row[self._given :] for row in tokens]
        estimates = {**diversity(written), **self._judged(texts)}
        self._session.log.write(step=step, **_flat(estimates))
        perplexity = estimates.get("generative perplexity")
        judged = "" if perplexity is None else f", generative perplexity {perplexity}"
        self._say(f"step {step}: samples of entropy {estimates.get('entropy', 'not measured')}{judged}")

    def _measured(self, denoiser: Denoiser, step: int) -> float | None:
        """The bound in nats per token, which is logged and reported; None if it cannot be measured."""
        try:
            result = self._bound(denoiser)
        except _FAILURES as error:
            self._say(f"step {step}: no validation: {error}")
            return None
        nats, spread = result.nats_per_token, result.standard_error
        estimate = Estimate(nats, None if spread is None else spread / result.num_tokens)
        values = _flat({"validation": estimate})
        self._session.log.write(step=step, **values, bound=result.bound, validation_tokens=result.num_tokens)
        self._say(f"step {step}: validation {estimate} nats a token, at most")
        return values["validation"]

    def _bound(self, denoiser: Denoiser) -> LikelihoodResult:
        settings = self._settings
        return estimate_likelihood(
            denoiser,
            self._run.validation.tokens[: settings.validation_windows * self._run.recipe.data.context],
            self._run.regime.along(self._plan.begin_in_noise()),
            bound=bound_of(denoiser.process),
            replicates=settings.replicates,
            batch_size=settings.batch_size,
            seed=self._run.recipe.run.seed,
            device=denoiser.device,
        )

    def _generated(self, denoiser: Denoiser) -> list[list[int]]:
        """Token ids of the samples."""
        settings = self._settings
        first = self._run.tokenizer.vocabulary.bos
        prompt = Prompt.prefix([first], self._writing.length) if first is not None and self._given else None
        made = sample(
            denoiser,
            self._run.regime.along(self._writing),
            algorithm(self._sampler, denoiser.process),
            num_sequences=settings.samples,
            seed=self._run.recipe.run.seed,
            prompt=prompt,
            execution=Execution(batch_size=settings.batch_size),
        )
        rows: list[list[int]] = made.tokens.tolist()
        return rows

    @property
    def _given(self) -> int:
        """Number of given tokens at the beginning of a sample: shifted networks are given the first token."""
        lookback = self._run.denoiser.lookback
        return lookback if self._run.tokenizer.vocabulary.bos is not None else 0

    def _judged(self, texts: list[str]) -> dict[str, Estimate]:
        """The judge's numbers; if there is no judge, the reason is reported once."""
        if self._nobody:
            return {}
        settings = self._settings
        try:
            if self._judge is None:
                self._judge = judges_of([settings.judge], self._run.device, settings.judge_batch_size)[
                    settings.judge
                ]
            if not isinstance(self._judge, str):
                return generative_perplexity(self._judge, texts)
        except _FAILURES as error:
            self._judge = str(error)
        self._nobody = True
        self._say(f"no generative perplexity by {settings.judge}: {self._judge}")
        return {}


def _family(parameterization: AbstractParameterization) -> str:
    """The published sampler for models with this parameterization."""
    return "analytic" if isinstance(parameterization.aligned, LogScore) else "original"


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0


def _flat(estimates: Mapping[str, Estimate]) -> dict[str, float]:
    """Values and errors by name, for a line of metrics."""
    values = {}
    for name, estimate in estimates.items():
        values[name] = round(estimate.value, 5)
        if estimate.error is not None:
            values[f"{name}_error"] = round(estimate.error, 5)
    return values
