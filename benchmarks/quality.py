"""What fast sampling costs in quality: every fast mode of the shipped model against exact sampling at equal NFE.

    python -m benchmarks.quality --output results/quality        some minutes on two cores
    python -m benchmarks.quality --output results/quick --quick  a smoke test

Two numbers of each mode at each number of function evaluations (NFE, of a sequence): generative perplexity under the
same model's exact likelihood as a writer of one token after the other, and the entropy of a sample's tokens. Neither
means anything alone: text that repeats itself pleases every judge (arXiv 2409.02908). Writes quality.json, quality.md
and quality.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch

from hdlm import Block, Settings, load_checkpoint, write
from hdlm.checkpoint import Checkpoint
from hdlm.cli._progress import share_bar
from hdlm.data import corpus, split
from hdlm.evaluation import protocol, windows
from hdlm.evaluation.grids import as_times, measured_profile
from hdlm.evaluation.judge import CheckpointJudge, generative_perplexity
from hdlm.evaluation.metrics import Estimate, diversity, mean
from hdlm.evaluation.scoring import PERPLEXITY, pieces, text_of
from hdlm.evaluation.text import Text, read_text
from hdlm.generation import tokenizer_of
from hdlm.package_data import pretrained
from hdlm.sampling import ApproximateCache
from hdlm.view.figures import figure, only_ticks
from hdlm.view.palette import INK, RULE, SERIES
from hdlm.view.report import markdown_table, number

MODEL, HELD_OUT = "kjv-epsilon-4m", 0.025
FULL = "blocks of 16 that see later ones"
EXACT, REAL = "exact: one at a time (first-hitting)", "real text, held out"
AT_A_TIME = 16
MARKERS = "osD^vP*X"


@final
@dataclass(frozen=True)
class Point:
    """One mode at one price.

    Attributes:
        mode: What to call it.
        nfe: Calls of the network for a sequence; None of real text.
        perplexity: By the judge.
        entropy: Nats.
        seconds: Time for a sequence, in a batch.
    """

    mode: str
    nfe: Estimate | None
    perplexity: Estimate
    entropy: Estimate
    seconds: float


@final
@dataclass(frozen=True)
class Bench:
    """What all points share.

    Attributes:
        checkpoint: The model, which is its own judge.
        num: Samples a point.
        length: Tokens of a sample.
        seed: Of all random numbers.
    """

    checkpoint: Checkpoint
    num: int
    length: int
    seed: int

    def point(self, mode: str, settings: Settings, cache: ApproximateCache | None = None) -> Point:
        """Write and judge; where the mode says so, as networks with full attention do."""
        model = replace(self.checkpoint, context="full") if mode.startswith(FULL) else self.checkpoint
        begin = time.perf_counter()
        passages = write(
            model,
            "",
            settings,
            num=self.num,
            batch_size=AT_A_TIME,
            seed=self.seed,
            approximate=cache,
        )
        seconds = (time.perf_counter() - begin) / self.num
        rows = [list(one.tokens[one.given :]) for one in passages]
        nfe = mean([float(one.evaluations) for one in passages])
        return Point(mode, nfe, *self._scores(rows, [one.text for one in passages]), seconds)

    def real(self, text: Text) -> Point:
        """As much real text."""
        rows = pieces(text.tokens.long(), self.num, self.length, self.seed).tolist()
        tokenizer = tokenizer_of(self.checkpoint)
        return Point(REAL, None, *self._scores(rows, [text_of(row, tokenizer) for row in rows]), 0.0)

    def _scores(self, rows: Sequence[Sequence[int]], texts: Sequence[str]) -> tuple[Estimate, Estimate]:
        judge = CheckpointJudge(self.checkpoint, tokenizer_of(self.checkpoint), MODEL)
        return generative_perplexity(judge, texts)[PERPLEXITY], diversity(rows)["entropy"]

    def learned(self, text: Text, steps: Sequence[int]) -> dict[int, str]:
        """Grids learned on held-out text."""
        (whole, *_) = windows(text.tokens, self.length)
        plan = Block(self.length, self.length, 1)
        profile = measured_profile(self.checkpoint, plan, whole.tokens[: self.num], seed=self.seed)
        return {count: ",".join(map(str, as_times(profile.best(count), self.checkpoint))) for count in steps}


def modes(
    length: int, steps: Sequence[int], learned: Mapping[int, str], thresholds: Sequence[float]
) -> list[tuple[str, Settings]]:
    """Every point: what to call its mode, and how to write. All positions are written together."""

    def flat(algorithm: str, count: int, grid: str | None = None, eta: float = 0.0) -> Settings:
        return Settings(algorithm, eta, "flat", steps=count, grid=grid, length=length)

    found = [(EXACT, flat("first_hitting", 1))]
    for count in steps:
        found += [
            ("ancestral, uniform grid", flat("original", count)),
            ("ancestral, cosine grid", flat("original", count, "cosine")),
            ("ancestral, learned grid", flat("original", count, learned[count])),
            ("ACS, eta 0.3 (heuristic)", flat("acs", count, eta=0.3)),
            ("by confidence (heuristic)", flat("confidence", count)),
        ]
    found += [("threshold (heuristic)", flat("threshold", 1, eta=eta)) for eta in thresholds]
    return found + [("entropy bound (heuristic)", flat("entropy", 1, eta=eta)) for eta in thresholds]


def approximate_modes(length: int) -> list[tuple[str, Settings, ApproximateCache | None]]:
    """What the approximate cache costs, in blocks of which settled ones look at all that is settled.

    The model was trained to look back only, so only the difference to the first of them means anything.
    """
    blocks = Settings("original", 0.0, "block", width=min(16, length), steps=8, length=length)
    return [
        (f"{FULL}, recomputed", blocks, None),
        (f"{FULL}, approximate cache", blocks, ApproximateCache()),
        (f"{FULL}, approximate cache, refreshed every 4 calls", blocks, ApproximateCache(4)),
    ]


def table(points: Sequence[Point]) -> str:
    """Markdown, by mode."""
    rows = [["mode", "NFE", "generative perplexity", "token entropy (nats)", "ms a sequence"]]
    for one in sorted(points, key=lambda point: (point.mode, point.nfe.value if point.nfe else 0.0)):
        nfe, ms = ("–", "–") if one.nfe is None else (f"{one.nfe.value:.1f}", f"{1000 * one.seconds:.0f}")
        scores = [number(score.value, score.error) for score in (one.perplexity, one.entropy)]
        rows.append([one.mode, nfe, *scores, ms])
    return markdown_table(rows)


def draw(points: Sequence[Point], output: Path) -> None:
    """Both numbers over NFE, with bars of two standard errors; real text and exact sampling are lines."""
    points = [one for one in points if not one.mode.startswith(FULL)]
    names = list(dict.fromkeys(one.mode for one in points if one.mode not in (EXACT, REAL)))
    with figure(9.6, 4.6, output) as drawing:
        both = drawing.subplots(1, 2)
        for axes, measure in zip(both, ("perplexity", "entropy"), strict=True):
            for one in points:
                if one.mode in (EXACT, REAL):
                    style = "-" if one.mode == EXACT else ":"
                    axes.axhline(getattr(one, measure).value, color=INK, ls=style, lw=1.2, label=one.mode)
            for place, name in enumerate(names):
                own = [one for one in points if one.mode == name]
                scores = [getattr(one, measure) for one in own]
                axes.errorbar(
                    [one.nfe.value for one in own if one.nfe],
                    [score.value for score in scores],
                    [2 * (score.error or 0.0) for score in scores],
                    marker=MARKERS[place],
                    color=SERIES[place % len(SERIES)],
                    lw=1.2,
                    ms=4.5,
                    label=name,
                )
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:.0f}")
            axes.set_xlabel("function evaluations of a sequence (NFE)")
            axes.grid(color=RULE, linewidth=0.6)
            axes.set_axisbelow(True)
            only_ticks(axes)
        both[0].set_yscale("log")
        both[0].set_title("Generative perplexity")
        both[1].set_title("Token entropy, nats")
        drawing.legend(*both[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


def measured(options: argparse.Namespace) -> Iterator[Point]:
    """All points, one after the other."""
    checkpoint = load_checkpoint(pretrained() / MODEL)
    length, steps, thresholds = checkpoint.length, (4, 8, 16, 32), (0.1, 0.3, 0.6)
    if options.quick:
        length, steps, thresholds = 24, (2, 4), (0.3,)
    bench = Bench(checkpoint, options.num or (4 if options.quick else 32), length, options.seed)
    held_out = split(tuple(corpus("kjv").documents()), HELD_OUT).validation
    text = read_text(tokenizer_of(checkpoint), held_out, length * bench.num * 2)
    yield bench.real(text)
    todo = [(*one, None) for one in modes(length, steps, bench.learned(text, steps), thresholds)]
    todo += approximate_modes(length)
    with share_bar("measuring", shown=True) as bar:
        for done, one in enumerate(todo):
            bar(done / len(todo), one[0])
            yield bench.point(*one)


def main() -> None:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--num", type=int, help="samples a point (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="of all randomness (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="short and few: whether it works")
    options = parser.parse_args()
    points: list[Point] = []
    for point in measured(options):
        points.append(point)
        document: dict[str, Any] = {
            "model": MODEL,
            "judge": f"{MODEL}, its own exact autoregressive likelihood",
            "versions": protocol.versions(),
            "threads": torch.get_num_threads(),
            "points": [asdict(one) for one in points],
        }
        protocol.write(options.output / "quality.json", document)
    (options.output / "quality.md").write_text(table(points) + "\n", encoding="utf-8")
    draw(points, options.output / "quality.png")
    print(table(points))


if __name__ == "__main__":
    main()
