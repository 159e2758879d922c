"""Laws of a noise schedule: it rises inside [0, 1], and its derivative and inverse are consistent with it."""

from __future__ import annotations

import torch
from torch import Tensor

from hdlm.noise_schedule import AbstractNoiseSchedule
from hdlm.verification.finding import Finding, Law, Trial, error

__all__ = ["NOISE_SCHEDULE_LAWS"]


def fractions_rise_inside_their_range(schedule: AbstractNoiseSchedule, trial: Trial) -> Finding:
    """`0 <= u(t) <= 1`, and `u` rises with `t`."""
    u = schedule.fraction(torch.linspace(0, 1, 201, dtype=torch.float64))
    outside = torch.cat([u.clamp_max(0), (u - 1).clamp_min(0)])
    stalls = (u.diff() <= 0) & (u[1:] < 1 - 1e-9)  # in floating point, 1 is reached before the end
    return error(torch.cat([outside, stalls.double()]), 0.0, 1e-12)


def the_rate_is_the_derivative(schedule: AbstractNoiseSchedule, trial: Trial) -> Finding:
    """`rate(t) = du/dt`."""
    t, h = _times(trial), 1e-4

    def slope(step: float) -> Tensor:
        return (schedule.fraction(t + step) - schedule.fraction(t - step)) / (2 * step)

    return error((4 * slope(h / 2) - slope(h)) / 3, schedule.rate(t), 1e-6)


def time_inverts_the_fraction(schedule: AbstractNoiseSchedule, trial: Trial) -> Finding:
    """`u(time(u)) = u`."""
    u = schedule.fraction(_times(trial))
    return error(schedule.fraction(schedule.time(u)), u, 1e-9)


NOISE_SCHEDULE_LAWS: tuple[Law, ...] = (
    fractions_rise_inside_their_range,
    the_rate_is_the_derivative,
    time_inverts_the_fraction,
)


def _times(trial: Trial) -> Tensor:
    return 0.01 + 0.98 * trial.numbers(256)
