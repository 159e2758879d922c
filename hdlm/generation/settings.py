"""The settings of generation: algorithm, number of steps, hyperschedule, and changes of the distribution."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, final, get_args

from hdlm.checkpoint import Checkpoint
from hdlm.hyperschedule import (
    AbstractHyperschedule,
    Block,
    PublishedSlide,
    PublishedWave,
    Slide,
    Wave,
    autoregressive,
    flat,
)
from hdlm.noise_schedule import AbstractNoiseSchedule, Composed, Interpolated, time_grid
from hdlm.regime import Regime
from hdlm.sampling import (
    MinP,
    RepetitionPenalty,
    Speculative,
    Step,
    Temperature,
    TopK,
    TopP,
    Transform,
    algorithm,
)
from hdlm.sampling.algorithms import SPECULATIVE, WRITES_LIKELIEST
from hdlm.strict_config import did_you_mean

__all__ = ["UNUSED", "FamilyName", "Settings", "planned"]

FamilyName = Literal["autoregressive", "flat", "block", "slide", "wave", "published-slide", "published-wave"]
"""A family of hyperschedules, by the name that users give it."""
_WINDOWS: dict[str, type[Block | Slide | Wave | PublishedSlide | PublishedWave]] = {
    "block": Block,
    "slide": Slide,
    "wave": Wave,
    "published-slide": PublishedSlide,
    "published-wave": PublishedWave,
}
UNUSED: Mapping[str, tuple[str, ...]] = {"autoregressive": ("width", "steps", "grid"), "flat": ("width",)}
"""Settings that would not act in a family."""


@final
@dataclass(frozen=True)
class Settings:
    """The settings of generation. None means the default of the checkpoint.

    Attributes:
        algorithm: Name of the sampler, a key of `hdlm.sampling.ALGORITHMS`, or `"speculative"`; `hdlm sample --help`
            lists them.
        eta: Strength of corrections and of remasking, in [0, 1].
        hyperschedule: The family to write along: autoregressive, flat, block, slide, wave, published-slide or
            published-wave; by default the one that the checkpoint lists first, or the widest one for infilling.
        width: Number of positions that are written together (drafted together, if the algorithm is `"speculative"`);
            by default as in training.
        steps: Number of steps that each position takes from noise to word; by default as many as the grid lists.
        grid: Times of the steps: `"uniform"`, `"cosine"`, `"power:P"` or times as in `"0.2,0.6,1"`; see
            `hdlm.noise_schedule.time_grid`. Evenly spread by default.
        length: Number of positions on the canvas, at most the context of the network, which is the default.
        temperature: Power of the distribution: below 1 likely words become likelier, 1 leaves the model as it is.
        top_k: Number of likeliest words to draw from; all words by default.
        top_p: Draw from the likeliest words that make up this probability, in (0, 1].
        min_p: Draw only from words that have at least this probability, relative to that of the likeliest word.
        repetition_penalty: Penalty of words that the text already has; above 1 avoids them, 1 is off.
        guidance: Scale of classifier-free guidance by the prompt; 0 is off.
        new_tokens: Number of tokens after the prompt, instead of `length`.
        sub_block: Number of positions of a sub-block. Sub-blocks of the canvas, from the end of the prompt on, or of
            each block are written one after the other, by algorithms that order words by confidence.

    Raises:
        ValueError: If a number of positions, steps or tokens is below 1.
    """

    algorithm: str = "acs"
    eta: float = 0.05
    hyperschedule: str | None = None
    width: int | None = None
    steps: int | None = None
    grid: str | None = None
    length: int | None = None
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float = 1.0
    guidance: float = 0.0
    new_tokens: int | None = None
    sub_block: int | None = None

    def __post_init__(self) -> None:
        for name in ("width", "steps", "length", "new_tokens", "sub_block"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise ValueError(f"`{name}` must be at least 1; got {count}.")

    def canvas(self, given: int, context: int) -> int:
        """Number of positions on the canvas.

        Args:
            given: Number of tokens of the prompt.
            context: Context of the network, the default.

        Raises:
            ValueError: If both a length and a number of new tokens are given.
        """
        if self.new_tokens is None:
            return context if self.length is None else self.length
        if self.length is not None:
            raise ValueError(
                f"`length` ({self.length}) counts the prompt and `new_tokens` ({self.new_tokens}) does not: "
                "give one of them."
            )
        return given + self.new_tokens

    def step(self, checkpoint: Checkpoint, plan: AbstractHyperschedule) -> Step | Speculative:
        """The sampling step, or what takes its place.

        Args:
            checkpoint: Checkpoint of the model.
            plan: The hyperschedule of generation.

        Raises:
            ValueError: If the algorithm is unknown, or `eta` or `sub_block` does not fit it.
        """
        if self.algorithm == SPECULATIVE:
            return Speculative(min(self.width or _block_width(checkpoint), plan.length))
        in_blocks = self.sub_block is not None and plan.opens_together and not plan.is_flat
        block = plan.window_size if in_blocks else None
        greedy = self.temperature == 0
        passes = plan.num_levels
        process = checkpoint.denoiser.process
        return algorithm(
            self.algorithm,
            process,
            self.eta,
            sub_block=self.sub_block,
            block=block,
            greedy=greedy,
            passes=passes,
        )

    def transforms(self) -> tuple[Transform, ...]:
        """The changes of the model's distribution, in order: penalty, temperature, then truncation."""
        chosen: list[Transform] = []
        if self.repetition_penalty != 1:
            chosen.append(RepetitionPenalty(self.repetition_penalty))
        in_step = self.temperature == 0 and self.algorithm in WRITES_LIKELIEST
        if self.temperature != 1 and not in_step:
            chosen.append(Temperature(self.temperature))
        if self.top_k is not None:
            chosen.append(TopK(self.top_k))
        if self.top_p is not None:
            chosen.append(TopP(self.top_p))
        if self.min_p is not None:
            chosen.append(MinP(self.min_p))
        return tuple(chosen)

    def _check_speculative(self) -> None:
        """Refuse settings that have no effect on speculative sampling.

        Raises:
            ValueError: If there is one.
        """
        if self.hyperschedule not in (None, "autoregressive"):
            raise ValueError(
                f"`hyperschedule` is {self.hyperschedule!r}, but the algorithm 'speculative' writes along "
                "'autoregressive': leave it out."
            )
        for name in ("steps", "grid", "sub_block"):
            if getattr(self, name) is not None:
                raise ValueError(f"`{name}` has no effect on the algorithm 'speculative'; leave it out.")

    def noise(self, trained: AbstractNoiseSchedule) -> AbstractNoiseSchedule:
        """The noise schedule of generation: the trained one, at the times of the grid."""
        return trained if self.grid is None else Composed(trained, time_grid(self.grid))

    def plan(self, trained: tuple[AbstractHyperschedule, ...], length: int) -> AbstractHyperschedule:
        """The hyperschedule of generation.

        Raises:
            ValueError: If the name is unknown, or a width or a number of steps is out of range.
        """
        if self.algorithm == SPECULATIVE:
            self._check_speculative()
            return autoregressive(length)
        for name in UNUSED.get(self.hyperschedule or "", ()):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` has no effect on the hyperschedule {self.hyperschedule!r}; leave it out."
                )
        if self.hyperschedule == "autoregressive":
            return autoregressive(length)
        if self.hyperschedule is not None and self.hyperschedule not in get_args(FamilyName):
            known = ", ".join(get_args(FamilyName))
            hint = did_you_mean(self.hyperschedule, get_args(FamilyName), " Did you mean {!r}?")
            raise ValueError(f"Unknown hyperschedule {self.hyperschedule!r}; known are {known}.{hint}")
        model = trained[0] if trained else None
        grid = None if self.grid is None else time_grid(self.grid)
        listed = (
            len(grid.values)
            if isinstance(grid, Interpolated)
            else None
            if model is None
            else model.num_levels
        )
        steps = self.steps if self.steps is not None else listed
        if steps is None or (model is None and self.hyperschedule is None):
            raise ValueError("The checkpoint has no hyperschedule: give one, and a number of steps.")
        if self.hyperschedule == "flat":
            return flat(length, steps)
        if self.hyperschedule is None and model is not None:
            return model.resized(length, self.width, steps)
        usual = length if model is None else min(model.window_size, length)
        width = usual if self.width is None else self.width
        assert self.hyperschedule is not None
        return _WINDOWS[self.hyperschedule](length, width, steps)


def _block_width(checkpoint: Checkpoint) -> int:
    """The width of the first blocks that the model was trained with; 1 for an autoregressive model."""
    trained = checkpoint.hyperschedules
    return trained[0].window_size if trained else 1


def planned(
    checkpoint: Checkpoint, settings: Settings, length: int, *, infilling: bool, given: int = 0
) -> Regime:
    """The regime for settings and a checkpoint.

    Args:
        checkpoint: Checkpoint of the model.
        settings: The settings of generation.
        length: Positions on the canvas.
        infilling: Whether there are gaps between given words: then all positions are generated together unless
            `settings` have a hyperschedule or a width.
        given: Number of tokens of the prompt, behind which some models begin their first block.

    Raises:
        ValueError: If the canvas does not fit the network, or the settings do not fit the checkpoint.
    """
    trained = checkpoint.hyperschedules
    _check_length("text" if infilling else "canvas", length, checkpoint.length)
    if settings.algorithm == SPECULATIVE:
        _check_causal_training(checkpoint)
    if not infilling:
        return _regime(checkpoint, settings, settings.plan(trained, length).behind(given))
    widest = tuple(sorted(trained, key=lambda schedule: -getattr(schedule, "width", 0)))
    whole = settings.hyperschedule is None and settings.width is None
    plan = (replace(settings, width=length) if whole else settings).plan(widest, length)
    return _regime(checkpoint, settings, plan)


def _check_causal_training(checkpoint: Checkpoint) -> None:
    """Refuse a model that was never read causally in training, although its attention allows it.

    Raises:
        ValueError: If settled words of a block attended to later ones.
    """
    blocks = [plan for plan in checkpoint.hyperschedules if not plan.is_autoregressive]
    if checkpoint.context == "block_causal" and len(blocks) == len(checkpoint.hyperschedules):
        raise ValueError(
            "`algorithm` is 'speculative', which verifies drafts causally, but with context='block_causal' the words "
            f"of a block attended to later ones in training ({blocks[:1]}). Use a model with context='causal', such "
            "as one of `hdlm finetune MODEL --to diffusion`, or another algorithm."
        )


def _regime(checkpoint: Checkpoint, settings: Settings, plan: AbstractHyperschedule) -> Regime:
    regime = checkpoint.regime(plan)
    return replace(regime, noise_schedule=settings.noise(regime.noise_schedule))


def _check_length(what: str, length: int, context: int) -> None:
    if not 1 <= length <= context:
        raise ValueError(
            f"The {what} must have between 1 and {context} positions, the network's context; got {length}."
        )
