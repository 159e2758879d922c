"""Compare every fast mode of the shipped model with exact sampling at equal NFE, by the quality of the text.

    python -m benchmarks.quality --output results/quality        some minutes on two cores
    python -m benchmarks.quality --output results/quick --quick  a smoke test

Each mode has two numbers at each number of function evaluations (NFE, of a sequence): generative perplexity under the
model's own exact autoregressive likelihood, and the entropy of a sample's tokens. Neither is enough alone: text that
repeats itself gets a low perplexity from every judge (arXiv 2409.02908). A second table measures the error of the
approximate cache: the change of the predictions along texts that were written without it. Writes quality.json,
quality.md and quality.png.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm import Block, Settings, algorithm, flat, load, sample, write
from hdlm.checkpoint import Checkpoint
from hdlm.data import corpus, split
from hdlm.evaluation import windows
from hdlm.evaluation.generation.judge import CheckpointJudge, generative_perplexity
from hdlm.evaluation.generation.metrics import Estimate, diversity, mean
from hdlm.evaluation.generation.scoring import PERPLEXITY, pieces, text_of
from hdlm.evaluation.likelihood.grids import as_times, measured_profile
from hdlm.evaluation.records import protocol
from hdlm.evaluation.text import Text, tokenize_documents
from hdlm.package_data import pretrained
from hdlm.progress import share_bar
from hdlm.sampling import ApproximateCache, Execution, Frame, Move, Prompt
from hdlm.view.figures import figure, only_ticks
from hdlm.view.palette import INK, RULE, SERIES
from hdlm.view.report import markdown_table, number

MODEL, HELD_OUT = "kjv-epsilon-4m", 0.025
FULL = "blocks of 16, full attention"
ALL = "ancestral, uniform grid, approximate cache of all positions"
REFRESHES = (2, 4, 8, None)
EXACT, REAL = "exact: one at a time (first-hitting)", "real text, held out"
AT_A_TIME = 16
MARKERS = "osD^vP*X"


@final
@dataclass(frozen=True)
class Point:
    """The numbers of one mode at one NFE.

    Attributes:
        mode: Name of the mode.
        nfe: Calls of the network for a sequence; None for real text.
        perplexity: Generative perplexity under the judge.
        entropy: Token entropy of the samples, in nats.
        seconds: Time for a sequence, in a batch.
        share: Share of the canvas that a call computes, on average.
    """

    mode: str
    nfe: Estimate | None
    perplexity: Estimate
    entropy: Estimate
    seconds: float
    share: float


@final
@dataclass(frozen=True)
class Deviation:
    """The error of an approximate cache, along texts that were written without it.

    Attributes:
        refresh: Number of calls after which everything is computed again; None for never.
        divergence: Divergence of predictions with the cache from those without it, in nats, where a word is written.
        largest: The largest of these divergences.
        difference: Mean absolute difference of log probabilities, over words and positions.
        most: The largest of these differences.
        share: As in `Point`.
    """

    refresh: int | None
    divergence: Estimate
    largest: float
    difference: float
    most: float
    share: float


@final
class Replay:
    """A step that writes the tokens of another run, and records the predictions of the network at those positions.

    Args:
        states: Tokens of each sequence after each number of steps.
    """

    def __init__(self, states: Int[Tensor, "n steps l"]) -> None:
        self.said: dict[tuple[int, int], Tensor] = {}
        self._states = states

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        """Record the predictions, and write the tokens."""
        steps = torch.as_tensor(move.step).expand(len(x), 1)[:, 0]
        new = self._states[move.sequence, steps + 1]
        changed = new != x
        if changed.any():
            parts = move.reading.log_clean(changed).split(changed.sum(1).tolist())
            for sequence, step, rows in zip(move.sequence.tolist(), steps.tolist(), parts, strict=True):
                self.said[sequence, step] = rows[:, :-1]
        return new


@final
@dataclass(frozen=True)
class Bench:
    """The settings that all points share.

    Attributes:
        checkpoint: The model, which is its own judge.
        num: Number of samples for each point.
        length: Tokens of a sample.
        seed: Seed of all random numbers.
    """

    checkpoint: Checkpoint
    num: int
    length: int
    seed: int

    def point(self, mode: str, settings: Settings, cache: ApproximateCache | None = None) -> Point:
        """Generate samples and judge them, with full attention if the mode asks for it."""
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
        calls = sum(one.evaluations for one in passages)
        share = sum(one.computed for one in passages) / (calls * self.length)
        nfe = mean([float(one.evaluations) for one in passages])
        return Point(mode, nfe, *self._scores(rows, [one.text for one in passages]), seconds, share)

    def real(self, text: Text) -> Point:
        """The point of as much real text."""
        rows = pieces(text.tokens.long(), self.num, self.length, self.seed).tolist()
        tokenizer = self.checkpoint.tokenizer
        return Point(REAL, None, *self._scores(rows, [text_of(row, tokenizer) for row in rows]), 0.0, 0.0)

    def _scores(self, rows: Sequence[Sequence[int]], texts: Sequence[str]) -> tuple[Estimate, Estimate]:
        judge = CheckpointJudge(self.checkpoint, self.checkpoint.tokenizer, MODEL)
        return generative_perplexity(judge, texts)[PERPLEXITY], diversity(rows)["entropy"]

    def deviations(self, steps: int, refreshes: Sequence[int | None]) -> list[Deviation]:
        """The errors of the approximate cache of all positions, along a flat schedule, with ancestral sampling."""
        denoiser, plan = self.checkpoint.denoiser, flat(self.length, steps)
        states = torch.zeros(self.num, steps + 1, self.length, dtype=torch.long)

        def watch(frame: Frame) -> None:
            states[frame.sequence, frame.step], states[frame.sequence, frame.step + 1] = (
                frame.before,
                frame.after,
            )

        options: dict[str, Any] = {
            "num_sequences": self.num,
            "seed": self.seed,
            "prompt": Prompt.prefix([self.checkpoint.vocabulary.bos or 0], self.length),
        }
        plain, regime = Execution(AT_A_TIME), self.checkpoint.regime(plan)
        step = algorithm("original", denoiser.process)
        sample(denoiser, regime, step, watch=watch, execution=plain, **options)
        exact, found = Replay(states), []
        sample(denoiser, regime, exact, execution=plain, **options)
        for refresh in refreshes:
            replay = Replay(states)
            done = sample(
                denoiser,
                regime,
                replay,
                execution=replace(plain, approximate=ApproximateCache(refresh, active=True)),
                **options,
            )
            off = torch.cat([exact.said[key] - rows for key, rows in replay.said.items()])
            law = torch.cat([exact.said[key] for key in replay.said]).double().exp()
            divergence = (law * off).sum(1)
            share = float(done.computed.sum() / (done.evaluations.sum() * self.length))
            size = off.abs()
            largest, difference, most = (float(one) for one in (divergence.max(), size.mean(), size.max()))
            found.append(Deviation(refresh, mean(divergence.tolist()), largest, difference, most, share))
        return found

    def learned(self, text: Text, steps: Sequence[int]) -> dict[int, str]:
        """Grids learned on held-out text."""
        (whole, *_) = windows(text.tokens, self.length)
        plan = Block(self.length, self.length, 1)
        profile = measured_profile(self.checkpoint, plan, whole.tokens[: self.num], seed=self.seed)
        return {count: ",".join(map(str, as_times(profile.best(count), self.checkpoint))) for count in steps}


def modes(
    length: int, steps: Sequence[int], learned: Mapping[int, str], thresholds: Sequence[float]
) -> list[tuple[str, Settings]]:
    """Every point: the name of its mode, and how to sample. All positions are written together."""

    def whole(name: str, count: int, grid: str | None = None, eta: float = 0.0) -> Settings:
        return Settings(name, eta, "flat", steps=count, grid=grid, length=length)

    found = [(EXACT, whole("first_hitting", 1))]
    for count in steps:
        found += [
            ("ancestral, uniform grid", whole("original", count)),
            ("ancestral, cosine grid", whole("original", count, "cosine")),
            ("ancestral, learned grid", whole("original", count, learned[count])),
            ("ACS, eta 0.3 (heuristic)", whole("acs", count, eta=0.3)),
            ("by confidence (heuristic)", whole("confidence", count)),
        ]
    found += [("threshold (heuristic)", whole("threshold", 1, eta=eta)) for eta in thresholds]
    return found + [("entropy bound (heuristic)", whole("entropy", 1, eta=eta)) for eta in thresholds]


def approximate_modes(length: int, steps: int) -> list[tuple[str, Settings, ApproximateCache | None]]:
    """Points of approximate caches: along flat schedules, and in blocks with full attention between settled positions.

    The model was trained with block-causal attention, so compare the points in blocks only with one another.
    """
    whole = Settings("original", 0.0, "flat", steps=steps, length=length)
    blocks = Settings("original", 0.0, "block", width=min(16, length), steps=8, length=length)
    return [
        *((f"{ALL}, {_when(count)}", whole, ApproximateCache(count, active=True)) for count in REFRESHES),
        (f"{FULL}, recomputed", blocks, None),
        (f"{FULL}, approximate cache", blocks, ApproximateCache()),
        (f"{FULL}, approximate cache, refreshed every 4 calls", blocks, ApproximateCache(4)),
    ]


def _when(refresh: int | None) -> str:
    return {None: "never refreshed", 1: "refreshed at every call"}.get(
        refresh, f"refreshed every {refresh} calls"
    )


def table(points: Sequence[Point]) -> str:
    """The table in Markdown, ordered by mode."""
    rows = [
        [
            "mode",
            "NFE",
            "positions computed",
            "generative perplexity",
            "token entropy (nats)",
            "ms per sequence",
        ]
    ]
    for one in sorted(points, key=lambda point: (point.mode, point.nfe.value if point.nfe else 0.0)):
        nfe, share, ms = "–", "–", "–"
        if one.nfe is not None:
            nfe, share, ms = f"{one.nfe.value:.1f}", f"{one.share:.1%}", f"{1000 * one.seconds:.0f}"
        scores = [number(score.value, score.error) for score in (one.perplexity, one.entropy)]
        rows.append([one.mode, nfe, share, *scores, ms])
    return markdown_table(rows)


def table_of_deviations(deviations: Sequence[Deviation]) -> str:
    """The table in Markdown, in the given order."""
    rows = [
        [
            "approximate cache of all positions",
            "positions computed",
            "divergence (nats)",
            "largest",
            "difference of log p",
            "largest",
        ]
    ]
    for one in deviations:
        divergence = number(one.divergence.value, one.divergence.error)
        numbers = [f"{value:.3g}" for value in (one.largest, one.difference, one.most)]
        rows.append([_when(one.refresh), f"{one.share:.1%}", divergence, *numbers])
    return markdown_table(rows)


def draw(points: Sequence[Point], output: Path) -> None:
    """Both numbers over NFE, with bars of two standard errors; real text and exact sampling are lines."""
    points = [one for one in points if not one.mode.startswith((FULL, ALL))]
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


def measured(bench: Bench, steps: Sequence[int], thresholds: Sequence[float]) -> Iterator[Point]:
    """Measure all points, one after the other."""
    held_out = split(tuple(corpus("kjv").documents()), HELD_OUT).validation
    text = tokenize_documents(bench.checkpoint.tokenizer, held_out, bench.length * bench.num * 2)
    yield bench.real(text)
    todo = [(*one, None) for one in modes(bench.length, steps, bench.learned(text, steps), thresholds)]
    todo += approximate_modes(bench.length, steps[-1])
    with share_bar("measuring", shown=True) as bar:
        for done, one in enumerate(todo):
            bar(done / len(todo), one[0])
            yield bench.point(*one)


def main() -> None:
    """Measure, write the files and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder for the results")
    parser.add_argument("--num", type=int, help="samples for each point (default: 32)")
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of all random numbers (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="few short samples, to check that the program works"
    )
    options = parser.parse_args()
    checkpoint = load(pretrained() / MODEL)
    length, steps, thresholds = checkpoint.length, (4, 8, 16, 32), (0.1, 0.3, 0.6)
    if options.quick:
        length, steps, thresholds = 24, (2, 4), (0.3,)
    bench = Bench(checkpoint, options.num or (4 if options.quick else 32), length, options.seed)
    deviations = bench.deviations(steps[-1], (1, *REFRESHES))
    points: list[Point] = []
    for point in measured(bench, steps, thresholds):
        points.append(point)
        document: dict[str, Any] = {
            "model": MODEL,
            "judge": f"{MODEL}, its own exact autoregressive likelihood",
            "versions": protocol.versions(),
            "threads": torch.get_num_threads(),
            "deviations": [asdict(one) for one in deviations],
            "points": [asdict(one) for one in points],
        }
        protocol.write_result(options.output / "quality.json", document)
    text = f"{table(points)}\n\n{table_of_deviations(deviations)}\n"
    (options.output / "quality.md").write_text(text, encoding="utf-8")
    draw(points, options.output / "quality.png")
    print(text, end="")


if __name__ == "__main__":
    main()
