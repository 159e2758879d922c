"""Laws of every noise schedule. Each schedule in `__all__` must be in `EXAMPLES`."""

from __future__ import annotations

import inspect
import math

import pytest
import torch

import hdlm.noise_schedule as module
from hdlm.noise_schedule import (
    LINEAR,
    AbstractNoiseSchedule,
    Composed,
    ConstantRate,
    Cosine,
    CosinePower,
    Geometric,
    Interpolated,
    Linear,
    Logarithmic,
    LogLinear,
    Power,
    time_grid,
    total_noise,
)
from hdlm.verification import Trial, laws_of

EXAMPLES: dict[type[AbstractNoiseSchedule], tuple[AbstractNoiseSchedule, ...]] = {
    Linear: (Linear(),),
    LogLinear: (LogLinear(), LogLinear(5e-3), LogLinear(0.0)),
    Cosine: (Cosine(), Cosine(1e-3)),
    CosinePower: (CosinePower(), CosinePower(2.0), CosinePower(1.5, floor=0.0)),
    Power: (Power(2.0), Power(0.5)),
    Logarithmic: (Logarithmic(),),
    ConstantRate: (ConstantRate(), ConstantRate(1e-3, 7.0)),
    Geometric: (Geometric(), Geometric(1e-3, 1.0)),
    Interpolated: (Interpolated((1.0,)), Interpolated((0.1, 0.15, 0.9, 1.0))),
    Composed: (Composed(LogLinear(5e-3), Cosine()), Composed(Geometric(), Interpolated((0.3, 1.0)))),
}
ALL = [pytest.param(schedule, id=repr(schedule)) for family in EXAMPLES.values() for schedule in family]
LAWS = [pytest.param(law, id=law.__name__) for law in laws_of(Linear())]
TIMES = torch.linspace(0, 1, 101, dtype=torch.float64)


def test_examples_cover_every_public_noise_schedule():
    public = {getattr(module, name) for name in module.__all__}
    classes = {item for item in public if inspect.isclass(item) and not inspect.isabstract(item)}
    assert classes == set(EXAMPLES)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("schedule", ALL)
def test_noise_schedule_obeys_law(schedule, law):
    finding = law(schedule, Trial(seed=1))
    assert finding is not None
    assert finding.ok, f"{law.__doc__.splitlines()[0]} {finding}"


def test_noise_schedules_follow_definitions():
    """Repeats the definitions of MATH 1."""
    torch.testing.assert_close(Linear().fraction(TIMES), TIMES)
    e = 5e-3
    torch.testing.assert_close(total_noise(LogLinear(e).fraction(TIMES)), -torch.log(1 - (1 - e) * TIMES))
    torch.testing.assert_close(Cosine().fraction(TIMES), torch.cos(math.pi / 2 * (1 - TIMES)))
    inner = TIMES[1:-20]
    sigma = 1e-3 ** (1 - inner) * 10**inner
    torch.testing.assert_close(total_noise(Geometric(1e-3, 10.0).fraction(inner)), sigma)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LogLinear(1.0), "floor.*1.0"),
        (lambda: Cosine(1.0), "floor.*1.0"),
        (lambda: CosinePower(0.5), "exponent.*0.5"),
        (lambda: CosinePower(floor=-0.1), "floor.*-0.1"),
        (lambda: Power(0.0), "exponent.*0.0"),
        (lambda: ConstantRate(2.0, 1.0), "2.0 and 1.0"),
        (lambda: Geometric(0.0, 1.0), "0.0 and 1.0"),
        (lambda: Geometric(2.0, 1.0), "2.0 and 1.0"),
    ],
)
def test_noise_schedules_reject_bad_parameters(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 49])
def test_interpolated_grid_visits_its_times_exactly(steps):
    """With as many steps as times the grid is bit-exact. Otherwise it is linear between its times."""
    values = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[1:] ** 1.7
    grid = Interpolated(tuple(values.tolist()))
    assert torch.equal(grid.fraction(torch.arange(1, steps + 1).double() / steps), values)
    halfway = grid.fraction((torch.arange(steps).double() + 0.5) / steps)
    torch.testing.assert_close(halfway, (values + torch.cat([torch.zeros(1), values[:-1]])) / 2)


def test_time_grid_parses_text():
    assert time_grid("uniform") == LINEAR
    assert time_grid("cosine") == Cosine()
    assert time_grid("power:0.5") == Power(0.5)
    assert time_grid("0.2,0.6,1") == Interpolated((0.2, 0.6, 1.0))
    for text in ("", "cosine:2", "power", "power:-1", "0.5,0.2,1", "0,1", "0.5", "0.5,nan,1", "sine"):
        with pytest.raises(ValueError, match=r"grid must be|grid needs"):
            time_grid(text)
    with pytest.raises(ValueError, match="must begin at 0 and end at 1"):
        Composed(LINEAR, LogLinear(0.1))
