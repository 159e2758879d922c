"""Replays as one HTML file without any other file: the traces as data, and the script and the style that play them.

`static/replay.js` documents the script, which other pages can load as a file. The traces are data that the script
reads, never markup. The policy of the page allows its own script and style only, by their hashes, and no network.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from hdlm.atomic import replacing
from hdlm.checkpoint import Checkpoint
from hdlm.generation.other_names import settings_of
from hdlm.generation.passages import Ending
from hdlm.generation.progress import steps_bar
from hdlm.generation.recording import TraceDocument, record

__all__ = ["ReplayPage", "replay", "static_files"]

_MOST = 2
"""Largest number of traces in a page."""


def static_files() -> Path:
    """The folder with `replay.js` and `replay.css`, for a server."""
    return Path(__file__).parent / "static"


@final
@dataclass(frozen=True)
class ReplayPage:
    """One trace, or two side by side, as a page that plays them. A notebook shows it where it is the last expression.

    Attributes:
        traces: The traces, one or two.
        title: Title of the page.
        sequence: Place of the sequence that is shown first, in the list of each trace.
        autoplay: Whether the page plays at once, for readers who do not prefer reduced motion.
    """

    traces: tuple[TraceDocument, ...]
    title: str = "hdlm replay"
    sequence: int = 0
    autoplay: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.traces) <= _MOST:
            raise ValueError(f"a replay shows one or two traces; got {len(self.traces)}.")
        fewest = min(len(trace.sequences) for trace in self.traces)
        if not 0 <= self.sequence < fewest:
            raise ValueError(f"a replay shows sequence {self.sequence}, but a trace has only {fewest}.")

    def html(self) -> str:
        """The page as text."""
        script, style = (
            (static_files() / name).read_text(encoding="utf-8") for name in ("replay.js", "replay.css")
        )
        data = _inert(
            json.dumps([trace.to_dict() for trace in self.traces], ensure_ascii=False, separators=(",", ":"))
        )
        options = html.escape(json.dumps({"autoplay": self.autoplay, "sequence": self.sequence}))
        title = html.escape(self.title)
        policy = f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'"
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{style}</style>\n</head>\n"
            f'<body class="hdlm-page">\n<main>\n<h1>{title}</h1>\n<div id="hdlm-replay"></div>\n</main>\n'
            f'<script type="application/json" id="hdlm-traces" data-options="{options}">{data}</script>\n'
            f"<script>{script}</script>\n</body>\n</html>\n"
        )

    def save(self, path: str | Path) -> None:
        """Write the page into a file, completely or not at all."""
        with replacing(Path(path)) as temporary:
            temporary.write_text(self.html(), encoding="utf-8")

    def _repr_html_(self) -> str:
        """The page in a frame of its own, which cannot reach the notebook."""
        height = 900 if len(self.traces) == 1 else 1200
        return (
            f'<iframe title="{html.escape(self.title)}" sandbox="allow-scripts" width="100%" height="{height}" '
            f'frameborder="0" srcdoc="{html.escape(self.html())}"></iframe>'
        )


def replay(
    checkpoint: Checkpoint,
    prompt: str = "",
    *,
    num: int = 1,
    seed: int = 0,
    batch_size: int | None = None,
    stop: Sequence[str] = (),
    stop_at_end: bool = False,
    alternatives: int = 5,
    noise: float | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> ReplayPage:
    """Generate text with a trace, and return a page that plays it; see `Checkpoint.replay`."""
    with steps_bar("writing", shown=progress) as tick:
        _, document = record(
            checkpoint,
            prompt,
            settings_of(checkpoint, settings),
            num=num,
            seed=seed,
            batch_size=batch_size,
            ending=Ending(stop_at_end, (stop,) if isinstance(stop, str) else tuple(stop)),
            alternatives=alternatives,
            noise=noise,
            watch=tick,
        )
    return ReplayPage((document,))


def _hash(text: str) -> str:
    """The source of a policy that allows exactly this inline text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _inert(data: str) -> str:
    """JSON text without characters that could end its element."""
    for sign in "<>&\u2028\u2029":
        data = data.replace(sign, f"\\u{ord(sign):04x}")
    return data
