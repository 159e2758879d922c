"""The generation of a text, frame by frame: tokens that were unmasked, corrected and masked again at each step.

In a terminal the frames play in place, in colour; elsewhere a few of them are printed as plain lines.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from hdlm.generation.recording import TraceDocument
from hdlm.view.moments import TracedRun, aligned
from hdlm.view.palette import CORRECTED, FRESH, MUTED, REMASKED

TextFrame = Sequence[str | None]
"""The text of each token; None for a mask."""

MASK = "░"
"""A mask, repeated for each character of the final token, so that lines do not move."""
PLAIN_FRAMES = 5
"""Number of frames that are printed outside a terminal."""


class TokenChange(Enum):
    """The change of a token in a step."""

    NOTHING = "unchanged"
    UNMASKED = "unmasked"
    CORRECTED = "corrected"
    REMASKED = "masked again"


STYLES = {
    TokenChange.NOTHING: "",
    TokenChange.UNMASKED: f"bold {FRESH}",
    TokenChange.CORRECTED: f"bold underline {CORRECTED}",
    TokenChange.REMASKED: f"bold {REMASKED}",
}


def token_changes(before: TextFrame, after: TextFrame) -> list[TokenChange]:
    """The change of each token between two frames.

    Raises:
        ValueError: If the frames differ in length.
    """
    if len(before) != len(after):
        raise ValueError(f"frames of one replay have equal lengths; got {len(before)} and {len(after)}.")
    return [_change(old, new) for old, new in zip(before, after, strict=True)]


def _masked(end: str | None) -> str:
    """The characters of a mask whose final token is `end`, with its leading space."""
    word = (end or MASK).removeprefix(" ")
    space = " " if end and end.startswith(" ") else ""
    return space + MASK * max(len(word), 1)


def _change(old: str | None, new: str | None) -> TokenChange:
    if old == new:
        return TokenChange.NOTHING
    if old is None:
        return TokenChange.UNMASKED
    return TokenChange.REMASKED if new is None else TokenChange.CORRECTED


@dataclass(frozen=True)
class Replay:
    """The frames of one sequence, first to last.

    Attributes:
        frames: The frames of one length.
        captions: A line for each frame; by default its number.

    Raises:
        ValueError: If there are no frames, or they differ in length.
    """

    frames: Sequence[TextFrame]
    captions: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not self.frames:
            raise ValueError("a replay needs at least one frame; got none.")
        for frame in self.frames[1:]:
            token_changes(self.frames[0], frame)

    def __len__(self) -> int:
        return len(self.frames)

    def text(self, number: int) -> Text:
        """Frame `number` in colours; after the last frame, that frame without changes."""
        resting = number >= len(self.frames)
        frame, final = self.frames[-1 if resting else number], self.frames[-1]
        before = frame if resting or number == 0 else self.frames[number - 1]
        text = Text()
        for token, end, change in zip(frame, final, token_changes(before, frame), strict=True):
            resting_style = MUTED if token is None else ""
            text.append(_masked(end) if token is None else token, STYLES[change] or resting_style)
        return text

    def caption(self, number: int) -> str:
        """The line of frame `number`, or of the last one."""
        number = min(number, len(self.frames) - 1)
        return self.captions[number] if self.captions else f"step {number}/{len(self.frames) - 1}"

    def count(self, change: TokenChange) -> int:
        """The number of times that `change` happened over all frames."""
        pairs = zip(self.frames[:-1], self.frames[1:], strict=True)
        return sum(token_changes(before, after).count(change) for before, after in pairs)


def replay_of(document: TraceDocument, sequence: int = 0) -> Replay:
    """The replay of a traced sequence.

    Args:
        document: The trace.
        sequence: Place of the sequence in the list of the trace.
    """
    (replay,) = replays_of([TracedRun(document, sequence)])
    return replay


def replays_of(runs: Sequence[TracedRun]) -> list[Replay]:
    """The replays of several runs, aligned by their evaluations."""
    rows = zip(*aligned(runs)[:-1], strict=True)  # the player itself rests at the end
    return [
        Replay(
            [[run.piece(token) for token in run.tokens(moment)] for moment in row],
            [run.caption(moment) for moment in row],
        )
        for run, row in zip(runs, rows, strict=True)
    ]


def play(replays: Mapping[str, Replay], *, console: Console | None = None, seconds: float = 6.0) -> None:
    """Show replays side by side, each under its title.

    Args:
        replays: The replays; shorter ones stay at their last frame.
        console: A terminal plays them; any other console gets `PLAIN_FRAMES` frames of each as lines of text; by
                default standard output.
        seconds: Duration in a terminal.
    """
    console = Console() if console is None else console
    if not console.is_terminal:
        for title, replay in replays.items():
            _print_plain(title, replay, console)
        return
    longest = max(map(len, replays.values()))
    with Live(console=console, auto_refresh=False) as live:
        for number in range(longest + 1):
            live.update(_screen(replays, number, console), refresh=True)
            time.sleep(seconds / (longest + 1))


def _screen(replays: Mapping[str, Replay], number: int, console: Console) -> Group:
    """One frame of every replay, side by side if each has 40 columns, otherwise one below the other."""
    panels = [
        Panel(
            replay.text(number),
            title=f"[bold]{title}[/]",
            subtitle=f"[{MUTED}]{replay.caption(number)}[/]",
            border_style=MUTED,
            padding=(1, 2),
        )
        for title, replay in replays.items()
    ]
    beside = console.width >= 40 * len(panels)
    table = Table.grid(expand=True, padding=(0, 1))
    for _ in panels if beside else panels[:1]:
        table.add_column(ratio=1)
    for row in [panels] if beside else [[panel] for panel in panels]:
        table.add_row(*row)
    key = Text("  ").join(Text(change.value, style) for change, style in STYLES.items() if style)
    return Group(table, Text(" ") + key)


def _print_plain(title: str, replay: Replay, console: Console) -> None:
    last = len(replay) - 1
    shown = sorted({round(last * part / (PLAIN_FRAMES - 1)) for part in range(PLAIN_FRAMES)})
    counts = ", ".join(
        f"{replay.count(change)} {change.value}" for change in STYLES if change is not TokenChange.NOTHING
    )
    console.print(f"{title}: {last} steps, {counts}", markup=False, highlight=False, soft_wrap=True)
    for number in shown:
        line = " ".join(replay.text(number).plain.split())
        console.print(
            f"  step {number:>{len(str(last))}}  {line}", markup=False, highlight=False, soft_wrap=True
        )
