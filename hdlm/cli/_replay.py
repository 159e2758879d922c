"""Replays of what a `Trace` took down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hdlm.checkpoint import Checkpoint
    from hdlm.sampling import Trace
    from hdlm.view.replay import Replay


def replay_of(checkpoint: Checkpoint, trace: Trace, sequence: int) -> Replay:
    """How a sequence came to be, in words."""
    from hdlm.view.replay import Replay, frames

    tokenizer = checkpoint.tokenizer

    def read(token: int) -> str | None:
        return None if token == trace.mask_id else tokenizer.piece(token)

    return Replay(frames(trace.start[sequence], trace.edits(sequence), read))


def play_replays(replays: Mapping[str, Replay], seconds: float = 6.0) -> None:
    """Play replays side by side on the terminal, or print some of their frames where there is none."""
    from rich.console import Console

    from hdlm.view.replay import play

    play(replays, console=Console(), seconds=seconds)
