"""The published samplers of logits, all based on the one loop `hdlm.sampling.sample`; see also `score_samplers`.

| published | here |
|---|---|
| `full_diff(steps=T)` | `sample(denoiser, flat(length, T), algorithm(alg, process, eta))` |
| `semi_diff(steps=T, block_size=w)` | `sample(denoiser, Block(length, w, T), ...)` |
| `..._shifted` | as above, for a denoiser whose parameterization is `Shifted` |
| `alg="original"`, `"acs"` | `Ancestral()`, `Chain((Ancestral(), AdaptiveCorrection(eta)))` |
| `alg="remdm"` | `ReMDM(Cap(eta))` |
| `alg="remask"`, `"remask_adhoc_shuffle"` | `Remask()`, `RemaskShuffle(eta)` |
| `prompt` | `Prompt` |
| `temperature`, `repetition_penalty` | `Temperature`, `RepetitionPenalty`, as `transforms` |
| `cfg_scale` | `Guided(denoiser, prompt, scale)` |

Errors of the published code are corrected. The share of masks follows the schedule with every algorithm; the text never
contains a mask; temperature is applied once; there is one version of ACS. The repetition penalty, which was on by
default (1.2), is off (1.0) by default.

Two kinds of models are accepted. A model of `smart_model_loader` caches keys and values of settled positions, and uses
the attention of its training. Any other callable computes all positions at every call, and every position sees every
other, unless the callable has a parameter `attn_mask` (`CallableDenoiser`).

References: HDLM (arXiv 2504.06416), MDLM (arXiv 2406.07524), SEDD (arXiv 2310.16834), ReMDM (arXiv 2503.00307).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, cast, final, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from hdlm.attention import Active, Context
from hdlm.denoiser import AbstractDenoiser, Denoiser, Guided
from hdlm.generation import Settings
from hdlm.hyperschedule import AbstractHyperschedule, Block, flat
from hdlm.network import DDiTConfig
from hdlm.noise_schedule import AbstractNoiseSchedule
from hdlm.parameterization import Mean
from hdlm.process import Absorbing
from hdlm.published.model import (
    AbstractPublishedModel,
    CallableDenoiser,
    Metaschedule,
    option,
    pick_device,
    say_once,
)
from hdlm.published_names import alignment_of, parameterization
from hdlm.regime import Regime
from hdlm.sampling import Execution, Prompt, algorithm, sample
from hdlm.vocabulary import GPT2, Vocabulary

__all__ = [
    "Model",
    "device_of",
    "draw_seed",
    "fitted",
    "full_diff",
    "full_diff_shifted",
    "semi_diff",
    "semi_diff_shifted",
    "views",
]

P = ParamSpec("P")
Model = Callable[..., Any]
"""A model of `smart_model_loader`, or a callable with the same interface."""


def _ask_full(
    model: Model,
    metaschedule: AbstractHyperschedule | None = None,
    annealing: Any = None,
    prompt: Tensor | None = None,
    batch_size: int = 1,
    alg: str = "original",
    steps: int = 512,
    temperature: float = 1.0,
    cfg_scale: float = 0.0,
    context_length: int = DDiTConfig.max_length,
    eps: float = 1e-5,
    dim: int | None = None,
    device: torch.device | str | int | None = None,
    repetition_penalty: float = 1.0,
    eta: float = 0.015,
    *,
    seed: int | None = None,
    first_sequence: int = 0,
) -> _Asked:
    """Write all positions together.

    Args:
        model: Function `model(ids, positions)` that returns logits, a row for each word and perhaps one for the mask.
        metaschedule: A hyperschedule to use; `steps` is then ignored. It is fitted to the length.
        annealing: The `annealing` part of a published configuration; its `attention` sets the attention, for models
            that support it. By default the attention is that of the training.
        prompt: Given words, `[p]`, `[1, p]` or a row for each sequence; they come first and do not change.
        batch_size: Number `b` of sequences.
        alg: `"original"`, `"acs"`, `"remask"`, `"remask_adhoc_shuffle"`, `"remdm"`, or another name of
            `hdlm.sampling.ALGORITHMS`.
        steps: Number of steps from noise to text.
        temperature: Temperature of at least 0; 0 takes the likeliest words.
        cfg_scale: Scale of guidance by the prompt; 0 is none.
        context_length: Number `l` of positions, including those of the prompt.
        eps: Noise fractions go from 1 down to `eps` evenly, as published; the last is then lowered to 0.
        dim: Id of the mask, which is the number of words. By default the model's, or GPT-2's if the model is a
            function.
        device: Device of the computation. By default that of the model.
        repetition_penalty: Power of the probability of words that the sequence already holds; 1 is off. The published
            default was 1.2, which divided logits of either sign, for words of the whole batch.
        eta: Strength of corrections and remasking, in [0, 1].
        seed: Of all randomness; by default drawn from torch's global generator, so that `torch.manual_seed` fixes it.
        first_sequence: Number of the first sequence: number 5 is the sixth sequence of a longer run with this seed.

    Raises:
        ValueError: If an argument is out of range, the prompt does not fit, or the model returns something else.
    """
    plan = fitted(metaschedule, context_length) or flat(context_length, steps)
    how = Settings(
        alg, eta, temperature=temperature, repetition_penalty=repetition_penalty, guidance=cfg_scale
    )
    return _Asked(model, plan, how, annealing, prompt, batch_size, eps, dim, device, seed, first_sequence)


def _ask_semi(
    model: Model,
    prompt: Tensor | None = None,
    batch_size: int = 1,
    alg: str = "original",
    steps: int = 512,
    temperature: float = 1.0,
    cfg_scale: float = 0.0,
    context_length: int = DDiTConfig.max_length,
    eps: float = 1e-5,
    dim: int | None = None,
    device: torch.device | str | int | None = None,
    repetition_penalty: float = 1.0,
    eta: float = 0.01,
    block_size: int = 16,
    *,
    metaschedule: AbstractHyperschedule | None = None,
    annealing: Any = None,
    seed: int | None = None,
    first_sequence: int = 0,
) -> _Asked:
    """Write block after block; the other arguments are those of `full_diff`.

    Args:
        model: As in `full_diff`.
        prompt: As in `full_diff`; blocks are counted from the first position of the canvas, not from its end.
        batch_size: As in `full_diff`.
        alg: As in `full_diff`.
        steps: Steps of *each* block. The network is called only in steps that change something, so with `"original"` at
            most as often as a block has positions.
        temperature: As in `full_diff`.
        cfg_scale: As in `full_diff`.
        context_length: As in `full_diff`.
        eps: As in `full_diff`.
        dim: As in `full_diff`.
        device: As in `full_diff`.
        repetition_penalty: As in `full_diff`.
        eta: As in `full_diff`.
        block_size: Positions that are written together; the last block may be shorter.
        metaschedule: As in `full_diff`; `steps` and `block_size` are then not used.
        annealing: As in `full_diff`.
        seed: As in `full_diff`.
        first_sequence: As in `full_diff`.

    Raises:
        ValueError: As in `full_diff`.
    """
    plan = fitted(metaschedule, context_length) or Block(context_length, block_size, steps)
    how = Settings(
        alg, eta, temperature=temperature, repetition_penalty=repetition_penalty, guidance=cfg_scale
    )
    return _Asked(model, plan, how, annealing, prompt, batch_size, eps, dim, device, seed, first_sequence)


def _sampler(name: str, ask: Callable[P, _Asked], doc: str | None = None) -> Callable[P, Tensor]:
    """The published sampler of this name.

    Args:
        name: Its published name; names of samplers of shifted models end in `_shifted`.
        ask: A function with the parameters of the sampler that returns the request.
        doc: Documentation of the sampler, if not that of `ask`.
    """

    @functools.wraps(ask)
    def sampler(*args: P.args, **kwargs: P.kwargs) -> Int[Tensor, "b l"]:
        return ask(*args, **kwargs).write(shifted=name.endswith("_shifted"))

    signature = inspect.signature(ask).replace(return_annotation="Int[Tensor, 'b l']")
    vars(sampler).update(__signature__=signature)
    sampler.__name__, sampler.__qualname__, sampler.__doc__ = name, name, doc or ask.__doc__
    return sampler


full_diff = _sampler("full_diff", _ask_full)
full_diff_shifted = _sampler(
    "full_diff_shifted",
    _ask_full,
    """`full_diff` of a model whose logits at a position speak of the next one.

    Nothing speaks of the first position. Without a prompt it is given the vocabulary's begin-of-sequence token, or else
    its end-of-document token; GPT-2's if `dim` is GPT-2's.

    Raises:
        ValueError: As `full_diff`; and if there is neither a prompt nor such a token.
    """,
)
semi_diff = _sampler("semi_diff", _ask_semi)
semi_diff_shifted = _sampler(
    "semi_diff_shifted",
    _ask_semi,
    """`semi_diff` of a model whose logits at a position speak of the next one; see `full_diff_shifted`.

    Raises:
        ValueError: As `full_diff_shifted`.
    """,
)


@final
@dataclass(frozen=True)
class _Grid(AbstractNoiseSchedule):
    """`u(t) = eps + (1 - eps) t`: the published even grid from 1 down to `eps`."""

    eps: float

    def __post_init__(self) -> None:
        if not 0 <= self.eps < 1:
            raise ValueError(f"`eps` must lie in [0, 1); got {self.eps}.")

    def fraction(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return self.eps + (1 - self.eps) * t

    def rate(self, t: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return torch.full_like(t, 1 - self.eps)

    def time(self, u: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        return (u - self.eps) / (1 - self.eps)


@final
@dataclass(frozen=True)
class _Asked:
    """The arguments of all four samplers of logits."""

    model: Model
    plan: AbstractHyperschedule
    how: Settings
    annealing: Any
    prompt: Tensor | None
    batch_size: int
    eps: float
    dim: int | None
    device: torch.device | str | int | None
    seed: int | None
    first_sequence: int

    def write(self, *, shifted: bool) -> Int[Tensor, "b l"]:
        """Generate with the model; its logits are those of a shifted model or not."""
        plan, how = self.plan, self.how
        vocabulary = self._vocabulary()
        denoiser = self._denoiser(vocabulary, shifted)
        prompt = _prompt(self.prompt, self.batch_size, plan.length)
        if prompt is None and shifted:
            prompt = _first(vocabulary, plan.length)
        device = device_of(self.model, self.device, self.prompt)
        step = algorithm(how.algorithm, denoiser.process, how.eta)
        if how.guidance:
            if self.prompt is None or prompt is None:
                raise ValueError(
                    "`cfg_scale` is the strength of guidance by the prompt, but there is no prompt: give one, or "
                    "leave it at 0."
                )
            denoiser = Guided(denoiser, prompt.fixed[:1].to(device), how.guidance)
        done = sample(
            denoiser,
            Regime(plan, _Grid(self.eps), *views(self.annealing, self.model)),
            step,
            num_sequences=self.batch_size,
            seed=draw_seed(self.seed),
            prompt=prompt,
            transforms=how.transforms(),
            execution=Execution(
                first_sequence=self.first_sequence,
                use_cache=isinstance(self.model, AbstractPublishedModel),
                device=device,
            ),
        )
        return done.tokens

    def _vocabulary(self) -> Vocabulary:
        """The vocabulary of the ids."""
        if isinstance(self.model, AbstractPublishedModel):
            own = self.model.checkpoint.vocabulary
            if self.dim not in (None, own.mask_id):
                raise ValueError(
                    f"`dim` is the id of the mask, {own.mask_id} for this model; got {self.dim}."
                )
            return own
        return GPT2 if self.dim in (None, GPT2.mask_id) else Vocabulary(self.dim)

    def _denoiser(self, vocabulary: Vocabulary, shifted: bool) -> AbstractDenoiser:
        """The model as a denoiser, shifted or not."""
        asked = "shifted" if shifted else "aligned"
        if not isinstance(self.model, AbstractPublishedModel):
            meaning = parameterization(asked, Mean())
            return CallableDenoiser(self.model, Absorbing(vocabulary.num_words), meaning)
        own = self.model.denoiser
        trained, inner = alignment_of(own.parameterization)
        if trained == asked:
            return own
        say_once(f"hdlm: this model was trained {trained}, and its logits are read {asked}.")
        return Denoiser(own.backbone, own.process, parameterization(asked, inner))


def draw_seed(seed: int | None) -> int:
    """The given seed, or a seed from torch's global generator."""
    return int(torch.randint(2**63 - 1, ())) if seed is None else seed


def device_of(
    model: Model, wanted: torch.device | str | int | None, prompt: Tensor | None = None
) -> torch.device:
    """The device of the model, on which the sampler computes.

    Raises:
        ValueError: If another device is requested.
    """
    weights = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if weights is None:
        if wanted is not None:
            return pick_device(wanted)
        return torch.device("cpu") if prompt is None else prompt.device
    if wanted is not None and pick_device(wanted).type != weights.device.type:
        raise ValueError(
            f"The model is on {weights.device} and `device` is {wanted}: move it, `model.to({wanted!r})`."
        )
    return weights.device


def fitted(plan: Any, length: int) -> AbstractHyperschedule | None:
    """A hyperschedule over `length` positions.

    Raises:
        ValueError: If the value is not a hyperschedule, or does not support the length.
    """
    if plan is None:
        return None
    if not isinstance(plan, AbstractHyperschedule):
        raise ValueError(
            f"`metaschedule` must be what `smart_model_loader` returns, or a class of `hdlm.hyperschedule`; got a "
            f"{type(plan).__name__}."
        )
    return (plan if isinstance(plan, Metaschedule) else Metaschedule(plan)).fitted(length)


def _prompt(given: Tensor | None, batch_size: int, length: int) -> Prompt | None:
    """A prompt at the beginning of every sequence.

    Raises:
        ValueError: If the prompt does not fit.
    """
    if given is None or given.numel() == 0:
        return None
    rows = given[None] if given.ndim == 1 else given
    if rows.ndim != 2 or len(rows) not in (1, batch_size) or rows.is_floating_point():
        raise ValueError(
            f"The prompt must hold ids, [1, p] or [{batch_size}, p] for batch_size={batch_size}; got "
            f"{list(given.shape)} of {given.dtype}."
        )
    front = Prompt.prefix(rows[0].long().cpu(), length)
    tokens = front.tokens.repeat(len(rows), 1)
    tokens[:, : rows.shape[1]] = rows
    return Prompt(tokens, front.fixed.expand_as(tokens))


def _first(vocabulary: Vocabulary, length: int) -> Prompt:
    """A prompt with the first token for a shifted model.

    Raises:
        ValueError: If the vocabulary has no such token.
    """
    first = vocabulary.eos if vocabulary.bos is None else vocabulary.bos
    if first is None:
        raise ValueError(
            "A shifted model does not predict the first position, and its vocabulary has no begin-of-sequence token: "
            "give a `prompt` of at least one token."
        )
    return Prompt.prefix([first], length)


def views(annealing: Any, model: Model) -> tuple[Context, Active]:
    """The attention of settled and active positions: as `annealing` sets it, or as in training.

    Raises:
        ValueError: If it names an unknown kind of attention.
    """
    trained: tuple[Context, Active] = ("block_causal", "full")
    if isinstance(model, AbstractPublishedModel):
        trained = model.checkpoint.context, model.checkpoint.active
    asked = []
    for name, choices, default in zip(
        ("context_type", "block_type"), (Context, Active), trained, strict=True
    ):
        asked.append(option(annealing, f"attention.{name}", default))
        if asked[-1] not in get_args(choices):
            known = ", ".join(get_args(choices))
            raise ValueError(f"`annealing.attention.{name}` must be one of {known}; got {asked[-1]!r}.")
    return cast("Context", asked[0]), cast("Active", asked[1])
