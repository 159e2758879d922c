"""The tests check the shapes of some calls of every function of the package."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from hdlm.sampling.ties import ascending
from tests import shape_checks


def test_wrong_shape_is_an_error_in_package() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        ascending(torch.zeros(1, 3), torch.zeros(1, 4))


def test_calls_with_power_of_two_are_checked() -> None:
    @shape_checks.check_some_calls(typechecker=beartype)
    def mean(rows: Float[Tensor, "n l"]) -> Float[Tensor, ""]:
        return rows.mean()

    refused = []
    for number in range(1, 20):
        try:
            mean(torch.zeros(3))
        except jaxtyping.TypeCheckError:
            refused.append(number)
    assert refused == [1, 2, 4, 8, 16]
    shape_checks.begin_test()
    with pytest.raises(jaxtyping.TypeCheckError):
        mean(torch.zeros(3))


def test_wrong_return_value_is_an_error() -> None:
    @shape_checks.check_some_calls(typechecker=beartype)
    def first_row(rows: Float[Tensor, "n l"]) -> Float[Tensor, " l"]:
        return rows

    with pytest.raises(jaxtyping.TypeCheckError, match="return value"):
        first_row(torch.zeros(2, 3))
