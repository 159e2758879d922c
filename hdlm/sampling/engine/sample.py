"""Generation: `sample` runs an `Engine` over all sequences that are wanted. `hdlm.sampling.loop` is the plain loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.attention import Active, Context
from hdlm.denoiser import AbstractDenoiser, resolve_device
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.noise_schedule import LINEAR, AbstractNoiseSchedule
from hdlm.sampling.base import Step, Transform
from hdlm.sampling.engine.engine import Engine, Finished, Frame, Stop
from hdlm.sampling.engine.window import ApproximateCache, View
from hdlm.sampling.prompt import Prompt, check_prompt, prompt_rows

__all__ = ["Generation", "sample"]


@final
@dataclass(frozen=True)
class Generation:
    """What `sample` returns.

    Attributes:
        tokens: Finished sequences; words only. What lies behind a stop repeats the last token before it.
        num_evaluations: Calls of the network, each for a batch (NFE).
        lengths: How many tokens of each sequence count; all, if nothing stopped it.
        evaluations: Calls that each sequence took part in (NFE of a sequence).
        computed: Positions of each sequence that these calls have computed in all.
    """

    tokens: Int[Tensor, "n l"]
    num_evaluations: int
    lengths: Int[Tensor, " n"]
    evaluations: Int[Tensor, " n"]
    computed: Int[Tensor, " n"]


def sample(
    denoiser: AbstractDenoiser,
    hyperschedule: AbstractHyperschedule,
    step: Step,
    *,
    num_sequences: int = 1,
    batch_size: int | None = None,
    seed: int = 0,
    first_sequence: int = 0,
    prompt: Prompt | None = None,
    transforms: Sequence[Transform] = (),
    noise_schedule: AbstractNoiseSchedule = LINEAR,
    sampling_eps: float | None = None,
    context: Context = "block_causal",
    active: Active = "full",
    use_cache: bool = True,
    approximate: ApproximateCache | None = None,
    stop: Stop | None = None,
    together: bool | None = None,
    device: torch.device | str | None = None,
    watch: Callable[[Frame], None] | None = None,
) -> Generation:
    """Generate sequences.

    Args:
        denoiser: Knows `p(x_0 | x_t)`.
        hyperschedule: When each position is noisy; its length is that of the sequences.
        step: How to walk back; see `hdlm.sampling` for the choice.
        num_sequences: How many sequences, at least 1.
        batch_size: How many at a time; all at once by default. It changes no random number. Where the denoiser packs
            questions, a sequence goes on as soon as it can, and one that is finished gives way to the next.
        seed: Of all random numbers.
        first_sequence: Index of the first sequence: `first_sequence=5` gives what a longer run has as its sixth.
        prompt: Given tokens, which are kept.
        transforms: Temperature and the like, applied in order before draws.
        noise_schedule: From a position's time, `level / num_levels`, to its noise fraction.
        sampling_eps: Read times off the published grid with this margin (`AbstractHyperschedule.times`) instead.
        context: What settled positions see of one another.
        active: What active positions see of one another.
        use_cache: Keep keys and values of settled positions; exact, so it changes no logit. There is no such cache for
            `context="full"`, in which settled positions see later ones, and for networks whose inputs depend on the
            noise of the whole sequence (`noise_dependence`).
        approximate: A cache that does change logits: of settled positions where there is no exact one, or of all.
            Sequences that are `together` are computed at the same positions, so then tokens depend on the batch.
        stop: Where sequences may end before the canvas is full.
        together: Whether the sequences of a batch make every step at the same time. By default only where the denoiser
            does not pack questions; else each goes at its own pace, which changes no token and saves calls.
        device: Where tokens are; that of the denoiser by default, and no other.
        watch: Called with a `Frame` after every step of any sequences.

    Raises:
        ValueError: If the prompt does not fit the canvas or the vocabulary, a shifted network is given no first token
            or a hyperschedule that does not run from left to right, or the denoiser is on another device.
    """
    if num_sequences < 1:
        raise ValueError(f"`num_sequences` must be at least 1; got {num_sequences}.")
    size = num_sequences if batch_size is None else batch_size
    if size < 1:
        raise ValueError(f"`batch_size` must be at least 1; got {batch_size}.")
    check_prompt(prompt, denoiser.process.num_words, hyperschedule.length, num_sequences)
    device = resolve_device(denoiser, device)
    engine = Engine(
        denoiser,
        hyperschedule,
        step,
        seed=seed,
        transforms=transforms,
        noise_schedule=noise_schedule,
        sampling_eps=sampling_eps,
        view=View(context, active, use_cache, approximate),
        stop=stop,
        device=device,
        watch=watch,
    )
    together = not denoiser.packs if together is None else together
    rows = torch.arange(num_sequences, device=device)
    with torch.no_grad():
        done = _drive(engine, rows, first_sequence, prompt, size, together)
    return _in_order(done, engine.num_evaluations)


def _drive(
    engine: Engine, rows: Int[Tensor, " n"], first: int, prompt: Prompt | None, size: int, together: bool
) -> list[Finished]:
    """Keep the engine full until all sequences are finished."""
    done: list[Finished] = []
    while len(rows) or len(engine):
        room = (0 if len(engine) else size) if together else size - len(engine)
        batch, rows = rows[:room], rows[room:]
        if len(batch):
            tokens, fixed = prompt_rows(prompt, batch)
            engine.add(batch + first, tokens=tokens, fixed=fixed, together=together)
            engine.awaited = len(rows)
        done += engine.advance()
    return done


def _in_order(done: list[Finished], num_evaluations: int) -> Generation:
    """Finished sequences by their index."""
    done = sorted(done, key=lambda one: one.sequence)
    lengths = torch.tensor([one.length for one in done])
    tokens = torch.stack([one.tokens for one in done])
    last = torch.minimum(torch.arange(tokens.shape[1]), lengths[:, None] - 1).clamp_min(0)
    return Generation(
        tokens.gather(1, last.to(tokens.device)),
        num_evaluations,
        lengths,
        torch.tensor([one.num_evaluations for one in done]),
        torch.tensor([one.num_computed for one in done]),
    )
