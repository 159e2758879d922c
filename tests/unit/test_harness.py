"""What a model answers to the requests of `lm_eval`, without `lm_eval`."""

from __future__ import annotations

import math
import sys
import types
from typing import Any

import pytest
import torch

from hdlm.checkpoint import Checkpoint, load_checkpoint
from hdlm.cli import main
from hdlm.cli.eval import harness as _eval_harness
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


def test_the_likelier_ending_is_chosen(checkpoint: Checkpoint, exact: HarnessModel) -> None:
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


def test_greedy_is_said_of_the_likeliest_ending(exact: HarnessModel, checkpoint: Checkpoint) -> None:
    tokenizer = checkpoint.tokenizer
    words = {tokenizer.piece(token) for token in range(checkpoint.vocabulary.num_words)}
    endings = sorted(word for word in words if word.startswith(" ") and word.strip().isalpha())[::5]
    pairs = [("And the LORD spake unto", ending) for ending in [" Moses", *endings]]
    answers = exact.loglikelihood(pairs)
    assert sum(greedy for _, greedy in answers) <= 1
    best = max(answers)
    assert best[1] or all(not greedy for _, greedy in answers)


def test_a_whole_text_is_measured_as_elsewhere(exact: HarnessModel, checkpoint: Checkpoint) -> None:
    """Where it fits, it is the exact likelihood of `evaluate`; where not, every token is measured all the same."""
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


def test_text_ends_where_it_is_told(exact: HarnessModel) -> None:
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


def test_nothing_is_written_behind_the_end(
    exact: HarnessModel, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request ends where it ends, also where all are written in one batch behind contexts of other lengths."""
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
def test_a_mark_that_is_no_number_is_a_failure(
    mark: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command around `lm_eval`, which is not here, with what it would have found."""
    row = {"doc_hash": "a", "prompt_hash": "b", "target_hash": "c"}
    found = {
        "results": {"who": {"alias": "who", "acc,none": mark, "acc_stderr,none": 0.1}},
        "higher_is_better": {"who": {"acc": True}},
        "samples": {"who": [row]},
    }
    monkeypatch.setitem(sys.modules, "lm_eval", types.SimpleNamespace(__version__="0"))
    monkeypatch.setitem(vars(harness), "HDLM", None)
    monkeypatch.setattr(_eval_harness, "_examined", lambda *_: (found, {"bound": "absorbing"}))
    command = ["eval", "harness", "kjv-epsilon-4m", "--tasks", "who", "--device", "cpu"]
    assert main(command) == math.isnan(mark)
    printed = capsys.readouterr().out
    assert "higher" in printed
    assert ("failed: not a finite number" if math.isnan(mark) else "0.50 ± 0.10") in printed


def test_what_a_model_does_not_know_is_refused(exact: HarnessModel) -> None:
    with pytest.raises(ValueError, match="asks for num_beams"):
        exact.generate_until([("a", {"num_beams": 4})])


def test_without_the_harness_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    harness._harness_class.cache_clear()
    with pytest.raises(ValueError, match=r'pip install "hdlm\[harness\]"'):
        _: Any = harness.HDLM
    with pytest.raises(AttributeError, match="no attribute 'HLDM'"):
        _ = harness.HLDM
