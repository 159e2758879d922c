"""`hdlm compare` computes differences with errors and refuses results of different protocols by field name."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from hdlm.cli import main
from hdlm.evaluation import LikelihoodResult
from hdlm.evaluation.records.compare import compare
from hdlm.evaluation.records.comparison import IncomparableError
from hdlm.evaluation.records.frontier import overlay
from hdlm.view.report import number

WORDS, LETTERS = "a" * 64, "b" * 64


def likelihood(estimates: tuple[float, ...] = (700.0, 710.0, 705.0, 701.0), seed: int = 0) -> dict[str, Any]:
    result = LikelihoodResult(
        estimates=estimates,
        num_tokens=200,
        num_bytes=800,
        bound="absorbing",
        estimator="count",
        seed=seed,
        num_windows=4,
        stride=64,
        hyperschedule={"type": "Block", "length": 64, "width": 16, "num_levels": 8},
        noise_schedule={"type": "Linear"},
        context="block_causal",
        active="full",
    )
    return common("likelihood") | {"seed": seed, "result": result.to_dict()}


def generation(shift: float = 0.0, seed: int = 0) -> dict[str, Any]:
    metrics = {
        "entropy": {"value": 4.0 + shift, "error": 0.03},
        "distinct-1": {"value": 0.5, "error": None},
        "generative perplexity": {"value": 40.0 + shift, "error": 0.4, "judge": "gpt2"},
    }
    settings = {"algorithm": "acs", "temperature": 1.0}
    result = {
        "settings": settings,
        "num_samples": 50,
        "length": 64,
        "num_evaluations": 32,
        "metrics": metrics,
    }
    return common("generation") | {"seed": seed, "result": result}


def harness(accuracy: float = 0.7) -> dict[str, Any]:
    result = {
        "protocol": {"bound": "absorbing", "estimator": "count", "replicates": 8},
        "limit": None,
        "results": {"who": {"alias": "who", "acc,none": accuracy, "acc_stderr,none": 0.03, "sample_len": 9}},
        "versions": {"who": 1},
        "n-shot": {"who": 0},
        "n-samples": {"who": {"original": 9, "effective": 9}},
        "higher_is_better": {"who": {"acc": True}},
        "questions_sha256": {"who": WORDS},
    }
    return common("harness") | {"data": None, "result": result}


def common(kind: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "model": "runs/a",
        "weights": "averaged",
        "weights_sha256": "c" * 64,
        "dtype": "float32",
        "device": "cpu",
        "versions": {"hdlm": "1", "torch": "2"},
        "data": {
            "name": "book",
            "part": "test",
            "sha256": "d" * 64,
            "documents": 3,
            "bytes": 800,
            "detokenizer": None,
        },
        "tokenizer_sha256": WORDS,
        "wall_seconds": 1.0,
    }


def changed(document: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    other = copy.deepcopy(document)
    at = other
    *parents, last = path.split("/")
    for parent in parents:
        at = at[parent]
    at[last] = value
    return other


def paths_of_leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from paths_of_leaves(inner, (*path, key))


PROTOCOL = [
    (harness(), "result/protocol/replicates", 4, "replicates is 4, and 8 in a"),
    (harness(), "result/protocol/bound", "hybrid", "bound is hybrid, and absorbing in a"),
    (harness(), "result/limit", 5, "limit is 5, and none in a"),
    (harness(), "result/n-shot/who", 3, "who: n-shot is 3, and 0 in a"),
    (harness(), "result/questions_sha256/who", LETTERS, "who: questions_sha256 is bbbb"),
    (harness(), "result/versions/who", 2, "who: versions is 2, and 1 in a"),
    (likelihood(), "data/sha256", "e" * 64, r"b: data\.sha256 is eeeeeeeeeeee…, and dddddddddddd… in a"),
    (likelihood(), "data/bytes", 801, r"data\.bytes is 801, and 800 in a"),
    (likelihood(), "data/detokenizer", "wikitext", r"data\.detokenizer is wikitext, and none in a"),
    (likelihood(), "result/bound", "hybrid", "bound is hybrid, and absorbing in a"),
    (likelihood(), "result/stride", 32, "stride is 32, and 64 in a"),
    (likelihood(), "result/num_tokens", 199, "num_tokens is 199"),
    (likelihood(), "result/num_windows", 5, "num_windows is 5"),
    (likelihood(), "result/hyperschedule", "Block(length=32, width=16)", "window is 32, and 64 in a"),
    (likelihood(), "result/within_documents", True, "within_documents is True, and False in a"),
    (generation(), "kind", "likelihood", "kind is likelihood, and generation in a"),
    (generation(), "result/num_samples", 51, "num_samples is 51, and 50 in a"),
    (generation(), "result/length", 128, "tokens written is 128, and 64 in a"),
    (generation(), "result/num_given", 1, "tokens written is 63, and 64 in a"),
    (generation(), "result/settings/prompt", "Once", "prompt is Once"),
    (generation(), "tokenizer_sha256", LETTERS, "tokenizer_sha256 is bbbbbbbbbbbb…"),
    (
        generation(),
        "result/metrics/generative perplexity/judge",
        "gpt2-large",
        "judge is gpt2-large, and gpt2",
    ),
    (generation(), "result/metrics/entropy/unit", "bits", "entropy: unit is bits"),
    (generation(), "result/definitions", {"entropy": "of words"}, "entropy: definition is of words"),
    (generation(), "result/definitions", {"distinct-n": "of words"}, "distinct-1: definition is of words"),
]


@pytest.mark.parametrize(("document", "path", "value", "message"), PROTOCOL)
def test_compare_refuses_different_protocols_and_names_field(document, path, value, message):
    other = changed(document, path, value)
    with pytest.raises(IncomparableError, match=message) as caught:
        compare({"a": document, "b": other})
    assert "\n" not in str(caught.value)
    with pytest.raises(IncomparableError):
        compare({"a": document, "c": document, "b": other})
    with pytest.raises(IncomparableError):
        compare({"b": other, "a": document})


def test_compare_names_all_differences_in_one_error():
    other = changed(changed(likelihood(), "result/bound", "hybrid"), "result/stride", 32)
    with pytest.raises(IncomparableError, match=r"b: bound is hybrid.*; b: stride is 32.*; c: stride is 16"):
        compare({"a": likelihood(), "b": other, "c": changed(likelihood(), "result/stride", 16)})


FREE = ("model", "weights", "weights_sha256", "dtype", "device", "versions", "data/name", "wall_seconds")


@pytest.mark.parametrize("path", FREE)
@pytest.mark.parametrize("document", [likelihood(), generation()], ids=["likelihood", "generation"])
def test_compare_accepts_results_of_different_models(document, path):
    assert compare({"a": document, "b": changed(document, path, None)}).cells


@pytest.mark.parametrize("document", [likelihood(), generation()], ids=["likelihood", "generation"])
@pytest.mark.parametrize("junk", ["", None, -1, float("nan"), [], {}, "text", 1e308, ...], ids=repr)
def test_compare_of_damaged_document_gives_table_or_value_error(document, junk):
    """Each field in turn is missing (...) or replaced. `compare` returns a table or raises `ValueError`."""
    tables = 0
    for path in paths_of_leaves(document):
        other = changed(document, "/".join(path), junk)
        if junk is ...:
            at = other
            for parent in path[:-1]:
                at = at[parent]
            del at[path[-1]]
        for pair in ({"a": document, "b": other}, {"a": other, "b": document}, {"a": other, "b": other}):
            try:
                found = compare(pair)
            except ValueError:
                continue
            tables += 1
            numbers = [cell.value for cells in found.cells.values() for cell in cells]
            assert all(number is None or math.isfinite(number) for number in numbers), path
    assert tables > 0


def test_compare_computes_metrics_from_estimates():
    """Values that the document states itself are ignored."""
    forged = changed(likelihood(), "result/perplexity", 1.0)
    table = compare({"a": likelihood(), "b": forged})
    result = LikelihoodResult.from_dict(likelihood()["result"])
    assert table.cells["perplexity"][1].value == result.perplexity
    assert table.cells["bits per byte"][1].error == result.bits_per_byte_error
    assert not any(cell.significant for cells in table.cells.values() for cell in cells)


def test_compare_adds_independent_errors_in_quadrature():
    table = compare({"a": generation(), "b": generation(0.1, seed=1), "c": generation(0.06, seed=2)})
    first, b, c = table.cells["entropy"]
    assert first.difference is None
    assert b.difference == pytest.approx(0.1)
    assert b.difference_error == pytest.approx(math.hypot(0.03, 0.03))
    assert (first.significant, b.significant, c.significant) == (False, True, False)
    assert table.cells["distinct-1"][1].difference_error is None
    assert not table.cells["distinct-1"][1].significant


def test_compare_marks_equal_models_at_the_nominal_rate():
    """Two equally good models differ by more than two standard errors in about 5 % of the comparisons."""
    random = np.random.default_rng(0)
    marked = 0
    for seed in range(150):
        ours, theirs = (tuple(random.normal(700, 3, 20)) for _ in range(2))
        pair = {"a": likelihood(ours, seed=0), "b": likelihood(theirs, seed=1 + seed)}
        marked += compare(pair, ("bits per byte",)).cells["bits per byte"][1].significant
    assert 1 <= marked <= 18  # 5 % of 150, four standard deviations of the binomial more


def test_compare_pairs_replicates_of_equal_seeds():
    noise = np.random.default_rng(1).normal(0, 20, 16)
    apart = np.random.default_rng(2).normal(1, 0.1, 16)
    ours, theirs = tuple(700 + noise), tuple(700 + noise + apart)
    paired = compare({"a": likelihood(ours), "b": likelihood(theirs)}).cells["bits per token"][1]
    independent = compare({"a": likelihood(ours), "b": likelihood(theirs, seed=1)}).cells["bits per token"][1]
    wanted = apart.std(ddof=1) / math.sqrt(16) / 200 / math.log(2)
    assert paired.difference_error == pytest.approx(wanted, rel=1e-9)
    assert paired.difference == pytest.approx(independent.difference)
    assert paired.significant
    assert not independent.significant


def test_compare_across_tokenizers_gives_bits_per_byte_only():
    letters = likelihood(seed=1)
    letters["tokenizer_sha256"] = LETTERS
    letters["result"] |= {"num_tokens": 800, "num_windows": 13}
    table = compare({"a": likelihood(), "b": letters})
    assert list(table.cells) == ["bits per byte"]
    assert "bits per byte alone" in table.notes[0]
    with pytest.raises(ValueError, match="not every result has perplexity"):
        compare({"a": likelihood(), "b": letters}, ("perplexity",))
    letters["result"]["num_bytes"] = None
    with pytest.raises(IncomparableError, match="tokenizer_sha256 differs"):
        compare({"a": likelihood(), "b": letters})


def test_compare_keeps_failed_metric_without_value():
    failed = changed(generation(), "result/metrics/generative perplexity", {"failed": "no judge here"})
    for pair in ({"a": generation(), "b": failed}, {"b": failed, "a": generation()}):
        cells = compare(pair).cells["generative perplexity"]
        assert [cell.value for cell in cells].count(None) == 1
        assert [cell.failed for cell in cells].count("no judge here") == 1
        assert cells[1].difference is None


def test_compare_ignores_differences_of_unselected_metrics():
    other = changed(generation(1.0), "result/metrics/generative perplexity/judge", "gpt2-large")
    assert list(compare({"a": generation(), "b": other}, ("entropy",)).cells) == ["entropy"]


def test_compare_notes_exact_and_single_replicate_results():
    exact = changed(changed(likelihood(), "result/estimator", "exact"), "result/estimates", [700.0])
    single = changed(likelihood(), "result/estimates", [700.0])
    notes = compare({"a": likelihood(), "exact": exact, "single": single}).notes
    assert any("upper bounds: exact" in note for note in notes)
    assert any("nothing is marked: single" in note for note in notes)


@pytest.fixture
def results(tmp_path):
    for name, document in {"a": generation(), "b": generation(1.0, seed=1)}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(document))
    return tmp_path


def test_compare_command_prints_and_writes_table(results, capsys, monkeypatch):
    monkeypatch.chdir(results)
    assert main(["compare", "a", "b/results.json", "--markdown", "t.md", "--output", "t.png"]) == 0
    printed = capsys.readouterr().out
    assert "4.000 ± 0.030" in printed
    assert "+1.000 ± 0.042 *" in printed
    assert "| entropy " in (results / "t.md").read_text()
    assert "algorithm `acs`" in (results / "t.md").read_text()
    assert (results / "t.png").stat().st_size > 10_000
    assert main(["compare", "a", "b", "--json", "--metric", "entropy"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["metrics"]["entropy"]["b"]["significant"] is True


def test_compare_command_refuses_in_one_line(results, capsys, monkeypatch):
    monkeypatch.chdir(results)
    (results / "b" / "results.json").write_text(json.dumps(changed(generation(), "result/length", 65)))
    assert main(["compare", "a", "b", "--markdown", "t.md"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "b: tokens written is 65, and 64 in a" in captured.err
    assert not captured.out
    assert not (results / "t.md").exists()
    assert main(["compare", "a"]) == 2
    assert main(["compare", "a", "a"]) == 2
    assert main(["compare", "a", "missing"]) == 2
    (results / "b" / "results.json").write_text("{}")
    assert main(["compare", "a", "b"]) == 2


def test_compare_command_selects_data_set_by_name(results, capsys, monkeypatch):
    """The file has the format of the published command."""
    monkeypatch.chdir(results)
    failed = {"failed": "not here"}
    both = {"checkpoint": "x", "datasets": {"ptb": generation(), "lambada": generation(1.0), "lm1b": failed}}
    (results / "both.json").write_text(json.dumps(both))
    (results / "one.json").write_text(json.dumps({"datasets": {"ptb": generation()}}))
    assert main(["compare", "both.json:ptb", "both.json:lambada", "one.json", "--json"]) == 0
    names = json.loads(capsys.readouterr().out)["results"]
    assert names == ["both.json:ptb", "both.json:lambada", "one.json"]
    assert main(["compare", "a", "both.json"]) == 2
    assert "where NAME is one of ptb, lambada, lm1b" in capsys.readouterr().err
    assert main(["compare", "a", "both.json:lm1b"]) == 2
    assert "lm1b was not measured: not here" in capsys.readouterr().err
    assert main(["compare", "a", "b/results.json:ptb"]) == 2


def test_number_rounds_to_two_digits_of_error():
    assert number(1.23456, 0.0321) == "1.235 ± 0.032"
    assert number(1234.5, 25.0) == "1,234 ± 25"
    assert number(-0.0001, 0.013, sign=True) == "+0.000 ± 0.013"
    assert number(0.5, None) == number(0.5, 0.0) == "0.5000"


def test_compare_command_reads_results_of_eval_commands(tmp_path, capsys):
    """The eval commands write the results: one model with two hyperschedules and with overlapping windows."""
    text = tmp_path / "book.txt"
    text.write_text("In the beginning God created the heaven and the earth. " * 12)
    model = ["kjv-epsilon-4m", "--length", "32", "--steps", "2"]
    measure = ["eval", "likelihood", *model, "--data", str(text), "--replicates", "3"]
    write = ["eval", "generation", *model, "--num", "3", "--judge", "none"]
    runs = {
        "slide": measure,
        "flat": [*measure, "--hyperschedule", "flat", "--seed", "1"],
        "overlapping": [*measure, "--stride", "16"],
        "acs": write,
        "original": [*write, "--algorithm", "original"],
    }
    for name, command in runs.items():
        assert main([*command, "--output", str(tmp_path / name)]) == 0
    capsys.readouterr()
    names = {name: str(tmp_path / name) for name in runs}
    assert main(["compare", names["slide"], names["flat"], "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["metrics"]["bits per byte"][names["flat"]]
    documents = [
        json.loads((tmp_path / name / "results.json").read_text())["result"] for name in ("slide", "flat")
    ]
    bits = [document["bits_per_byte"] for document in documents]
    assert found["difference"] == pytest.approx(bits[1] - bits[0])
    assert found["difference_error"] == pytest.approx(
        math.hypot(*(document["bits_per_byte_error"] for document in documents))
    )
    assert main(["compare", names["acs"], names["original"]]) == 0
    capsys.readouterr()
    assert main(["compare", names["slide"], names["overlapping"]]) == 2
    assert "stride is 16, and 32 in" in capsys.readouterr().err


def test_compare_gives_difference_and_error_of_harness_scores() -> None:
    found = compare({"a": harness(), "b": harness(0.9)})
    first, second = found.cells["who: acc"]
    assert (first.value, first.error) == (0.7, 0.03)
    assert second.difference == pytest.approx(0.2)
    assert second.difference_error == pytest.approx(math.hypot(0.03, 0.03))
    assert list(found.cells) == ["who: acc"]


def test_compare_accepts_exact_harness_scores_beside_any_replicates() -> None:
    exact = changed(harness(), "result/protocol/estimator", "exact")
    assert "exact, where the others are bounds: a." in compare({"a": exact, "b": harness()}).notes
    fewer = changed(harness(), "result/protocol/replicates", 4)
    with pytest.raises(IncomparableError, match="replicates is 4, and 8 in b"):
        compare({"a": exact, "b": harness(), "c": fewer})


def frontier(temperatures: tuple[float, ...] = (0.5, 1.0), **changes: Any) -> dict[str, Any]:
    points = [
        {
            "temperature": temperature,
            "entropy": {"value": 3 + temperature, "error": 0.1},
            "generative perplexity": {"value": 9 * temperature, "error": 0.4, "judge": "gpt2"},
            "length": 64,
            "num_given": 1,
            "num_evaluations": 16,
        }
        for temperature in temperatures
    ]
    return common("frontier") | {
        "swept": "temperature",
        "num_samples": 8,
        "length": 64,
        "prompt": "",
        "judge": "gpt2",
        "judge_sha256": WORDS,
        "seed": 0,
        "draw_dtype": "float64",
        "settings": {"eta": 0.05, "steps": None},
        "definitions": {"entropy": "of tokens", "generative perplexity": "of the judge"},
        "models": {"runs/a": {"weights": "only", "weights_sha256": LETTERS, "dtype": "float32"}},
        "curves": [{"model": "runs/a", "algorithm": "acs", "points": points}],
        "reference": {name: points[0][name] for name in ("entropy", "generative perplexity")},
        **changes,
    }


def test_overlay_merges_curves_of_frontiers() -> None:
    strong = frontier((0.8,), settings={"eta": 0.3, "steps": None}, seed=1, reference=None, data=None)
    found = overlay({"f/strong": strong, "f/weak": frontier()})
    assert [(curve["model"], len(curve["points"])) for curve in found["curves"]] == [
        ("f/strong", 1),
        ("f/weak", 2),
    ]
    assert found["settings"] == {"steps": None}
    assert found["models"]["f/strong"]["settings"] == {"eta": 0.3}
    assert found["reference"] == frontier()["reference"]
    assert found["data"]["name"] == "book"
    assert found["seed"] == "1, 0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"judge_sha256": LETTERS}, "b: judge is bbbbbbbbbbbb…, and aaaaaaaaaaaa… in a"),
        ({"num_samples": 9}, "num_samples is 9, and 8 in a"),
        ({"swept": "top_p"}, "swept is top_p, and temperature in a"),
        ({"prompt": "Once"}, "prompt is Once"),
        ({"tokenizer_sha256": LETTERS}, "tokenizer_sha256 is bbbb"),
        ({"kind": "generation"}, "kind is generation, and frontier in a"),
        ({"definitions": {}}, "definitions is {}"),
        ({"data": common("")["data"] | {"sha256": LETTERS}}, r"data\.sha256 is bbbb"),
    ],
)
def test_overlay_refuses_frontiers_of_other_protocols(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(IncomparableError, match=message):
        overlay({"a": frontier(), "b": frontier(**changes)})


def test_overlay_refuses_frontiers_of_other_sample_length() -> None:
    longer = frontier()
    for point in longer["curves"][0]["points"]:
        point["length"] = 65
    with pytest.raises(IncomparableError, match="tokens written is 64, and 63 in a"):
        overlay({"a": frontier(), "b": longer})


def test_compare_command_draws_frontiers(tmp_path, capsys) -> None:
    for name in "ab":
        (tmp_path / f"{name}.json").write_text(json.dumps(frontier()))
    files = [str(tmp_path / f"{name}.json") for name in "ab"]
    report, picture = tmp_path / "both.md", tmp_path / "both.png"
    assert main(["compare", *files, "--markdown", str(report), "--output", str(picture)]) == 0
    assert capsys.readouterr().out.count("| acs ") == 4
    assert report.read_text().count("| acs ") == 4
    assert picture.stat().st_size > 10_000
    assert main(["compare", *files, "--metric", "entropy"]) == 2
    assert main(["compare", files[0]]) == 2
    assert "at least two" in capsys.readouterr().err


def test_compare_identifies_judge_by_hash_of_weights() -> None:
    """A folder can later hold another model, and one model can be in two folders."""
    judge = "result/metrics/generative perplexity/judge"
    one = changed(generation(), f"{judge}_sha256", WORDS)
    compare({"a": one, "b": changed(one, judge, "models/gpt2")})
    with pytest.raises(IncomparableError, match="judge_sha256 is bbbb"):
        compare({"a": one, "b": changed(one, f"{judge}_sha256", LETTERS)})
