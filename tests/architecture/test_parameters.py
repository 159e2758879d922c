"""Functions take few parameters: what belongs together is one object, a `Regime` or an `Execution`."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Iterator

import pytest

from hdlm.evaluation import AbsorbingBound, HybridBound, Likelihood, estimate_likelihood
from hdlm.generation import complete
from hdlm.objective import Corruption
from hdlm.regime import Regime
from hdlm.sampling import Engine, Execution, sample, sample_plainly
from tests.architecture.source import modules

# These functions may have more parameters than others.
LONGER = {
    "hdlm.published.samplers._ask_full",  # has the parameters of a published function
    "hdlm.published.samplers._ask_semi",  # has the parameters of a published function
    "hdlm.workflows.train",  # has the pieces of a model, each of them optional
    "hdlm.workflows.finetune",  # has the pieces of a model, each of them optional
}


@pytest.mark.parametrize(
    "function",
    [
        sample,
        sample_plainly,
        Engine,
        Execution,
        complete,
        estimate_likelihood,
        Likelihood,
        Likelihood.of_text,
        AbsorbingBound,
        HybridBound,
        Corruption,
        Regime,
    ],
    ids=lambda function: function.__qualname__,
)
def test_sampling_and_likelihood_take_at_most_ten_parameters(function: Callable[..., object]) -> None:
    names = [name for name in inspect.signature(function).parameters if name != "self"]
    assert len(names) <= 10, names


def _parameters() -> Iterator[tuple[str, int]]:
    for module in modules():
        for node in module.nodes:
            if isinstance(node, ast.FunctionDef):
                names = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
                yield f"{module.name}.{node.name}", len([n for n in names if n not in ("self", "cls")])


def test_no_other_function_takes_more_than_twelve() -> None:
    assert {name for name, count in _parameters() if count > 12} == LONGER
