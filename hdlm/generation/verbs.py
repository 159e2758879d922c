"""The implementation of `Checkpoint.generate`, `infill` and `correct`, where the arguments are documented."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hdlm.checkpoint import Checkpoint
from hdlm.generation.correction import matching_noise
from hdlm.generation.other_names import settings_of
from hdlm.generation.passages import Ending
from hdlm.generation.progress import steps_bar
from hdlm.generation.text import BLANK, Passages
from hdlm.generation.write import write

__all__ = ["correct", "generate", "infill"]


def generate(
    checkpoint: Checkpoint,
    prompt: str = "",
    *,
    num: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    stop: Sequence[str] = (),
    stop_at_end: bool = False,
    stream: Callable[[int, str], None] | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Passages:
    """Generate text that continues a prompt; see `Checkpoint.generate`."""
    if BLANK.search(prompt):
        raise ValueError("The prompt has gaps, [MASK]: use `infill` for such a text.")
    ending = Ending(stop_at_end, _texts(stop))
    how: dict[str, Any] = {"num": num, "seed": seed, "batch_size": batch_size}
    with steps_bar("writing", shown=progress) as tick:
        passages = write(
            checkpoint,
            prompt,
            settings_of(checkpoint, settings),
            **how,
            ending=ending,
            watch=tick,
            stream=stream,
        )
    again = partial(
        checkpoint.replay,
        prompt,
        stop=ending.strings,
        stop_at_end=stop_at_end,
        progress=progress,
        **how,
        **settings,
    )
    return Passages(passages, again)


def infill(
    checkpoint: Checkpoint,
    text: str,
    *,
    num: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Passages:
    """Fill in the gaps of a text; see `Checkpoint.infill`."""
    if not BLANK.search(text):
        raise ValueError("The text has no gap: write [MASK] for one token, [MASK:5] for five.")
    how: dict[str, Any] = {"num": num, "seed": seed, "batch_size": batch_size}
    with steps_bar("filling in", shown=progress) as tick:
        passages = write(checkpoint, text, settings_of(checkpoint, settings), **how, watch=tick)
    return Passages(passages, partial(checkpoint.replay, text, progress=progress, **how, **settings))


def correct(
    checkpoint: Checkpoint,
    text: str,
    *,
    noise: float | None = None,
    num: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Passages:
    """Correct a finished text; see `Checkpoint.correct`."""
    how: dict[str, Any] = {"num": num, "seed": seed, "batch_size": batch_size}
    how["noise"] = matching_noise(checkpoint.denoiser.process) if noise is None else noise
    with steps_bar("correcting", shown=progress) as tick:
        passages = write(checkpoint, text, settings_of(checkpoint, settings), **how, watch=tick)
    return Passages(passages, partial(checkpoint.replay, text, progress=progress, **how, **settings))


def _texts(stop: Sequence[str]) -> tuple[str, ...]:
    return (stop,) if isinstance(stop, str) else tuple(stop)
