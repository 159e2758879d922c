"""A peer's golden folder: its model as the hub loads it, and what its own code computed."""

from __future__ import annotations

from pathlib import Path
from typing import final

import numpy as np
import torch
from torch import Tensor

from hdlm.denoiser import Denoiser, ForwardContext, Prediction
from hdlm.hub import load
from hdlm.noise_schedule import AbstractNoiseSchedule
from hdlm.objective import Canvas
from hdlm.parameterization import AbstractParameterization
from hdlm.process import AbstractNoiseProcess

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
"""The tolerance of the parity tests of peers."""


@final
class Peer:
    """A golden folder.

    Args:
        folder: Where.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.checkpoint = load(folder)
        self.denoiser = self.checkpoint.denoiser
        self.network = self.checkpoint.network
        self.process = self.denoiser.process
        self.noise_schedule = self.checkpoint.noise_schedule
        self._arrays: dict[str, dict[str, Tensor]] = {}
        for path in folder.glob("*.npz"):
            with np.load(path) as file:
                self._arrays[path.stem] = {key: torch.from_numpy(np.array(file[key])) for key in file.files}

    def __getitem__(self, name: str) -> Tensor:
        """An array of `io.npz`."""
        return self._arrays["io"][name]

    def grid(self, name: str) -> Tensor:
        """An array of `process.npz`."""
        return self._arrays["process"][name]

    def read_by(
        self, parameterization: AbstractParameterization, process: AbstractNoiseProcess | None = None
    ) -> Denoiser:
        """The network with another parameterization and, if given, another process."""
        return Denoiser(self.network, process or self.process, parameterization)


def spread_over(rows: Tensor, like: Tensor) -> Tensor:
    """One number a row, or one a position, at every position; float64."""
    return rows.double().view(len(rows), -1).expand(like.shape)


def canvas(
    x_0: Tensor,
    x_t: Tensor,
    times: Tensor,
    schedule: AbstractNoiseSchedule,
    *,
    later: Tensor | None = None,
    steps: float = 0.0,
) -> Canvas:
    """Their noisy batch as ours, every position active: in continuous time, or before a step to earlier times.

    Args:
        x_0: Clean tokens.
        x_t: Noisy tokens.
        times: One a row, or one a position.
        schedule: From time to noise.
        later: The times after the step.
        steps: How many steps there are.
    """
    t = spread_over(times, x_0)
    s = t if later is None else spread_over(later, x_0)
    u = schedule.fraction(t)
    return Canvas(x_0, x_t, u, schedule.fraction(s), schedule.rate(t), torch.full_like(u, steps))


@torch.no_grad()
def logits(denoiser: Denoiser, x_t: Tensor, u: Tensor) -> Tensor:
    """Raw outputs everywhere, for rows of one noise fraction each."""
    prediction = _ask(denoiser, x_t, u)
    return prediction.raw(prediction.everywhere()).view(*x_t.shape, -1)


@torch.no_grad()
def log_clean(denoiser: Denoiser, x_t: Tensor, u: Tensor) -> Tensor:
    """`log p(x_0 | x_t)` everywhere."""
    prediction = _ask(denoiser, x_t, u)
    return prediction.log_clean(prediction.everywhere()).view(*x_t.shape, -1)


@torch.no_grad()
def log_score(denoiser: Denoiser, x_t: Tensor, u: Tensor) -> Tensor:
    """`log p_u(y) / p_u(x_t)` everywhere."""
    prediction = _ask(denoiser, x_t, u)
    return prediction.log_score(prediction.everywhere()).view(*x_t.shape, -1)


def _ask(denoiser: Denoiser, x_t: Tensor, u: Tensor) -> Prediction:
    return denoiser.predict(x_t, spread_over(u, x_t), ForwardContext())


def posterior(denoiser: Denoiser, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """`p(x_s | x_t)` everywhere."""
    clean = log_clean(denoiser, x_t, t).double().exp()
    return denoiser.process.posterior(x_t, clean, spread_over(s, x_t), spread_over(t, x_t))


def tweedie(denoiser: Denoiser, x_t: Tensor, s: Tensor, t: Tensor) -> Tensor:
    """The analytic step everywhere."""
    score = log_score(denoiser, x_t, t).double().exp()
    return denoiser.process.tweedie(x_t, score, spread_over(s, x_t), spread_over(t, x_t))


def normalised(weights: Tensor) -> Tensor:
    """Unnormalised weights as a distribution, float64, none below zero."""
    positive = weights.double().clamp_min(0)
    return positive / positive.sum(-1, keepdim=True)


def minus_infinity(log_p: Tensor) -> Tensor:
    """Their `-1e6` and below as `-inf`, in place of which they put it."""
    return log_p.masked_fill(log_p < -1e5, -torch.inf)
