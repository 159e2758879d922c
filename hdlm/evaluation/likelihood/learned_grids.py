"""Learn time grids for few-step sampling on a text, in one call: what `hdlm tune` does."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

from hdlm.atomic import keeping
from hdlm.checkpoint import Checkpoint
from hdlm.evaluation.generation.metrics import Estimate
from hdlm.evaluation.likelihood.grids import Profile, as_masks, as_times, check_steps, measured_profile
from hdlm.evaluation.likelihood.windows import windows
from hdlm.evaluation.records import protocol
from hdlm.evaluation.text import find_text, tokenize_documents
from hdlm.generation import Settings, planned
from hdlm.noise_schedule import time_grid
from hdlm.progress import share_bar

__all__ = ["GridOptions", "learned_grids"]

_UNLEARNED = ("uniform", "cosine")
"""Grids that are not learned, for comparison."""


@final
@dataclass(frozen=True)
class GridOptions:
    """For which numbers of steps grids are learned, and on how much text.

    Attributes:
        part: Part of a named data set.
        data_dir: Folder of data sets; by default that of the environment, $HDLM_DATA_DIR.
        limit: About how many tokens of the text are taken.
        steps: Numbers of steps to learn grids for.
        width: Number of positions that are written together; all by default.
        length: Number of positions on the canvas; the model's context by default.
        batch_size: Number of windows in a pass.
        seed: Seed of all randomness.
    """

    part: str = "validation"
    data_dir: Path | None = None
    limit: int = 16384
    steps: tuple[int, ...] = (4, 8, 16, 32)
    width: int | None = None
    length: int | None = None
    batch_size: int = 16
    seed: int = 0


def learned_grids(
    checkpoint: Checkpoint,
    text: object,
    options: GridOptions,
    *,
    model: str = "a checkpoint",
    output: Path | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """The document of the best grids, learned on half of the text's windows and measured on the other half.

    Args:
        checkpoint: The checkpoint of the model.
        text: Text that the model was not trained on, as for `hdlm.evaluation.text.find_text`.
        options: Numbers of steps, and the amount of text.
        model: Name of the model in the document.
        output: File for the document.
        progress: Whether a progress bar is shown; by default in a terminal and in a notebook.

    Raises:
        ValueError: If the text cannot be used, or an option is out of range.
    """
    for steps in options.steps:
        check_steps(steps)
    length = options.length or checkpoint.length
    settings = Settings(hyperschedule="block", width=options.width or length, steps=1)
    plan = planned(checkpoint, settings, length, infilling=False).hyperschedule
    source = find_text(text, options.part, options.data_dir)
    read = tokenize_documents(checkpoint.tokenizer, source.corpus.documents(), options.limit)
    (whole, *_) = windows(read.tokens.to(checkpoint.device), length)
    with share_bar("measuring", shown=progress) as bar:
        profile = measured_profile(
            checkpoint,
            plan,
            whole.tokens,
            batch_size=options.batch_size,
            seed=options.seed,
            watch=lambda share: bar(share, "measuring"),
        )
    learned, measured = profile.halves()
    grids = {steps: learned.best(steps) for steps in sorted(set(options.steps))}
    gaps = {steps: _gaps(checkpoint, measured, steps, grid) for steps, grid in grids.items()}
    document: dict[str, Any] = {
        "kind": "grids",
        "model": model,
        "weights_sha256": protocol.weights_sha256(checkpoint.network),
        "hyperschedule": repr(plan),
        "noise_schedule": repr(checkpoint.noise_schedule),
        "data": source.describe(read),
        "windows": {"learned on": len(learned.nats), "measured on": len(measured.nats)},
        "seed": options.seed,
        "versions": protocol.versions(),
        "profile": profile.nats.mean(0).tolist(),
        "gaps": {
            str(steps): {name: asdict(gap) for name, gap in each.items()} for steps, each in gaps.items()
        },
        "grids": {str(steps): as_times(grid, checkpoint) for steps, grid in grids.items()},
    }
    if output is not None:
        with keeping(lambda: json.dumps(document)):
            protocol.write_result(output, document)
    return document


def _gaps(
    checkpoint: Checkpoint, measured: Profile, steps: int, learned: tuple[float, ...]
) -> dict[str, Estimate]:
    """The cost of each grid."""
    others = {name: as_masks(time_grid(name), steps, checkpoint) for name in _UNLEARNED}
    return {name: measured.gap(grid) for name, grid in {**others, "learned": learned}.items()}
