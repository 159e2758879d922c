"""Measures of generated text, against the published ones and against cases that are known."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hdlm.evaluation.metrics import diversity, jackknife, mean, token_entropy


def test_entropy_is_the_published_one(shared):
    golden = json.loads((shared / "golden" / "metrics.json").read_text())
    for sentence, expected in zip(golden["sentences"], golden["entropy_base_None"], strict=True):
        assert token_entropy([hash(word) for word in sentence.split()]) == pytest.approx(expected, rel=1e-6)


def test_a_sample_that_says_one_thing_has_no_variety():
    found = diversity([[3] * 20, [3] * 20])
    assert found["entropy"].value == 0
    assert found["distinct-1"].value == pytest.approx(1 / 40)
    assert found["repetition-4"].value == pytest.approx(1 - 1 / 17)


def test_a_sample_that_never_repeats_itself():
    found = diversity([range(20), range(20, 40)])
    assert found["entropy"].value == pytest.approx(math.log(20))
    assert [found[f"distinct-{n}"].value for n in (1, 2, 3)] == [1, 1, 1]
    assert found["repetition-4"].value == 0


def test_samples_that_agree_are_distinct_within_and_not_between():
    assert diversity([range(20)] * 4)["distinct-2"].value == pytest.approx(1 / 4)


def test_short_samples_and_none():
    assert diversity([[1], []])["distinct-3"].value == 0
    with pytest.raises(ValueError, match="at least one"):
        diversity([])


def test_errors_are_honest():
    """Of 300 means of 40 numbers, 95% lie within two standard errors of the truth, give or take what chance allows."""
    random = np.random.default_rng(0)
    near = 0
    for _ in range(300):
        found = mean(random.normal(size=40).tolist())
        near += abs(found.value) < 2 * found.error
    assert 0.9 < near / 300 < 0.985


def test_the_error_of_distinct_is_that_of_leaving_samples_out():
    samples = [[1, 2, 3, 1], [1, 5, 5, 6], [2, 3, 4, 4], [9, 8, 1, 2]]
    for n in (1, 2, 3):
        without = [
            diversity(samples[:i] + samples[i + 1 :])[f"distinct-{n}"].value for i in range(len(samples))
        ]
        found = diversity(samples)[f"distinct-{n}"]
        assert found == jackknife(found.value, without)


def test_one_sample_has_no_error():
    assert diversity([[1, 2, 1]])["entropy"].error is None
