"""The bound of a run's model on held-out text, and the bounds of unigram and bigram counts."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import final

from rich.console import Console

from hdlm.data import Bigram, Unigram
from hdlm.evaluation.likelihood.defaults import bound_of
from hdlm.evaluation.likelihood.estimator import estimate_likelihood
from hdlm.evaluation.likelihood.windows import WindowedText
from hdlm.progress import share_bar
from hdlm.training import Session, StepReport, StopRequest, TrainingSetup
from hdlm.view.report import Measurement

__all__ = ["UntilBigram", "counted", "measured"]

_STRETCH = 1.5
"""Factor by which a run is extended whose model is between the unigram and the bigram counts."""
_EVALUATION = 60.0
"""Seconds that the last measurement may take, predicted from one estimate."""


def counted(setup: TrainingSetup) -> list[Measurement]:
    """The bounds of unigram and bigram counts on the model's tokens."""
    words, test = setup.tokenizer.vocabulary.num_words, setup.validation
    rows = []
    for name, model in (("unigram counts", Unigram), ("bigram counts", Bigram)):
        nats = float(model.fit(setup.train.tokens, words).nats(test.tokens).sum())
        bits = nats / math.log(2) / test.num_bytes
        rows.append(Measurement(name, bits, math.exp(nats / len(test.tokens))))
    return rows


def measured(console: Console, setup: TrainingSetup, name: str, replicates: int) -> Measurement:
    """Measure and print the bound on the validation text, along the hyperschedule that the model generates with."""
    what, regime = f"measuring the {name}", setup.regime.begin_in_noise()
    setup.denoiser.eval()
    with share_bar(what, shown=console.is_terminal) as bar:
        result = estimate_likelihood(
            setup.denoiser,
            WindowedText(setup.validation.tokens, regime.length, num_bytes=setup.validation.num_bytes),
            regime,
            bound=bound_of(setup.denoiser.process),
            replicates=replicates,
            seed=setup.recipe.run.seed,
            device=setup.device,
            watch=lambda progress: bar(progress.done / progress.total, what),
        )
    row = Measurement(
        name,
        result.nats / math.log(2) / setup.validation.num_bytes,
        result.perplexity,
        result.bits_per_byte_error,
        result.perplexity_error,
    )
    _, bits, perplexity = row.cells()
    console.print(f"{name}: {bits} bits per byte, perplexity {perplexity}", highlight=False)
    return row


@final
class UntilBigram:
    """Measures the model at the end of the run, and extends the run while the model does not beat the bigram counts.

    Args:
        session: The run, which has a time limit.
        stop: Whether the user has asked to stop; then the run is not extended.
        counts: The bounds of unigram and bigram counts.
        console: Where results are printed.
        deadline: Time on the clock at which training ends in any case.
        clock: Returns the time in seconds.

    Attributes:
        replicates: Number of estimates for the measurement after the run.
    """

    def __init__(
        self,
        session: Session,
        stop: StopRequest,
        counts: Sequence[Measurement],
        console: Console,
        deadline: float,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._session, self._stop, self._console = session, stop, console
        self._unigram, self._bigram = (row.bits_per_byte for row in counts)
        self._deadline, self._clock = deadline, clock
        self.replicates = 4

    def __call__(self, report: StepReport) -> None:
        """Measure after the last step, and extend the run if that is useful."""
        if report.progress < 1 or self._stop:
            return
        began = self._clock()
        with self._session.gauge.paused(), self._session.trainer.averaged_model():
            name = f"network, after {report.step} steps"
            bits = measured(self._console, self._session.run, name, replicates=1).bits_per_byte
        now = self._clock()
        self.replicates = max(1, min(4, int(_EVALUATION / max(now - began, 1e-9))))
        left = self._deadline - now
        if bits < self._bigram or left <= 0 or self._stop:
            return
        planned, passed = self._session.run.recipe.run.minutes, report.seconds / 60 + (now - began) / 60
        longest = passed + left / 60
        minutes = longest if bits >= self._unigram or planned is None else max(passed, planned) * _STRETCH
        self._session.extend(min(longest, minutes))
        self._console.print(
            f"The model does not beat the bigram counts ({self._bigram:.3f} bits per byte) yet. Training continues "
            f"for {min(longest, minutes) - passed:.1f} minutes, and until it does for at most {left / 60:.1f} minutes; "
            "Ctrl-C ends it with a report.",
            soft_wrap=True,
        )

    def finish(self, step: int) -> None:
        """Do nothing: the model was measured after its last step."""
