"""What a run's model achieves on the text it was not trained on, and what counting achieves there."""

from __future__ import annotations

import math

from rich.console import Console

from hdlm.data import Bigram, Unigram
from hdlm.evaluation.likelihood.defaults import bound_of
from hdlm.evaluation.likelihood.estimator import estimate_likelihood
from hdlm.evaluation.likelihood.windows import WindowedText
from hdlm.progress import share_bar
from hdlm.training import TrainingSetup
from hdlm.view.report import Measurement

__all__ = ["counted", "measured"]


def counted(setup: TrainingSetup) -> list[Measurement]:
    """What counting words and pairs of words achieves on the same tokens."""
    words, test = setup.tokenizer.vocabulary.num_words, setup.validation
    rows = []
    for name, model in (("unigram counts", Unigram), ("bigram counts", Bigram)):
        nats = float(model.fit(setup.train.tokens, words).nats(test.tokens).sum())
        bits = nats / math.log(2) / test.num_bytes
        rows.append(Measurement(name, bits, math.exp(nats / len(test.tokens))))
    return rows


def measured(console: Console, setup: TrainingSetup, name: str, replicates: int) -> Measurement:
    """The bound on the validation text, along the hyperschedule that the model writes by; it is printed, too."""
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
