"""Every recorded step of the published samplers, replayed with its own random numbers.

Compared, step by step (`original` and `acs`; whole canvas and block by block; with a prompt and without):

- A first `rand[b, l]` says which masks fall, those below `1 - s/t`. For `acs` a second one says which visible words of
  the open part are redrawn, those below `eta s/t`, prompts included, which are put back afterwards. Then comes a
  `rand[n, v]` for either, which Gumbel noise is made of. Our steps, fed these numbers, choose the same positions and
  write the same words: a Gumbel draw becomes the uniform number that falls on its word.
- Two things differ by intent. The published steps draw from all rows, the mask's too, so that a mask can stay in
  finished text (FAULTS 6); ours draw from the words. And the last published level is `1e-5` where ours is 0.
- The published `semi_diff` lets everybody see everybody, finished blocks see the open one; so does this test. `sample`
  asks the network what its hyperschedule allows.

Faults, for which the published law is read off the record, held against the schedule, to which ours is held too:

- `remask` and `remask_adhoc_shuffle` mask *every* position anew with probability `s/t` where the schedule wants
  `s`, and take back words of blocks that are finished (FAULTS 4).
- `remdm` lifts nearly all masks in its first step and never takes a word back (FAULTS 4).
- The gamma samplers write everything in the first step that they may (FAULTS 3).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, Denoiser, ForwardContext
from hdlm.hyperschedule import AbstractHyperschedule, Block, PublishedSlide, flat
from hdlm.network import Previous
from hdlm.noise_schedule import LogLinear
from hdlm.parameterization import LogScore, Mean
from hdlm.process import EpsilonHybrid, GammaHybrid
from hdlm.randomness import Randomness
from hdlm.sampling import (
    Analytic,
    Ancestral,
    Answer,
    Euler,
    Frame,
    Move,
    Reading,
    Step,
    algorithm,
)
from hdlm.sampling.steps import ancestral, correction
from hdlm.verification import FAILURE_RATE, chi_square
from tests.along import sample_along
from tests.parity.test_golden_network import Golden
from tests.tiny import FixedAnswer

WORDS, LENGTH, WIDTH, STEPS, ETA = 97, 12, 4, 4, 0.3
MASK = WORDS
REPLAYED = [
    f"{walk}_{name}" for walk in ("full_diff", "semi_diff") for name in ("original", "acs", "acs_prompt")
]
REMASKED = [
    f"{walk}_{name}"
    for walk in ("full_diff", "semi_diff")
    for name in ("remask", "remask_prompt", "remask_adhoc_shuffle")
]
REMDM = ["full_diff_remdm", "semi_diff_remdm"]
GAMMA = [f"gamma_{order}_{walk}" for order in ("NAR", "SAR") for walk in ("block_w4_t3", "simple_w4_t4")]
HYPERSCHEDULES: dict[str, AbstractHyperschedule] = {
    "full_diff": flat(LENGTH, STEPS),
    "semi_diff": Block(LENGTH, WIDTH, STEPS),
    "gamma_block": Block(LENGTH, WIDTH, 3),
    "gamma_simple": PublishedSlide(LENGTH, WIDTH, 4),
}
PROCESS = EpsilonHybrid(WORDS, 0.1)
PURPOSES = ((ancestral._WHEN, ancestral._MODEL), (correction._CHOICE, correction._MODEL))
"""What the two parts of ACS ask uniform numbers for: which positions, which words."""
GAMMA_NOISE = LogLinear(5e-3)
"""Of the published gamma models."""


@dataclass(frozen=True)
class Recorded:
    """One recorded step over the positions that the published code had in hand.

    Attributes:
        x: Tokens before.
        y: Tokens after.
        t: Noise fraction of each position before.
        s: Noise fraction after.
        level: Noise level of each position before, in `0..T`.
        moving: Positions whose level drops, prompts not among them.
        prompt: Positions that were given.
        draws: The random numbers of the step, in order.
    """

    x: Tensor
    y: Tensor
    t: Tensor
    s: Tensor
    level: Tensor
    moving: Tensor
    prompt: Tensor
    draws: list[Tensor]

    @property
    def choices(self) -> list[Tensor]:
        """The numbers that choose positions."""
        return [numbers for numbers in self.draws if numbers.shape == self.x.shape]

    @property
    def rows(self) -> list[Tensor]:
        """The numbers that choose words, a row for each position."""
        return [numbers for numbers in self.draws if numbers.shape != self.x.shape]

    @property
    def share(self) -> Tensor:
        """`s/t` in the open part; 0 elsewhere."""
        return torch.where(self.t > 0, self.s / self.t, 0.0)

    @property
    def written(self) -> list[Tensor]:
        """Where the published code writes: masks that fall; for ACS, words redrawn, before the prompt is put back."""
        visible = (self.t > 0) & (self.x != MASK)
        falls = (self.x == MASK) & (self.choices[0] < 1 - self.share)
        return [falls, *(visible & (again < ETA * self.share) for again in self.choices[1:])]


def listed(arrays: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of every recorded run."""
    return json.loads(str(arrays["index_json"]))


class Case:
    """One recorded run of a published sampler."""

    def __init__(self, arrays: dict[str, Any], tag: str) -> None:
        self.arrays, self.tag = arrays, tag
        self.settings = next(entry for entry in listed(arrays) if entry["tag"] == tag)
        walk = self.settings["fn"]
        if self.settings["family"] == "gamma":
            walk = "gamma_" + self.settings["schedule"].split("_")[0]
        self.schedule = HYPERSCHEDULES[walk]

    def __getitem__(self, name: str) -> Tensor:
        return torch.from_numpy(self.arrays[f"{self.tag}__{name}"])

    @property
    def algorithm(self) -> Step:
        return algorithm(self.settings["alg"], PROCESS, self.settings["eta"])

    def steps(self) -> Iterator[Recorded]:
        """The recorded steps, on the noise fractions of our hyperschedule."""
        names = self.settings["draws"]
        count = self.schedule.num_steps
        skip, per = len(names) % count, len(names) // count
        draws = [self[f"draw{i}_{name}"] for i, name in enumerate(names)][skip:]
        given = torch.tensor(self.settings.get("prompt") or [[], []])
        for n in range(count):
            x = self[f"in{n}"]
            width = x.shape[1]
            y = self[f"in{n + 1}" if n + 1 < count else "out"][:, :width]
            prompt = (torch.arange(width) < given.shape[1]).expand(x.shape)
            level, after = (self.schedule.levels(torch.tensor(m))[:width] for m in (n, n + 1))
            t, s = (self.schedule.noise(torch.tensor(m))[:width].expand(x.shape) for m in (n, n + 1))
            moving = (after < level) & ~prompt
            yield Recorded(x, y, t, s, level.expand(x.shape), moving, prompt, draws[n * per : (n + 1) * per])


@pytest.fixture(scope="module")
def arrays(shared) -> dict[str, Any]:
    with np.load(shared / "golden" / "samplers.npz") as file:
        return dict(file)


@pytest.fixture
def case(request, arrays) -> Case:
    return Case(arrays, request.param)


@pytest.fixture(scope="module")
def network(shared) -> Denoiser:
    """The network behind the recorded epsilon runs."""
    return Denoiser(Golden(shared / "golden" / "epsilon").network, PROCESS, Mean()).requires_grad_(False)


@pytest.fixture(scope="module")
def score_network(shared) -> Denoiser:
    """The network behind the recorded gamma runs."""
    golden = Golden(shared / "golden" / "gamma")
    gamma = golden.config["graph"]["gamma"]
    return Denoiser(golden.network, GammaHybrid(WORDS, gamma), LogScore(blend_rate=gamma))


def move_of(step: Recorded, denoiser: AbstractDenoiser) -> Move:
    """The recorded step as ours: everybody sees everybody, prompts are without noise."""
    place = torch.arange(step.x.numel()).view(step.x.shape)

    def ask(x: Tensor, u: Tensor, previous: Previous | None = None, /) -> Reading:
        answer = Answer(denoiser.predict(x, u, ForwardContext()), place)
        return Reading(lambda where: answer, x, u, ())

    t, s = (noise.masked_fill(step.prompt, 0.0) for noise in (step.t, step.s))
    rows = torch.arange(len(step.x))
    return Move(PROCESS, step.x, t, s, step.moving, ask, Randomness(0), rows, 0)


def move_with_marker(step: Recorded) -> tuple[Move, int]:
    """The move of a network that is sure of one word, which stands nowhere yet: it shows where a step has written."""
    marker = min(set(range(WORDS)) - set(step.x.flatten().tolist()))
    raw = torch.zeros(step.x.numel(), WORDS + 1).index_fill(1, torch.tensor(marker), 1e6)
    return move_of(step, FixedAnswer(PROCESS, Mean(), raw)), marker


def gumbel_draw(log_p: Tensor, rows: Tensor) -> Tensor:
    """The published draw: Gumbel noise from recorded uniform numbers, added to log weights."""
    return (log_p.double() - torch.log(-torch.log(rows))).argmax(-1)


def from_gumbel(log_p: Tensor, rows: Tensor) -> Tensor:
    """The uniform numbers with which `draw_index` picks what Gumbel noise picks: the middle of that word's interval."""
    word = gumbel_draw(log_p, rows)[:, None]
    p = log_p.double().exp()
    cumulative = p.cumsum(-1)
    return ((cumulative - p / 2) / cumulative[:, -1:]).gather(1, word)[:, 0]


def replay(
    case: Case, step: Recorded, move: Move, words: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> Tensor:
    """Our step, with recorded numbers in place of its own.

    Ours lifts a mask if its number is *above* `s/t`. Numbers that were not recorded are missing, and would show.

    Args:
        case: Says which step.
        step: Says which positions are chosen.
        move: The step as a move of ours.
        words: The numbers that choose words, for each part of the step.
        monkeypatch: Puts the numbers in.
    """
    falls, *again = step.choices
    parts = [move.sub(0), move.sub(1)] if again else [move]
    numbers = {}
    for part, purposes, choice, word in zip(parts, PURPOSES, [1 - falls, *again], words, strict=False):
        numbers |= {(part.stream, purposes[0]): choice, (part.stream, purposes[1]): word}
    missing = torch.full_like(falls, torch.nan)
    with monkeypatch.context() as patch:
        patch.setattr(
            Move, "uniform", lambda move, purpose, **_: numbers.get((move.stream, purpose), missing)
        )
        return case.algorithm(step.x, move)


@pytest.mark.parametrize("case", REPLAYED, indirect=True, ids=str)
def test_published_steps_choose_same_positions(case, monkeypatch):
    total = torch.zeros(len(case["draw0_rand_like"]), dtype=torch.long)
    for step in case.steps():
        move, marker = move_with_marker(step)
        half = torch.full_like(step.choices[0], 0.5)
        chosen = replay(case, step, move, [half, half], monkeypatch) == marker
        assert torch.equal(chosen, torch.stack(step.written).any(0) & ~step.prompt)
        assert [len(rows) for rows in step.rows] == [int(where.sum()) for where in step.written]
        assert not ((step.x != step.y) & ~chosen).any()
        total = total + chosen.sum(1)
    free = (~step.prompt).sum(1)
    assert (total > free).any() if case.settings["alg"] == "acs" else torch.equal(total, free)


def threshold_factor_range(
    arrays: dict[str, Any], part: int, scale: Callable[[Recorded], Tensor]
) -> tuple[float, float]:
    """Between which factors of `scale` the published thresholds lie, if they have such a factor at all.

    A step that has drawn `n` rows of noise has written where the `n` smallest numbers are, of those that could be.
    """
    low, high = 0.0, math.inf
    for step in (step for tag in REPLAYED if "acs" in tag for step in Case(arrays, tag).steps()):
        could = (step.x == MASK if part == 0 else step.x != MASK) & (step.t > 0) & (scale(step) > 0)
        ratio = (step.choices[part] / scale(step))[could].sort().values
        count = len(step.rows[part])
        low = max([low, *ratio[:count][-1:].tolist()])
        high = min([high, *ratio[count:][:1].tolist()])
    return low, high


def test_published_thresholds_follow_schedule(arrays):
    """Masks fall below `1 - s/t`, words are redrawn below `eta s/t`, to a few percent; no other law would do."""
    low, high = threshold_factor_range(arrays, 0, lambda step: 1 - step.share)
    assert 0.99 < low < 1 < high < 1.02
    low, high = threshold_factor_range(arrays, 1, lambda step: step.share)
    assert 0.29 < low < ETA < high < 0.31
    for other in (lambda step: step.s, lambda step: 1 - step.share, lambda step: torch.ones_like(step.s)):
        low, high = threshold_factor_range(arrays, 1, other)
        assert low > high


@pytest.mark.parametrize("case", [tag for tag in REPLAYED if "acs" in tag], indirect=True, ids=str)
@pytest.mark.parametrize("below", [True, False])
def test_step_thresholds_equal_published(case, below, monkeypatch):
    """Numbers just below the thresholds write every possible position, numbers just above write no position."""
    nudge = 1 - 1e-9 if below else 1 + 1e-9
    for step in case.steps():
        move, marker = move_with_marker(step)
        near = [(1 - step.share) * nudge, ETA * step.share * nudge]
        half = torch.full_like(step.t, 0.5)
        chosen = replay(case, replace(step, draws=near), move, [half, half], monkeypatch) == marker
        could = step.moving & ((step.x == MASK) | (step.share > 0))
        assert torch.equal(chosen, could if below else torch.zeros_like(could))


@pytest.mark.parametrize("case", REPLAYED, indirect=True, ids=str)
def test_published_steps_write_same_words(case, network, monkeypatch):
    """The words agree except where the published code draws a mask (FAULTS 6), where hdlm writes a word."""
    for step in case.steps():
        move = move_of(step, network)
        words, emitted = [], torch.zeros_like(step.x, dtype=torch.bool)
        for where, rows in zip(step.written, step.rows, strict=True):
            numbers = torch.full_like(step.choices[0], torch.nan)
            numbers[where] = from_gumbel(move.reading.log_clean(where), rows)
            words.append(numbers)
            raw = move.reading.answer(where).prediction.raw(where.flatten().nonzero()[:, 0])
            emitted[where] = gumbel_draw(raw, rows) == MASK
        tokens = replay(case, step, move, words, monkeypatch)
        assert torch.equal(torch.where(emitted, MASK, tokens), step.y)
        assert (tokens[emitted] < WORDS).all()


def test_published_text_contains_masks(arrays):
    """FAULTS 6: what the test above leaves out is there, and it is rare."""
    masks = {entry["tag"]: int((Case(arrays, entry["tag"])["out"] == MASK).sum()) for entry in listed(arrays)}
    assert {tag: count for tag, count in masks.items() if count} == {
        "full_diff_original": 1,
        "full_diff_remask_prompt": 1,
    }


def test_every_recorded_sampler_run_is_compared(arrays):
    assert {entry["tag"] for entry in listed(arrays)} == {*REPLAYED, *REMASKED, *REMDM, *GAMMA}


def p_value_of_mask_share(masked: Tensor, share: float) -> float:
    """p-value of the statement that each of these positions is masked with this probability."""
    counts = torch.stack([masked.sum(), (~masked).sum()])
    return chi_square(counts, torch.tensor([share, 1 - share]))


@pytest.mark.parametrize("case", REMASKED, indirect=True, ids=str)
def test_published_remask_masks_everything_at_the_wrong_rate(case):
    """Exactly: a position is masked afterwards if its last number is below `s/t`, whatever stood there (FAULTS 4).

    `s` of the open block goes for finished blocks as well.
    """
    taken_back = 0
    for step in case.steps():
        share = float(step.share.max())
        if share == 0:
            continue
        again = (step.choices[-1] < share) & ~step.prompt
        assert torch.equal(step.y == MASK, again)
        taken_back += int((again & (step.level == 0)).sum())
    assert (taken_back > 0) == (case.settings["fn"] == "semi_diff")


def test_published_remask_is_off_schedule(arrays):
    """After three of four steps a quarter of the open part should be masks; it is a half."""
    last = [
        step for tag in REMASKED for step in Case(arrays, tag).steps() if float(step.s.max()) == 1 / STEPS
    ]
    masked = torch.cat([(step.y == MASK)[step.moving] for step in last])
    assert p_value_of_mask_share(masked, 1 / STEPS) < FAILURE_RATE
    assert p_value_of_mask_share(masked, 1 / 2) > FAILURE_RATE


def test_published_remdm_is_off_schedule(arrays):
    """It unmasks nearly all positions in its first step and never remasks."""
    steps = [step for tag in REMDM for step in Case(arrays, tag).steps()]
    first = [step for step in steps if float(step.t.max()) == 1]
    masked = torch.cat([(step.y == MASK)[step.moving] for step in first])
    assert p_value_of_mask_share(masked, 1 - 1 / STEPS) < FAILURE_RATE
    assert not any(((step.x != MASK) & (step.y == MASK)).any() for step in steps)


def frames_of_sampling(
    denoiser: Denoiser, schedule: AbstractHyperschedule, step: Step, **options: Any
) -> list[Frame]:
    """Every step of a hundred sequences of ours."""
    seen: list[Frame] = []
    sample_along(denoiser, schedule, step, num_sequences=100, watch=seen.append, together=True, **options)
    return seen


@pytest.mark.parametrize("walk", ["full_diff", "semi_diff"])
@pytest.mark.parametrize("name", ["original", "acs", "remask", "remask_adhoc_shuffle", "remdm"])
def test_samples_follow_schedule_on_published_network(network, name, walk):
    """On the same network, at every step: the share of masks, settled text at peace, words taken back or not."""
    schedule = HYPERSCHEDULES[walk]
    back = 0
    for frame in frames_of_sampling(network, schedule, algorithm(name, PROCESS, ETA)):
        masked = frame.after == MASK
        assert (
            p_value_of_mask_share(
                masked[frame.moving], float(schedule.noise(frame.step + 1)[frame.moving[0]].max())
            )
            > FAILURE_RATE
        )
        assert torch.equal(frame.after[~frame.moving], frame.before[~frame.moving])
        back += int((masked & (frame.before != MASK)).sum())
    assert (back > 0) == name.startswith("rem")


def mask_shares(case: Case) -> Tensor:
    """What the gamma schedule wants: the share of masks at each noise level, published times and noise."""
    process = GammaHybrid(WORDS, case.settings["gamma"])
    return process.weights(GAMMA_NOISE.fraction(case.schedule.time_grid(case.settings["eps"]))).mask


@pytest.mark.parametrize("case", GAMMA, indirect=True, ids=str)
def test_published_gamma_samplers_unmask_everything_at_once(case):
    """Every mask is removed in its first possible step, where about one in a hundred should be (FAULTS 3)."""
    shares, levels = mask_shares(case), case.schedule.num_levels
    fresh = [(step.y, step.moving & (step.level == levels) & (step.x == MASK)) for step in case.steps()]
    masked = torch.cat([(y == MASK)[begins] for y, begins in fresh])
    assert len(masked) >= 2 * LENGTH - 2
    assert float(shares[levels - 1] / shares[levels]) > 0.99
    assert not masked.any()
    assert p_value_of_mask_share(masked, float(shares[levels - 1] / shares[levels])) < FAILURE_RATE


@pytest.mark.parametrize("case", ["gamma_NAR_block_w4_t3", "gamma_NAR_simple_w4_t4"], indirect=True, ids=str)
@pytest.mark.parametrize("step", [Ancestral(), Analytic(), Euler()], ids=str)
def test_gamma_samples_unmask_gradually(case, score_network, step):
    """On the same network. Ancestral steps lift masks at a rate that no network changes: theirs is the schedule's.

    Those along the score ask the network for the rate, and this one is random: only the first step is held to account.
    """
    shares, levels = mask_shares(case), case.schedule.num_levels
    options = {"noise_schedule": GAMMA_NOISE, "sampling_eps": case.settings["eps"]}
    for frame in frames_of_sampling(score_network, case.schedule, step, **options):
        before, after = (case.schedule.levels(frame.step + ahead) for ahead in (0, 1))
        for level in after[frame.moving[0]].unique():
            masked = (frame.after == MASK)[:, frame.moving[0] & (after == level)]
            if isinstance(step, Ancestral):
                assert p_value_of_mask_share(masked, float(shares[level]) if level else 0.0) > FAILURE_RATE
        begins = (before == levels) & (after < levels)
        assert not begins.any() or (frame.after == MASK)[:, begins].double().mean() > 0.9
