"""Metrics of generated text, compared with published values and known cases."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from hdlm.evaluation.generation.metrics import DIVERSITY, diversity, jackknife, mean, token_entropy
from hdlm.evaluation.generation.scoring import score_tokens


def test_token_entropy_equals_published(shared):
    golden = json.loads((shared / "golden" / "metrics.json").read_text())
    for sentence, expected in zip(golden["sentences"], golden["entropy_base_None"], strict=True):
        assert token_entropy([hash(word) for word in sentence.split()]) == pytest.approx(expected, rel=1e-6)


def test_diversity_of_constant_samples():
    found = diversity([[3] * 20, [3] * 20])
    assert found["entropy"].value == 0
    assert found["distinct-1"].value == pytest.approx(1 / 40)
    assert found["repetition-4"].value == pytest.approx(1 - 1 / 17)


def test_diversity_of_samples_without_repetition():
    found = diversity([range(20), range(20, 40)])
    assert found["entropy"].value == pytest.approx(math.log(20))
    assert [found[f"distinct-{n}"].value for n in (1, 2, 3)] == [1, 1, 1]
    assert found["repetition-4"].value == 0


def test_distinct_counts_ngrams_over_all_samples():
    assert diversity([range(20)] * 4)["distinct-2"].value == pytest.approx(1 / 4)


def test_diversity_omits_metrics_for_short_samples():
    one_token = diversity([[1], [2]])
    assert list(one_token) == ["entropy", "distinct-1"]
    assert one_token["distinct-1"].value == 1
    assert list(diversity([[1], []])) == ["distinct-1"]
    assert diversity([[1, 2], [3]])["distinct-2"].error is None


@pytest.mark.parametrize("samples", [[[1]], [[1], []], [[1, 2, 3], [4]], [[], []]], ids=str)
def test_score_tokens_gives_a_value_or_a_reason(samples):
    found = score_tokens(samples)
    assert list(found) == [*DIVERSITY, "self-BLEU"]
    measured = {name for name, one in found.items() if "value" in one}
    assert measured - {"self-BLEU"} == set(diversity(samples))
    assert all(("failed" in one) != ("value" in one) for one in found.values())


def test_score_tokens_reason_names_the_short_sample():
    reason = score_tokens([[1], [2]])["distinct-2"]["failed"]
    assert (
        reason
        == "the samples are too short for distinct-2, which needs 2 tokens in one of them; the longest has 1."
    )
    reason = score_tokens([[1, 2, 3, 4], []])["repetition-4"]["failed"]
    assert reason == "sample 1 is too short for repetition-4, which needs 4 tokens in each sample; it has 0."


def test_metrics_of_no_samples_are_refused():
    with pytest.raises(ValueError, match="a mean needs at least one number"):
        mean([])
    with pytest.raises(ValueError, match="at least one"):
        diversity([])


def test_error_of_mean_covers_truth_at_the_nominal_rate():
    """About 95 % of 300 means of 40 numbers lie within two standard errors of the truth."""
    random = np.random.default_rng(0)
    near = 0
    for _ in range(300):
        found = mean(random.normal(size=40).tolist())
        near += abs(found.value) < 2 * found.error
    assert 0.9 < near / 300 < 0.985


def test_distinct_error_is_the_jackknife():
    samples = [[1, 2, 3, 1], [1, 5, 5, 6], [2, 3, 4, 4], [9, 8, 1, 2]]
    for n in (1, 2, 3):
        without = [
            diversity(samples[:i] + samples[i + 1 :])[f"distinct-{n}"].value for i in range(len(samples))
        ]
        found = diversity(samples)[f"distinct-{n}"]
        assert found == jackknife(found.value, without)


def test_diversity_of_one_sample_has_no_error():
    assert diversity([[1, 2, 1]])["entropy"].error is None
