"""The plain loop: from noise to text along any hyperschedule, with any step, for any denoiser.

It has no cache and computes everything at every step. `sample` writes equal tokens with fewer and cheaper calls; this
loop is the reference for tests of its engine.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, resolve_device
from hdlm.denoiser import ForwardContext as Asked
from hdlm.network import Previous
from hdlm.randomness import Randomness
from hdlm.regime import Regime
from hdlm.sampling.base import Answer, Move, Reading, Step, Transform
from hdlm.sampling.frame import Frame, Reads
from hdlm.sampling.prompt import Prompt, check_prompt, prompt_rows

__all__ = ["PRIOR", "sample_plainly"]

PRIOR = 2**32 - 1
"""The random stream of the initial noise."""


@torch.no_grad()
def sample_plainly(
    denoiser: AbstractDenoiser,
    regime: Regime,
    step: Step,
    *,
    num_sequences: int = 1,
    seed: int = 0,
    prompt: Prompt | None = None,
    transforms: Sequence[Transform] = (),
    watch: Callable[[Frame], None] | None = None,
) -> Int[Tensor, "n l"]:
    """Generate sequences without a cache, all at one common step; the arguments are those of `sample`."""
    hyperschedule, process, length = regime.hyperschedule, denoiser.process, regime.length
    device = resolve_device(denoiser, None)
    check_prompt(prompt, process.num_words, length, num_sequences)
    rows, columns = torch.arange(num_sequences, device=device), torch.arange(length, device=device)
    randomness = Randomness(seed)
    noise = regime.noise_of_levels().to(device)
    start = randomness.uniform(rows[:, None], 0, columns[None], PRIOR)
    x = process.draw_prior(torch.full_like(start, regime.final_noise), start)
    fixed = torch.zeros_like(x, dtype=torch.bool)
    tokens, given = prompt_rows(prompt, rows)
    if tokens is not None and given is not None:
        begins = given | (prompt is not None and prompt.is_draft)
        x, fixed = torch.where(begins, tokens, x), given.expand_as(x)

    calls = computed = 0
    for n in range(hyperschedule.num_steps):
        now, then = (hyperschedule.levels(torch.tensor(step, device=device)) for step in (n, n + 1))
        moving = (then < now) & ~fixed
        t, s = (noise[level].masked_fill(fixed, 0.0) for level in (now, then))
        regions = hyperschedule.regions(torch.tensor(n, device=device))
        window = (~regions.worthless).nonzero()[:, 0]
        seen = regime.generation_attention(torch.tensor(n, device=device))
        attention = seen.select(window, window).on(device)
        asked = Asked(
            window[None],
            attention,
            ordered=True,
            settled=regions.settled[window],
            given=fixed[:, window],
        )
        place = torch.full_like(x, -1)
        place[:, window] = torch.arange(len(rows) * len(window), device=device).view(len(rows), -1)

        def read(x: Tensor, u: Tensor, previous: Previous | None = None, /) -> Reading:
            nonlocal calls, computed
            calls, computed = calls + 1, computed + len(window)  # noqa: B023
            before = None if previous is None else previous._replace(place=previous.place[:, window])  # noqa: B023
            asking = replace(asked, previous=before)  # noqa: B023
            answer = Answer(denoiser.predict(x[:, window], u[:, window], asking), place)  # noqa: B023
            return Reading(lambda where: answer, x, u, tuple(transforms))

        before, reads = x, Reads(read, t)
        if moving.any():
            begin = noise[hyperschedule.levels(0).to(device)].expand_as(t)
            conditioned = denoiser.self_conditioned
            move = Move(process, x, t, s, moving, reads.ask, randomness, rows, n, begin=begin)
            x = step(x, replace(move, self_conditioned=conditioned))
        if watch is not None:
            finished = ((then == 0) | fixed).long().cumprod(1).sum(1)
            costs = (calls,) * len(rows), (computed,) * len(rows)
            share, everybody = (n + 1) / hyperschedule.num_steps, torch.ones_like(rows, dtype=torch.bool)
            state = rows, before, x, moving, fixed, finished, *costs, calls, share, reads, everybody
            watch(Frame(n, hyperschedule.num_steps, *state))
    return x
