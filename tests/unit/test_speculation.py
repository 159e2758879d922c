"""Speculative sampling of a checkpoint: settings, refusals, traces, samples in a file, and the server."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

import hdlm
from hdlm.checkpoint import Checkpoint
from hdlm.cli import main
from hdlm.denoiser import Denoiser
from hdlm.evaluation.generation.samples import draw_samples, tokens_per_forward
from hdlm.generation import Ending, Settings, write
from hdlm.generation.company import SharedWriter, WriteRequest
from hdlm.generation.explanation import explain
from hdlm.generation.recording import TraceDocument, record
from hdlm.hyperschedule import Block, autoregressive
from hdlm.parameterization import Mean, Shifted
from hdlm.serve.models import ServedModel
from tests.serving import HTTP, serving, small_checkpoint

SPECULATIVE = Settings("speculative", new_tokens=12)


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    """A shifted network with causal attention between settled words, and blocks of 4."""
    aligned = small_checkpoint()
    denoiser = Denoiser(aligned.network, aligned.denoiser.process, Shifted(Mean()))
    return replace(aligned, denoiser=denoiser, context="causal")


def test_greedy_text_is_that_of_autoregression_in_fewer_calls_at_most(model: Checkpoint) -> None:
    how: dict[str, Any] = {"new_tokens": 12, "temperature": 0.0, "num": 2, "progress": False}
    fast = model.generate("In the", algorithm="speculative", **how)
    slow = model.generate("In the", algorithm="exact", hyperschedule="autoregressive", **how)
    assert [passage.text for passage in fast] == [passage.text for passage in slow]
    assert all(passage.evaluations <= 12 for passage in fast)


def test_default_width_is_that_of_training(model: Checkpoint) -> None:
    plan = SPECULATIVE.plan(model.hyperschedules, 16)
    assert plan == autoregressive(16)
    assert SPECULATIVE.step(model, plan) == hdlm.Speculative(4)
    assert replace(SPECULATIVE, width=9, hyperschedule="autoregressive").step(
        model, plan
    ) == hdlm.Speculative(9)
    assert SPECULATIVE.step(model, autoregressive(3)) == hdlm.Speculative(3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 4}, "`steps` has no effect on the algorithm 'speculative'"),
        ({"grid": "cosine"}, "`grid` has no effect"),
        ({"sub_block": 2}, "`sub_block` has no effect"),
        ({"hyperschedule": "flat"}, "`hyperschedule` is 'flat'"),
    ],
)
def test_settings_without_effect_are_refused(model: Checkpoint, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        write(model, "In the", replace(SPECULATIVE, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"context": "full"}, "with context='full' settled positions attend to later ones"),
        ({"context": "block_causal"}, "words of a block attended to later ones in training"),
        ({"denoiser": small_checkpoint().denoiser}, "this network is aligned"),
    ],
)
def test_models_without_a_causal_reading_are_refused(
    model: Checkpoint, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write(replace(model, **change), "In the", SPECULATIVE)


def test_blocks_of_one_word_are_causal(model: Checkpoint) -> None:
    blocks = (Block(48, 4, 1), autoregressive(48))
    either = replace(model, context="block_causal", hyperschedules=blocks)
    texts = [write(one, "In the", SPECULATIVE)[0].text for one in (model, either)]
    assert texts[0] == texts[1]


def test_explanation_reports_tokens_per_forward(model: Checkpoint) -> None:
    passages = write(model, "In the", SPECULATIVE, num=3)
    text = explain(model, SPECULATIVE, passages)
    pace = 36 / sum(passage.evaluations for passage in passages)
    assert f"tokens per forward: {pace:.2f}" in text
    assert pace >= 1
    assert "speculative, exactly the distribution of autoregressive sampling" in text
    assert "Speculative(width=4): a call verifies the drafts" in text
    assert "answers:" not in text


def test_streams_and_stops_end_as_for_other_algorithms(model: Checkpoint) -> None:
    pieces: list[str] = []
    whole = write(model, "In the", SPECULATIVE)[0]
    stop = whole.text[len("In the") + 3 :][:2]
    (passage,) = write(
        model,
        "In the",
        SPECULATIVE,
        ending=Ending(strings=(stop,)),
        stream=lambda _, piece: pieces.append(piece),
    )
    assert "".join(pieces) == passage.text == whole.text[: whole.text.index(stop, len("In the"))]
    assert len(passage.tokens) < len(whole.tokens)


def test_traces_are_recorded_and_read(model: Checkpoint, tmp_path: Path) -> None:
    passages, trace = record(model, "In the", SPECULATIVE, num=2, seed=1)
    trace.save(tmp_path / "trace.json")
    again = TraceDocument.load(tmp_path / "trace.json")
    assert [one.text for one in again.sequences] == [passage.text for passage in passages]
    assert all(change.p_new is not None and change.p_new > 0 for change in trace.changes)
    assert len(trace.changes) == 24
    model.replay("In the", algorithm="speculative", new_tokens=6, progress=False)


def test_infilled_gaps_continue_the_words_before_them(model: Checkpoint) -> None:
    (passage,) = model.infill("In the [MASK:3] was the word.", algorithm="speculative", progress=False)
    assert passage.text.startswith("In the")
    assert passage.evaluations <= 3


def test_samples_of_a_file_have_tokens_per_forward(model: Checkpoint, tmp_path: Path) -> None:
    samples = draw_samples(
        model, SPECULATIVE, prompt="In the", num=3, batch_size=2, keep=tmp_path / "s.jsonl"
    )
    assert (tokens_per_forward(samples) or 0) >= 1


def test_the_command_line_speculates(model: Checkpoint, tmp_path: Path, capsys: Any) -> None:
    model.save(tmp_path / "model")
    words = [
        "sample",
        str(tmp_path / "model"),
        "--prompt",
        "In the",
        "--algorithm",
        "speculative",
        "--explain",
    ]
    assert main([*words, "--length", "16", "--width", "3"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("In the")
    assert "tokens per forward" in printed.err
    assert main([*words, "--steps", "4"]) == 2
    assert "`steps` has no effect" in capsys.readouterr().err


def test_requests_that_share_a_writer_get_the_texts_of_write(model: Checkpoint) -> None:
    ways = [
        replace(SPECULATIVE, **change)
        for change in ({}, {"temperature": 0.3}, {"new_tokens": 5}, {"guidance": 0.5})
    ]
    requests = {WriteRequest(model, "In the", way, num=2, seed=3): way for way in ways}
    assert len({request.way[0] for request in requests}) == 2  # guidance has an engine of its own
    writer, texts = SharedWriter(slots=3), dict[tuple[WriteRequest, int], str]()
    for request in requests:
        writer.add(request)
    while writer.num_running or writer.num_waiting:
        for done in writer.advance():
            assert done.passage is not None, done.error
            texts[done.request, done.index] = done.passage.text
    for request, way in requests.items():
        alone = write(model, "In the", way, num=2, seed=3)
        assert [texts[request, index] for index in range(2)] == [passage.text for passage in alone]


def test_server_supports_it_or_names_the_field(model: Checkpoint) -> None:
    served = [ServedModel("causal", model), ServedModel("aligned", small_checkpoint())]
    with serving(served) as address:
        body = {"prompt": "In the", "max_tokens": 8, "seed": 5, "algorithm": "speculative", "echo": True}

        def post(name: str, **more: Any) -> httpx.Response:
            return HTTP.post(f"{address}/v1/completions", json={"model": name, **body, **more}, timeout=60)

        answer = post("causal").json()
        alone = write(model, "In the", replace(SPECULATIVE, new_tokens=8), seed=5, ending=Ending(True))
        assert answer["choices"][0]["text"] == alone[0].text
        assert answer["usage"]["forward_passes"] == alone[0].evaluations
        for refused, field in ((post("aligned"), "algorithm"), (post("causal", steps=3), "steps")):
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == field
        listed = HTTP.get(f"{address}/v1/models").json()["data"]
        assert ["speculative" in entry["hdlm_algorithms"] for entry in listed] == [True, False]
