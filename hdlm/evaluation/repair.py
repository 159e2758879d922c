"""Repair: how many planted errors a sampler corrects in real text, and how many of the other words it damages.

A share of the words of held-out text is replaced by other words, uniformly. A sampler then corrects the text: it
begins with these words at a noise fraction, and takes its usual steps (`hdlm.evaluation.generation.corrections`). Two
controls change as many words of each piece as the sampler did, at random places:

    plain     the words at random places are removed and written again by plain ancestral sampling
    random    the words at random places are replaced by random words, as frequent as in the text

A sampler that restores no more than `plain` does not find errors; it only writes words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.generation.corrections import correct_tokens
from hdlm.evaluation.generation.metrics import Estimate, share
from hdlm.evaluation.generation.scoring import Scores, canvases, score_or_failure, text_of
from hdlm.evaluation.text import Text
from hdlm.evaluation.text_document import document_of_text
from hdlm.generation import Settings, complete, planned
from hdlm.generation.correction import matching_noise
from hdlm.progress import share_bar
from hdlm.randomness import Randomness
from hdlm.sampling import Execution, Prompt

__all__ = ["RepairOptions", "measured_repair", "outcomes", "plant"]

Start = Literal["words", "masks"]
DEFINITIONS: Mapping[str, str] = {
    "restored": "share of the planted errors that are the word of the text at the end",
    "found": "share of the planted errors that were changed, to whatever word",
    "damaged": "share of the other words that are not the word of the text at the end",
    "wrong before": "share of all words that differ from the text before the correction",
    "wrong after": "share of all words that differ from the text after the correction",
}
"""Definitions of the numbers. Errors are standard errors by the jackknife over pieces of text."""
FILES = ("results.json", "report.md", "repair.png")
_WHERE, _WORD, _REDRAWN, _CHANCE = 0xB3, 0xB4, 0xB5, 0xB6
"""Random streams: places and words of planted errors, places of the controls, and words of the control `random`."""
_EXAMPLES = 3


@final
@dataclass(frozen=True)
class RepairOptions:
    """What is damaged, and how its correction begins.

    Attributes:
        part: Part of a named data set.
        data_dir: Folder of data sets; by default that of the environment, $HDLM_DATA_DIR.
        num: Number of pieces of text.
        share: Share of the words that is replaced by other words, in (0, 1).
        noise: Noise fraction at which the correction begins, in (0, 1]. By default the smallest one at which the
            process of the model has this share of wrong words among the visible ones; 0.5 if it never or always has.
        start: `words` begins with all words of the text; `masks` masks as many of them first as the process does at
            this noise.
        batch_size: Number of pieces in a batch; it does not change the result.
        seed: Seed of all random numbers.

    Raises:
        ValueError: If an option is out of range.
    """

    part: str = "test"
    data_dir: Path | None = None
    num: int = 50
    share: float = 0.05
    noise: float | None = None
    start: Start = "words"
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("num", 2), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}; got {getattr(self, name)}.")
        if not 0 < self.share < 1:
            raise ValueError(f"`share` must lie in (0, 1); got {self.share}.")
        if self.noise is not None and not 0 < self.noise <= 1:
            raise ValueError(f"`noise` must lie in (0, 1]; got {self.noise}.")


def plant(
    text: Int[Tensor, "n l"], share_of_words: float, num_words: int, seed: int = 0
) -> tuple[Int[Tensor, "n l"], Bool[Tensor, "n l"]]:
    """Replace a share of the words by other words, uniformly; the first word of each piece is kept.

    Args:
        text: Pieces of text.
        share_of_words: Probability that a word is replaced.
        num_words: Number of words in the vocabulary, at least 2.
        seed: Seed of the places and the words.

    Returns:
        The damaged text, and where words were replaced.
    """
    draw = _Draws(seed, text.shape)
    where = draw(_WHERE) < share_of_words
    where[:, 0] = False
    other = (text + 1 + (draw(_WORD) * (num_words - 1)).long()) % num_words
    return torch.where(where, other, text), where


def outcomes(
    text: Int[Tensor, "n l"],
    damaged: Int[Tensor, "n l"],
    where: Bool[Tensor, "n l"],
    end: Int[Tensor, "n l"],
) -> Scores:
    """The numbers of `DEFINITIONS`, ready for JSON; a share of nothing has the reason instead.

    Args:
        text: The real text.
        damaged: The text with planted errors.
        where: Where errors were planted.
        end: The text after the correction.
    """
    free = torch.ones_like(where)
    free[:, 0] = False
    counted = {
        "restored": ((end == text) & where, where),
        "found": ((end != damaged) & where, where),
        "damaged": ((end != text) & free & ~where, free & ~where),
        "wrong before": ((damaged != text) & free, free),
        "wrong after": ((end != text) & free, free),
    }
    scores: Scores = {}
    for name, (part, whole) in counted.items():
        sums = [values.double().sum(1).tolist() for values in (part, whole)]
        scores |= score_or_failure((name,), partial(_share_of, name, *sums))
    return scores


def _share_of(name: str, parts: list[float], wholes: list[float]) -> dict[str, Estimate]:
    return {name: share(parts, wholes)}


@final
@dataclass(frozen=True)
class _Draws:
    """Uniform random numbers for all positions of some pieces, by stream."""

    seed: int
    shape: tuple[int, ...]

    def __call__(self, stream: int) -> Tensor:
        rows, columns = torch.arange(self.shape[0]), torch.arange(self.shape[1])
        return Randomness(self.seed).uniform(rows[:, None], 0, columns[None], stream)


def _random_places(count: Int[Tensor, " n"], shape: torch.Size, seed: int) -> Bool[Tensor, "n l"]:
    """So many random places in each piece, without its first."""
    draw = _Draws(seed, shape)(_REDRAWN)
    draw[:, 0] = torch.inf
    return draw.argsort(1).argsort(1) < count[:, None]


def _controls(
    checkpoint: Checkpoint,
    damaged: Tensor,
    end: Tensor,
    words: Tensor,
    settings: Settings,
    seed: int,
    size: int,
) -> dict[str, Tensor]:
    """The text after each control, which changes as many words of each piece as the sampler did."""
    chosen = _random_places((end != damaged).sum(1), damaged.shape, seed)
    regime = planned(checkpoint, settings, damaged.shape[1], infilling=True)
    plain = complete(
        checkpoint,
        Prompt(damaged, ~chosen),
        regime,
        replace(settings, algorithm="original"),
        num=len(damaged),
        seed=seed,
        execution=Execution(size),
    )
    drawn = words[(_Draws(seed, damaged.shape)(_CHANCE) * len(words)).long()]
    return {"plain": plain.tokens.cpu(), "random": torch.where(chosen, drawn, damaged)}


def measured_repair(
    checkpoint: Checkpoint,
    text: object,
    settings: Settings,
    options: RepairOptions,
    *,
    model: str = "a checkpoint",
    weights: Any = "only",
    output: Path | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Damage a text, let a sampler correct it, and count; returns the document of `hdlm eval repair`.

    Args:
        checkpoint: The checkpoint of the model.
        text: The text, as for `hdlm.evaluation.text.find_text`.
        settings: Settings of the sampler.
        options: Options of the measurement.
        model: Name of the model in the document.
        weights: Which weights were loaded, `"averaged"` or `"raw"`, if that is known.
        output: Folder for the document, a report and a picture.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.

    Raises:
        ValueError: If the text cannot be used, or an option does not fit the model.
    """
    from hdlm.view.repair import write_repair

    if settings.new_tokens is not None:
        raise ValueError(
            "`new_tokens` has no effect on a repair: give `length`, the tokens of a piece of text."
        )
    return document_of_text(
        checkpoint,
        text,
        options,
        lambda read: _repaired(checkpoint, read, settings, options, progress),
        kind="repair",
        model=model,
        weights=weights,
        output=output,
        files=FILES,
        write=write_repair,
    )


def _repaired(
    checkpoint: Checkpoint, text: Text, settings: Settings, options: RepairOptions, progress: bool | None
) -> dict[str, Any]:
    """The result of a repair: damage, correction, controls, and their numbers."""
    process, seed = checkpoint.denoiser.process, options.seed
    length = checkpoint.length if settings.length is None else settings.length
    rows = canvases(text.tokens, options.num, length, seed, checkpoint.tokenizer.vocabulary.bos)
    damaged, where = plant(rows, options.share, process.num_words, seed)
    noise = matching_noise(process, options.share) if options.noise is None else options.noise
    with share_bar("correcting", shown=progress) as bar:
        done = correct_tokens(
            checkpoint,
            damaged,
            settings,
            noise=noise,
            masks=options.start == "masks",
            batch_size=options.batch_size,
            seed=seed,
            watch=lambda frame: bar(frame.share, "correcting"),
        )
    end = done.tokens.cpu()
    controls = _controls(checkpoint, damaged, end, text.tokens, settings, seed, options.batch_size)
    examples = zip(rows[:_EXAMPLES], damaged, end, strict=False)
    return {
        "protocol": {"num": options.num, "length": length, "share": options.share},
        "settings": asdict(settings),
        "noise": noise,
        "start": options.start,
        "num_evaluations": done.evaluations.double().mean().item(),
        "metrics": outcomes(rows, damaged, where, end),
        "controls": {name: outcomes(rows, damaged, where, tokens) for name, tokens in controls.items()},
        "examples": [[text_of(row.tolist(), checkpoint.tokenizer) for row in stages] for stages in examples],
        "definitions": dict(DEFINITIONS),
    }
