"""The frontier: what a judge thinks of the text (generative perplexity) against how varied it is (entropy).

Either number alone can be had for nothing: a low temperature repeats itself and pleases the judge. A sweep over
temperature or top-p shows what each sampler or model pays for which (arXiv 2409.02908 asks for both numbers); one is
better than another where its curve lies below at the same entropy.

Every point is a piece of work that is kept when it is done: its samples, then its scores. The name of a piece is a hash
of all that it depends on, so a sweep goes on after a kill, and a wider sweep measures only what is new.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from hdlm.atomic import keeping
from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.generation.judge import AbstractJudge, generative_perplexity
from hdlm.evaluation.generation.metrics import entropy
from hdlm.evaluation.generation.samples import (
    Sample,
    draw_samples,
    drawn_with,
    num_evaluations,
    tokens_per_second,
)
from hdlm.evaluation.generation.scoring import PERPLEXITY, attempt, pieces, text_of
from hdlm.evaluation.records import protocol
from hdlm.evaluation.text import Text
from hdlm.generation import Settings, tokenizer_of

__all__ = ["MEASURES", "Sweep"]

MEASURES = ("entropy", PERPLEXITY)
"""What a point is made of."""

Scores = dict[str, dict[str, Any]]


@final
@dataclass(frozen=True, eq=False)
class Sweep:
    """What all points of a picture have in common.

    Attributes:
        folder: Where pieces are kept.
        judge: Who judges.
        num: Samples a point.
        seed: Of all random numbers; points share it, so their differences are less noisy than each of them.
        prompt: Text that all samples begin with.
        batch_size: Samples at a time; by default as many as fit.
        device: Where the models are; by default where each of them is.
    """

    folder: Path
    judge: AbstractJudge
    num: int
    seed: int = 0
    prompt: str = ""
    batch_size: int | None = None
    device: torch.device | str | None = None

    def point(
        self,
        checkpoint: Checkpoint,
        settings: Settings,
        watch: Callable[[int, float], None] | None = None,
    ) -> dict[str, Any]:
        """One point, measured or remembered.

        Args:
            checkpoint: The model.
            settings: How to write.
            watch: As in `draw_samples`.

        Returns:
            Entropy and generative perplexity, each with its error or the reason why there is none, and the price.
        """
        drawn = drawn_with(checkpoint, settings, self.prompt, self.seed)
        scored = drawn | {"num": self.num, **self.judge.noted}
        kept = self.folder / f"{_name(scored)}.json"
        if kept.exists():
            return protocol.read(kept)
        samples = draw_samples(
            checkpoint,
            settings,
            prompt=self.prompt,
            num=self.num,
            batch_size=self.batch_size,
            seed=self.seed,
            device=self.device,
            keep=self.folder / f"{_name(drawn)}.jsonl",
            watch=watch,
        )
        found = self._scores([one.written for one in samples], [one.text for one in samples]) | _price(
            samples
        )
        if not any("failed" in found[measure] for measure in MEASURES):
            with keeping(lambda: json.dumps(found)):
                protocol.write(kept, found)
        return found

    def reference(self, checkpoint: Checkpoint, text: Text, length: int) -> Scores:
        """The same of as much real text: where a perfect writer would be.

        Args:
            checkpoint: Whose tokens they are.
            text: The text.
            length: Tokens in a piece: as many as a sample has that were not given.
        """
        tokenizer = tokenizer_of(checkpoint)
        try:
            rows = pieces(text.tokens.long(), self.num, length, self.seed).tolist()
        except ValueError as error:
            return {measure: {"failed": str(error)} for measure in MEASURES}
        return self._scores(rows, [text_of(row, tokenizer) for row in rows])

    def _scores(self, rows: list[list[int]], texts: list[str]) -> Scores:
        return attempt((MEASURES[0],), lambda: {MEASURES[0]: entropy(rows)}) | attempt(
            (PERPLEXITY,),
            lambda: {PERPLEXITY: generative_perplexity(self.judge, texts)[PERPLEXITY]},
            **self.judge.noted,
        )


def _price(samples: list[Sample]) -> dict[str, Any]:
    return {
        "length": len(samples[0].tokens),
        "num_given": samples[0].given,
        "num_evaluations": num_evaluations(samples),
        "tokens_per_second": tokens_per_second(samples),
    }


def _name(values: Mapping[str, Any]) -> str:
    """A file name that is another if anything is."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:20]
