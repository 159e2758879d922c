"""`hdlm sample`: `--explain`, streaming, stop texts, precision and compilation."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import pytest

from hdlm.cli import main
from hdlm.generation.explanation import _answers as answers
from hdlm.generation.explanation import _cache as cached
from hdlm.hub import load
from hdlm.sampling import ApproximateCache

MODEL = ["sample", "kjv-epsilon-4m", "--prompt", "And the LORD said", "--length", "24"]


def test_sample_explain_reports_evaluations_and_algorithm(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*MODEL, "--num", "2", "--explain", "--json", "--steps", "2"]) == 0
    said = capsys.readouterr()
    document = json.loads(said.out)
    evaluations = [passage["num_evaluations"] for passage in document["passages"]]
    assert (
        f"NFE: {document['num_evaluations']} calls for 2; {sum(evaluations) / 2:.1f} a sequence" in said.err
    )
    assert "acs, a heuristic" in said.err
    assert "own pace" in said.err


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("peers/bd3lm", "settled positions are computed once: exact, as context is block_causal"),
        ("gamma", "settled positions are computed once: exact, as context is block_causal"),
        ("peers/gidd", "none, as the noise of the whole sequence is an input at every position"),
        ("peers/sedd", "none, as the noise of the whole sequence is an input at every position"),
    ],
)
def test_explain_gives_reason_for_cache_choice(shared, name: str, why: str) -> None:
    checkpoint = load(shared / "golden" / name)
    assert cached(checkpoint, None).startswith(why)
    everything = ApproximateCache(4, active=True)
    part = "those not settled" if why.startswith("settled") else "all"
    assert f"{part} anew every 4 calls" in cached(checkpoint, everything)
    full = dataclasses.replace(checkpoint, context="full")
    assert cached(full, None).startswith("none, as settled positions see later ones")
    kept = checkpoint.denoiser.noise_dependence == "none"
    assert answers(checkpoint).startswith("used again" if kept else "computed in every step")


def test_sample_explain_reports_approximate_cache_and_computed_positions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a refresh at every call the text equals that without a cache. Otherwise few positions are computed."""
    options = [
        *MODEL,
        "--hyperschedule",
        "flat",
        "--steps",
        "8",
        "--algorithm",
        "original",
        "--explain",
        "--json",
    ]
    texts, computed = [], []
    for how in ([], ["all:1"], ["all:4"]):
        assert main([*options, *(["--approximate-cache", *how] if how else [])]) == 0
        said = capsys.readouterr()
        (passage,) = json.loads(said.out)["passages"]
        texts.append(passage["text"])
        computed.append(passage["num_computed"] / passage["num_evaluations"])
        assert f"window: {computed[-1]:.1f} positions computed in a call, of 24" in said.err
        assert ("those not settled anew every 4 calls: APPROXIMATE" in said.err) == (how == ["all:4"])
    assert texts[0] == texts[1]
    assert computed[0] == computed[1] == 24 > 1.5 * computed[2]


def test_sample_stream_prints_same_passage_and_stops_before_stop_text(capsys) -> None:
    options = [*MODEL, "--steps", "2", "--stop", "e"]
    assert main(options) == 0
    plain = capsys.readouterr().out
    assert plain.startswith("And the LORD said")
    assert "e" not in plain.removeprefix("And the LORD said")
    assert main([*options, "--stream"]) == 0
    assert capsys.readouterr().out == plain


def test_sample_stop_at_space_writes_no_token(capsys) -> None:
    options = [*MODEL, "--steps", "1", "--stop", " "]
    assert main([*options, "--json"]) == 0
    (passage,) = json.loads(capsys.readouterr().out)["passages"]
    assert passage["text"] == "And the LORD said"
    assert len(passage["tokens"]) == passage["given"]
    assert main([*options, "--stream"]) == 0
    assert capsys.readouterr().out == "And the LORD said\n"


@pytest.mark.parametrize("count", ["999999999", "9" * 5000])
def test_sample_rejects_gap_longer_than_canvas(count: str, capsys) -> None:
    assert main(["sample", "kjv-epsilon-4m", "--infill", f"And [MASK:{count}] said"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "does not fit: the canvas has " in line


def test_sample_slots_keep_text_and_explain_static_buffers(capsys) -> None:
    options = [*MODEL[:-1], "8", "--num", "3", "--steps", "2", "--batch-size", "2", "--explain"]
    said = []
    for more in ([], ["--slots", "2"]):
        assert main([*options, *more]) == 0
        said.append(capsys.readouterr())
    assert said[0].out == said[1].out
    assert "buffers: grow with the text" in said[0].err
    calls = int(said[1].err.partition("NFE: ")[2].split()[0])
    assert f"buffers: static, 2 slots: {calls} calls, shapes: 1, not recorded" in said[1].err
    with pytest.raises(SystemExit):
        main([*options, "--slots", "-1"])
    assert "--slots: must be a whole number, at least 0; got '-1'" in capsys.readouterr().err


def test_sample_explain_reports_dtype_and_compilation(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    few = [*MODEL[:-1], "8", "--steps", "1", "--explain"]
    assert main([*few, "--dtype", "bfloat16"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("And the LORD said")
    assert "weights: bfloat16: APPROXIMATE" in said.err
    assert "not compiled" in said.err
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert main([*few, "--compile"]) == 2
    assert "no C++ compiler" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler")
def test_sample_compile_keeps_text() -> None:
    """Runs in a subprocess without the shape checks of the tests, because Dynamo would trace them."""
    options = [*MODEL[:-1], "12", "--num", "2", "--steps", "2", "--seed", "3", "--explain", "--device", "cpu"]
    plain, compiled, static = (
        subprocess.run(
            [sys.executable, "-m", "hdlm", *options, *more], capture_output=True, text=True, check=True
        )
        for more in ([], ["--compile"], ["--compile", "--slots", "2"])
    )
    assert compiled.stdout == static.stdout == plain.stdout
    assert "buffers: static, 2 slots" in static.stderr
    assert "compiled: exact" in compiled.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stream", "--json"], "--stream prints one passage"),
        (["--stop", ""], "must not be empty"),
        (["--approximate-cache", "3"], "there is an exact one"),
    ],
)
def test_sample_rejects_conflicting_options(options: list[str], message: str, capsys) -> None:
    assert main([*MODEL, *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("how", ["all:0", "some:2", "0"])
def test_sample_rejects_malformed_approximate_cache(how: str, capsys) -> None:
    with pytest.raises(SystemExit) as refused:
        main([*MODEL, "--approximate-cache", how])
    assert refused.value.code == 2
    assert f"must be K or all:K, with K at least 1, got {how!r}" in capsys.readouterr().err
