"""The tests check the shapes of some calls of every function of the package."""

from __future__ import annotations

from collections.abc import Callable

import jaxtyping
import pytest
import torch
from beartype import beartype
from jaxtyping import Float
from torch import Tensor

from hdlm.process import Weights
from hdlm.sampling.ties import ascending
from tests import shape_checks


def test_wrong_shape_is_an_error_in_package() -> None:
    with pytest.raises(jaxtyping.TypeCheckError):
        ascending(torch.zeros(1, 3), torch.zeros(1, 4))


def test_calls_with_power_of_four_are_checked() -> None:
    @shape_checks.check_some_calls(typechecker=beartype)
    def mean(rows: Float[Tensor, "n l"]) -> Float[Tensor, ""]:
        return rows.mean()

    refused = []
    for number in range(1, 70):
        try:
            mean(torch.zeros(3))
        except jaxtyping.TypeCheckError:
            refused.append(number)
    assert refused == [1, 4, 16, 64]
    shape_checks.begin_test()
    with pytest.raises(jaxtyping.TypeCheckError):
        mean(torch.zeros(3))


def test_wrong_return_value_is_an_error() -> None:
    @shape_checks.check_some_calls(typechecker=beartype)
    def first_row(rows: Float[Tensor, "n l"]) -> Float[Tensor, " l"]:
        return rows

    with pytest.raises(jaxtyping.TypeCheckError, match="return"):
        first_row(torch.zeros(2, 3))


def test_functions_of_one_def_share_checks_and_keep_their_own_values() -> None:
    def adding(number: int) -> Callable[[Tensor], Tensor]:
        @shape_checks.check_some_calls(typechecker=beartype)
        def add(rows: Float[Tensor, "n l"]) -> Float[Tensor, "n l"]:
            return rows + number

        return add

    shape_checks.begin_test()
    assert [adding(number)(torch.zeros(1, 1)).item() for number in range(8)] == list(range(8))
    for number in range(9, 16):
        adding(number)(torch.zeros(1))
    with pytest.raises(jaxtyping.TypeCheckError):
        adding(16)(torch.zeros(1))
    assert adding(17)(torch.zeros(1, 1)).item() == 17


def test_wrong_shape_in_dataclass_is_an_error_in_every_object() -> None:
    for _ in range(3):
        with pytest.raises(jaxtyping.TypeCheckError):
            Weights(torch.zeros(3), torch.zeros(3), torch.zeros(4))
