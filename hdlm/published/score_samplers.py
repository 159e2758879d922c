"""The published samplers of scores, `get_sa_sampling_fn`, based on the one loop `hdlm.sampling.sample`.

| published | here |
|---|---|
| `predictor: analytic`, `euler` | `sample(denoiser, regime, Analytic())`, `Euler()` |
| `noise_removal: true` | always: the last step goes to noise 0 |
| `eps` | `Regime.sampling_eps` |
| `graph`, `noise`, `meta_schedule` | `hdlm.process`, `hdlm.noise_schedule`, `hdlm.hyperschedule` |
| NAR, SAR | `Execution(use_cache=False)`, `True` |

Errors of the published code are corrected: the kernels are inverted exactly, and the score of the current token is 1,
so that masks fall gradually instead of in the first step.

Reference: SEDD (arXiv 2310.16834), HDLM (arXiv 2504.06416).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from jaxtyping import Int
from torch import Tensor

from hdlm.denoiser import AbstractDenoiser, Denoiser
from hdlm.hyperschedule import AbstractHyperschedule
from hdlm.noise_schedule import AbstractNoiseSchedule
from hdlm.parameterization import LogScore
from hdlm.process import Absorbing, AbstractNoiseProcess
from hdlm.published.model import AbstractPublishedModel, CallableDenoiser, option
from hdlm.published.samplers import Model, device_of, draw_seed, fitted, views
from hdlm.published_names import DEFAULTS, hyperschedule, noise_process, noise_schedule
from hdlm.regime import Regime
from hdlm.sampling import Analytic, Euler, Execution, Move, Step, algorithm, sample

__all__ = ["get_nar_sampling_fn", "get_sar_sampling_fn"]


def get_nar_sampling_fn(
    config: Any,
    graph: AbstractNoiseProcess | None = None,
    noise: AbstractNoiseSchedule | None = None,
    meta_schedule: AbstractHyperschedule | None = None,
    batch_dims: Sequence[int] = (1,),
    eps: float = 1e-4,
    device: torch.device | str | int | None = None,
    *,
    seed: int | None = None,
    first_sequence: int = 0,
) -> Callable[[Model], Tensor]:
    """A sampler of score models that computes every position at every step; published in `hdlm.gamma_hybrid.sampling`.

    The configuration selects the step by `sampling.predictor`: `analytic` (the default), `euler`, or `none`, which
    keeps the noise up to the last step and then writes all open positions at once. Alternatively it names an algorithm
    of `hdlm.sampling.ALGORITHMS` as `sampling.algorithm` (with `sampling.eta`). `annealing.attention` sets the
    attention. The function determines the order; `annealing.sampling_method` has no effect.

    Args:
        config: A published configuration: an OmegaConf node, a mapping, or an object with attributes.
        graph: The noise process; by default the model's own, or the one that `config.graph` names.
        noise: The noise schedule; by default that of the model's training, or the one that `config.noise` names.
        meta_schedule: The hyperschedule; by default the one that `config.annealing` names, with `eval_tau` levels.
        batch_dims: Number of sequences, and of positions; without the latter, those of the hyperschedule.
        eps: Distance that times keep from 0 and 1, as in training (`AbstractHyperschedule.time_grid`).
        device: Device of the computation; by default that of the model.
        seed: Seed of all randomness; by default drawn from torch's global generator at every call.
        first_sequence: Number of the first sequence of the run.

    Returns:
        A function of a model that returns `[b, l]` words. The model is one of `smart_model_loader`, or a function
        `model(ids, sigma, positions=positions)` that returns log scores.

    Raises:
        ValueError: If the configuration names an unknown component.
    """
    given = config, graph, noise, meta_schedule, tuple(batch_dims), eps, device, seed, first_sequence
    return _ScoreSampler(*given, use_cache=False)


def get_sar_sampling_fn(
    config: Any,
    graph: AbstractNoiseProcess | None = None,
    noise: AbstractNoiseSchedule | None = None,
    meta_schedule: AbstractHyperschedule | None = None,
    batch_dims: Sequence[int] = (1,),
    eps: float = 1e-4,
    device: torch.device | str | int | None = None,
    *,
    seed: int | None = None,
    first_sequence: int = 0,
) -> Callable[[Model], Tensor]:
    """`get_nar_sampling_fn`, except that models of hdlm cache keys and values of settled positions.

    The cache changes no number. Published in `hdlm.gamma_hybrid.sampling_sar`.

    Raises:
        ValueError: As in `get_nar_sampling_fn`.
    """
    given = config, graph, noise, meta_schedule, tuple(batch_dims), eps, device, seed, first_sequence
    return _ScoreSampler(*given, use_cache=True)


@final
@dataclass(frozen=True)
class _Leap:
    """`predictor: none`: nothing happens until the last step of a position, which then removes all its noise.

    Attributes:
        fraction: Initial noise fraction of generation, which every position keeps until then.
    """

    fraction: float

    def __call__(self, x: Int[Tensor, "b l"], move: Move) -> Int[Tensor, "b l"]:
        waiting = torch.where(move.t > 0, self.fraction, 0.0).to(move.t.dtype)
        return Analytic()(x, replace(move, t=waiting, moving=move.moving & (move.s == 0)))


@final
@dataclass(frozen=True)
class _ScoreSampler:
    """The arguments of the two samplers of scores; a call with a model generates."""

    config: Any
    graph: AbstractNoiseProcess | None
    noise: AbstractNoiseSchedule | None
    meta_schedule: AbstractHyperschedule | None
    batch_dims: tuple[int, ...]
    eps: float
    device: torch.device | str | int | None
    seed: int | None
    first_sequence: int
    use_cache: bool

    def __post_init__(self) -> None:
        if len(self.batch_dims) not in (1, 2):
            raise ValueError(
                f"`batch_dims` must be (sequences,) or (sequences, positions); got {self.batch_dims}."
            )
        if not option(self.config, "sampling.noise_removal", True):
            raise ValueError(
                "`sampling.noise_removal: false` leaves noise, and so masks, in the text. Set it to true."
            )
        self._plan().time_grid(self.eps)
        self._step(Absorbing(1), 1.0)

    def __call__(self, model: Model) -> Int[Tensor, "b l"]:
        """Generate with a model."""
        denoiser = self._denoiser(model)
        noise = self._noise(model)
        seen = views(option(self.config, "annealing"), model)
        regime = Regime(self._plan(), noise, *seen, sampling_eps=self.eps)
        done = sample(
            denoiser,
            regime,
            self._step(denoiser.process, regime.final_noise),
            num_sequences=self.batch_dims[0],
            seed=draw_seed(self.seed),
            execution=Execution(
                first_sequence=self.first_sequence,
                use_cache=self.use_cache and isinstance(model, AbstractPublishedModel),
                device=device_of(model, self.device),
            ),
        )
        return done.tokens

    def _denoiser(self, model: Model) -> AbstractDenoiser:
        if not isinstance(model, AbstractPublishedModel):
            told_at_least = float(self._noise(model).fraction(torch.tensor(self.eps, dtype=torch.float64)))
            meaning = LogScore(scale_by_sigma=False, floor=told_at_least)
            return CallableDenoiser(model, self.graph or _process_of(self.config), meaning, told_sigma=True)
        own = model.denoiser
        if self.graph is None or self.graph == own.process:
            return own
        return Denoiser(own.backbone, self.graph, own.parameterization)

    def _noise(self, model: Model) -> AbstractNoiseSchedule:
        if self.noise is not None:
            return self.noise
        if isinstance(model, AbstractPublishedModel):
            return model.checkpoint.noise_schedule
        return _noise_of(self.config)

    def _plan(self) -> AbstractHyperschedule:
        given = self.meta_schedule
        length = option(self.config, "model.length") if given is None else getattr(given, "length", None)
        length = self.batch_dims[1] if len(self.batch_dims) == 2 else length
        if length is None:
            raise ValueError("The number of positions is unknown: give `batch_dims=(sequences, positions)`.")
        return fitted(given, length) or _plan_of(self.config, length)

    def _step(self, process: AbstractNoiseProcess, full: float) -> Step:
        named = option(self.config, "sampling.algorithm")
        if named is not None:
            return algorithm(named, process, option(self.config, "sampling.eta", 0.01))
        predictor = option(self.config, "sampling.predictor", "analytic")
        steps: dict[str, Step] = {"analytic": Analytic(), "euler": Euler(), "none": _Leap(full)}
        if predictor not in steps:
            raise ValueError(
                f"`sampling.predictor` must be one of {', '.join(steps)}; got {predictor!r}. For another sampler, name "
                "it as `sampling.algorithm`."
            )
        return steps[predictor]


def _process_of(config: Any) -> AbstractNoiseProcess:
    """The noise process that a published configuration names."""
    words, graph, gamma = (option(config, name) for name in ("tokenizer.tokens", "graph.type", "graph.gamma"))
    if words is None:
        raise ValueError("The configuration lacks `tokenizer.tokens`, the number of words; or give `graph`.")
    if gamma is None and graph == "QGamma":
        raise ValueError(
            "The configuration lacks `graph.gamma`, which the model was trained with; or give `graph`."
        )
    return noise_process(str(graph), words, gamma or 0.0)


def _noise_of(config: Any) -> AbstractNoiseSchedule:
    """The noise schedule that a published configuration names."""
    noise = option(config, "noise.type", DEFAULTS["noise.type"])
    ends = [option(config, f"noise.{end}") for end in ("sigma_min", "sigma_max")]
    if noise == "geometric" and None in ends:
        raise ValueError(
            "The configuration lacks `noise.sigma_min` or `noise.sigma_max`, which the model was trained with; or give "
            "`noise`."
        )
    return noise_schedule(noise, *(ends if noise == "geometric" else ()))


def _plan_of(config: Any, length: int) -> AbstractHyperschedule:
    """The hyperschedule that a published configuration names."""
    annealing = option(config, "annealing")
    width = min(option(annealing, "width", length), length)
    levels = option(annealing, "eval_tau", option(annealing, "tau"))
    return hyperschedule(option(annealing, "type", "none"), length, width, levels)
