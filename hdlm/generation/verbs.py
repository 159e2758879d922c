"""What `Checkpoint.generate` and `Checkpoint.infill` do; their arguments are documented there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hdlm.checkpoint import Checkpoint
from hdlm.generation.passages import Ending
from hdlm.generation.progress import steps_bar
from hdlm.generation.settings import Settings
from hdlm.generation.text import BLANK, Passage
from hdlm.generation.write import write
from hdlm.strict_config import read_table

__all__ = ["generate", "infill"]


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
) -> list[Passage]:
    """Write text that continues a prompt; see `Checkpoint.generate`."""
    if BLANK.search(prompt):
        raise ValueError("The prompt has gaps, [MASK]: give such a text to `infill`.")
    if isinstance(stop, str):
        stop = (stop,)
    how = read_table(Settings, settings)
    with steps_bar("writing", shown=progress) as tick:
        return write(
            checkpoint,
            prompt,
            how,
            num=num,
            batch_size=batch_size,
            seed=seed,
            ending=Ending(stop_at_end, tuple(stop)),
            watch=tick,
            stream=stream,
        )


def infill(
    checkpoint: Checkpoint,
    text: str,
    *,
    num: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> list[Passage]:
    """Fill in the gaps of a text; see `Checkpoint.infill`."""
    if not BLANK.search(text):
        raise ValueError("The text has no gap: write [MASK] for one token, [MASK:5] for five.")
    how = read_table(Settings, settings)
    with steps_bar("filling in", shown=progress) as tick:
        return write(checkpoint, text, how, num=num, batch_size=batch_size, seed=seed, watch=tick)
