"""`HarnessModel` and its answers to `lm_eval` requests, without the package `lm_eval`."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import pytest
import torch

from hdlm.checkpoint import Checkpoint, load_checkpoint
from hdlm.cli import main
from hdlm.evaluation import estimate_likelihood
from hdlm.generation import Settings, complete
from hdlm.hyperschedule import autoregressive
from hdlm.integrations import lm_eval as harness
from hdlm.integrations.lm_eval import HarnessModel
from hdlm.package_data import pretrained
from hdlm.regime import Regime
from hdlm.sampling import Generation


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return load_checkpoint(pretrained() / "kjv-epsilon-4m")


@pytest.fixture(scope="module")
def exact(checkpoint: Checkpoint) -> HarnessModel:
    return HarnessModel(
        checkpoint,
        regime=checkpoint.regime(autoregressive(checkpoint.length)),
        settings=Settings(hyperschedule="autoregressive"),
    )


def test_harness_loglikelihood_prefers_probable_ending(checkpoint: Checkpoint, exact: HarnessModel) -> None:
    pairs = [
        ("And God said unto", " Moses"),
        ("And God said unto", " teeth"),
        ("", "And"),
        ("a ", "man"),
        ("a", " man"),
    ]
    for examinee in (exact, HarnessModel(checkpoint, replicates=64)):
        said = [nats for nats, _ in examinee.loglikelihood(pairs)]
        assert said[0] > said[1] + 1
        assert all(nats < 0 for nats in said)
        assert said[3] == said[4]
    assert exact.loglikelihood([("a", "")]) == [(0.0, True)]


def test_harness_reports_greedy_for_most_probable_ending_only(
    exact: HarnessModel, checkpoint: Checkpoint
) -> None:
    tokenizer = checkpoint.tokenizer
    words = {tokenizer.piece(token) for token in range(checkpoint.vocabulary.num_words)}
    endings = sorted(word for word in words if word.startswith(" ") and word.strip().isalpha())[::5]
    pairs = [("And the LORD spake unto", ending) for ending in [" Moses", *endings]]
    answers = exact.loglikelihood(pairs)
    assert sum(greedy for _, greedy in answers) <= 1
    best = max(answers)
    assert best[1] or all(not greedy for _, greedy in answers)


def test_harness_rolling_loglikelihood_equals_estimate_likelihood(
    exact: HarnessModel, checkpoint: Checkpoint
) -> None:
    """A text that fits has the exact likelihood. A longer text is measured in windows, each token once."""
    tokenizer, text = checkpoint.tokenizer, "In the beginning God created the heaven and the earth."
    plan = autoregressive(checkpoint.length)
    start = torch.tensor([checkpoint.vocabulary.bos])
    words = torch.tensor(tokenizer.encode(text))
    both, first = (
        estimate_likelihood(checkpoint.denoiser, tokens, Regime(plan)).nats
        for tokens in (torch.cat([start, words]), start)
    )
    said, of_nothing, of_much = exact.loglikelihood_rolling([text, "", " ".join([text] * 40)])
    assert said == pytest.approx(first - both, rel=1e-5)
    assert of_nothing == 0
    assert math.isfinite(of_much)
    assert of_much < said


def test_harness_generate_until_obeys_stop_and_length(exact: HarnessModel) -> None:
    asked = ("And the LORD", {"max_gen_toks": 24})
    whole, again, cut, short, empty = exact.generate_until(
        [
            asked,
            asked,
            (asked[0], {"until": [" "], "max_gen_toks": 24}),
            (asked[0], {"max_gen_toks": 3, "do_sample": False, "until": ["\n\n"]}),
            ("", {"until": "the", "do_sample": True, "temperature": 0.7, "top_p": 0.9}),
        ]
    )
    assert whole
    assert whole == again, "every draw takes the likeliest word"
    assert " " not in cut
    assert whole.startswith(short)
    assert len(short) < len(whole)
    assert "the" not in empty


def test_harness_batched_requests_write_nothing_after_their_end(
    exact: HarnessModel, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request in a batch stops at its own end, also after contexts of different lengths."""
    requests = [
        ("And the LORD", {"max_gen_toks": 24}),
        ("And it came to pass, that", {"max_gen_toks": 5}),
        ("Now", {"max_gen_toks": 24, "until": ["e"]}),
    ]
    alone = [exact.generate_until([request]) for request in requests]
    finished: list[Generation] = []

    def completed(*args: Any, **options: Any) -> Generation:
        finished.append(complete(*args, **options))
        return finished[-1]

    monkeypatch.setattr(harness, "complete", completed)
    assert exact.generate_until(requests) == [text for (text,) in alone]
    (done,) = finished
    calls = done.evaluations.tolist()
    assert max(calls) <= 24 < checkpoint.length
    assert calls[1] == 5
    assert calls[2] < calls[0]


@pytest.mark.parametrize("mark", [0.5, math.nan])
def test_eval_harness_reports_nan_score_as_failure(
    mark: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command runs with a stub of `lm_eval` and a prepared result."""
    row = {"doc_hash": "a", "prompt_hash": "b", "target_hash": "c"}
    found = {
        "results": {"who": {"alias": "who", "acc,none": mark, "acc_stderr,none": 0.1}},
        "higher_is_better": {"who": {"acc": True}},
        "samples": {"who": [row]},
    }
    monkeypatch.setitem(sys.modules, "lm_eval", types.SimpleNamespace(__version__="0"))
    monkeypatch.setitem(vars(harness), "HDLM", None)
    monkeypatch.setattr("hdlm.integrations.harness._evaluated", lambda *_: (found, {"bound": "absorbing"}))
    command = ["eval", "harness", "kjv-epsilon-4m", "--tasks", "who", "--device", "cpu"]
    assert main(command) == math.isnan(mark)
    printed = capsys.readouterr().out
    assert "higher" in printed
    assert ("failed: not a finite number" if math.isnan(mark) else "0.50 ± 0.10") in printed


def test_harness_rejects_unknown_generation_option(exact: HarnessModel) -> None:
    with pytest.raises(ValueError, match="asks for num_beams"):
        exact.generate_until([("a", {"num_beams": 4})])


def test_harness_without_lm_eval_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    harness._harness_class.cache_clear()
    with pytest.raises(ValueError, match=r'pip install "hdlm\[harness\]"'):
        _: Any = harness.HDLM
    with pytest.raises(AttributeError, match="no attribute 'HLDM'"):
        _ = harness.HLDM
