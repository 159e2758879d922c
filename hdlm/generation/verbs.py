"""The implementation of `Checkpoint.generate` and `Checkpoint.infill`, where the arguments are documented."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hdlm.checkpoint import Checkpoint
from hdlm.generation.other_names import OTHER_NAMES, OtherNames, with_other_names
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
    """Generate text that continues a prompt; see `Checkpoint.generate`."""
    if BLANK.search(prompt):
        raise ValueError("The prompt has gaps, [MASK]: use `infill` for such a text.")
    if isinstance(stop, str):
        stop = (stop,)
    with steps_bar("writing", shown=progress) as tick:
        return write(
            checkpoint,
            prompt,
            _settings(checkpoint, settings),
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
    with steps_bar("filling in", shown=progress) as tick:
        return write(
            checkpoint,
            text,
            _settings(checkpoint, settings),
            num=num,
            batch_size=batch_size,
            seed=seed,
            watch=tick,
        )


def _settings(checkpoint: Checkpoint, given: Mapping[str, Any]) -> Settings:
    """The settings that are given by their names here or by those of other tools."""
    other = {name: value for name, value in given.items() if name in OTHER_NAMES}
    own = read_table(Settings, {name: value for name, value in given.items() if name not in other})
    return with_other_names(own, read_table(OtherNames, other), checkpoint)
