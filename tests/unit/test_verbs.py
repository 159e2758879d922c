"""Methods of `Checkpoint` and `hdlm.evaluate` give the results of the underlying functions and commands."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import hdlm
from hdlm.cli import main
from hdlm.cli.demo import VERSE, _misspelled
from hdlm.evaluation.generation.controls import CONTROLS, ControlName
from hdlm.evaluation.generation.corrections import correct_tokens
from hdlm.evaluation.generation.evaluate import has_failed
from hdlm.evaluation.likelihood.defaults import bound_of, plan_of
from hdlm.evaluation.likelihood.windows import WindowedText
from hdlm.evaluation.text import tokenize_documents
from hdlm.generation import Ending
from hdlm.generation.write import prompt_ids
from hdlm.regime import Regime
from hdlm.sampling import Frame

MODEL = "kjv-epsilon-4m"
TEXT = ["In the beginning God created the heaven and the earth. " * 3, "And the earth was without form."]


@pytest.fixture(scope="module")
def model() -> hdlm.Checkpoint:
    return hdlm.load(MODEL, device="cpu")


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text(" ".join(TEXT * 20), encoding="utf-8")
    return path


def test_generate_equals_write(model: hdlm.Checkpoint) -> None:
    ours = model.generate(
        "And it came to pass", num=2, seed=3, steps=4, length=24, temperature=0.8, stop=["."]
    )
    settings = hdlm.Settings(steps=4, length=24, temperature=0.8)
    assert ours == hdlm.write(
        model, "And it came to pass", settings, num=2, seed=3, ending=Ending(strings=(".",))
    )


def test_generate_stop_accepts_single_string(model: hdlm.Checkpoint) -> None:
    one, several = (model.generate("And", seed=3, steps=4, length=24, stop=stop) for stop in ("th", ["th"]))
    assert one == several


def test_stream_gives_the_text_in_pieces(model: hdlm.Checkpoint) -> None:
    pieces: list[str] = []
    (passage,) = model.generate(steps=4, length=16, stream=lambda _, piece: pieces.append(piece))
    assert "".join(pieces) == passage.text


def test_infill_equals_write(model: hdlm.Checkpoint) -> None:
    text = "And the [MASK:2] said unto the people."
    assert model.infill(text, seed=1) == hdlm.write(model, text, seed=1)


def test_correct_equals_the_correction_of_tokens(model: hdlm.Checkpoint) -> None:
    text, how = (
        "In the beginning God created the ewer and the earth.",
        {"algorithm": "acs", "eta": 1.0, "steps": 4},
    )
    (passage,) = model.correct(text, seed=1, **how)
    ids = torch.tensor([prompt_ids(model.tokenizer, text)])
    tokens = correct_tokens(model, ids, hdlm.Settings(**how), noise=0.5, seed=1).tokens
    assert passage.tokens == tuple(tokens[0].tolist())
    assert passage.text != text
    assert model.correct(text, seed=1, noise=0.5, **how) == [passage]


def test_shipped_model_of_characters_repairs_a_held_out_verse() -> None:
    model, changes = hdlm.load("kjv-spelling-2m", device="cpu"), Counter[str]()
    for seed in range(3):
        damaged = _misspelled(VERSE, seed)
        (passage,) = model.correct(damaged, seed=seed, algorithm="acs", eta=1.0, temperature=0.5, steps=16)
        for wrong, new, right in zip(damaged, passage.text, VERSE, strict=True):
            changes["planted" if wrong != right else "others"] += 1
            changes["restored"] += wrong != right and new == right
            changes["damaged"] += wrong == right and new != right
    assert changes["restored"] >= 0.5 * changes["planted"] > 0
    assert changes["damaged"] <= 0.02 * changes["others"]


def test_correct_without_corrections_gives_the_text(model: hdlm.Checkpoint) -> None:
    text = "In the beginning God created the heaven and the earth."
    (passage,) = model.correct(text, algorithm="original", steps=4)
    assert passage.text == text


def test_correct_has_a_replay(model: hdlm.Checkpoint) -> None:
    (trace,) = model.correct("And the earth was", algorithm="acs", eta=1.0, steps=2).replay().traces
    mask = model.vocabulary.mask_id
    assert mask not in trace.sequences[0].start
    assert trace.settings["noise"] == 0.5  # the player shows such a trace as a correction
    assert {change.reason for change in trace.changes} == {"corrected"}


def test_correct_refuses_what_it_cannot_read(model: hdlm.Checkpoint) -> None:
    for text, options, message in (
        ("And the [MASK] was", {}, "has no gaps"),
        ("", {}, "text to correct is empty"),
        (" \n", {}, "text to correct is empty"),
        ("And the earth", {"noise": 0.0}, "noise fraction in"),
        ("And the earth", {"length": 20}, "leave `length`"),
        ("And the earth " * 100, {}, "between 1 and 128 positions"),
    ):
        with pytest.raises(ValueError, match=message):
            model.correct(text, **options)


def test_command_corrects_a_text(model: hdlm.Checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    text, flags = "And the earth was without form.", ["--algorithm", "acs", "--eta", "1", "--steps", "2"]
    assert main(["sample", MODEL, "--correct", text, *flags]) == 0
    (passage,) = model.correct(text, algorithm="acs", eta=1.0, steps=2)
    assert capsys.readouterr().out.strip() == passage.text.strip()
    assert main(["sample", MODEL, "--prompt", text, "--noise", "0.3"]) == 2
    assert "add --correct TEXT" in capsys.readouterr().err
    assert main(["sample", MODEL, "--correct", ""]) == 2
    assert "--correct needs a text" in capsys.readouterr().err


def test_every_setting_is_an_option_of_generate(model: hdlm.Checkpoint) -> None:
    given = {option.name: option.default for option in fields(hdlm.Settings)} | {"steps": 2, "length": 16}
    assert model.generate(seed=2, **given) == model.generate(seed=2, steps=2, length=16)


@pytest.mark.parametrize("name", ["num", "width", "steps", "length", "new_tokens", "sub_block", "batch_size"])
def test_generate_names_the_count_that_is_below_one(model: hdlm.Checkpoint, name: str) -> None:
    with pytest.raises(ValueError, match=f"^`{name}` must be at least 1; got 0"):
        model.generate(**{name: 0})


def test_checkpoint_methods_reject_unknown_options(model: hdlm.Checkpoint) -> None:
    with pytest.raises(ValueError, match="unknown option `temprature`; did you mean `temperature`"):
        model.generate(temprature=0.5)
    with pytest.raises(ValueError, match="unknown option `strid`; did you mean `stride`"):
        model.likelihood(TEXT, strid=4)
    with pytest.raises(ValueError, match="use `infill`"):
        model.generate("a [MASK]")
    with pytest.raises(ValueError, match="no gap"):
        model.infill("no gap here")


def test_likelihood_equals_estimate_likelihood_with_checkpoint_settings(model: hdlm.Checkpoint) -> None:
    other = replace(model, context="full", active="causal", noise_schedule=hdlm.Cosine())
    text = tokenize_documents(other.tokenizer, TEXT)
    expected = hdlm.evaluation.estimate_likelihood(
        other.denoiser,
        WindowedText(text.tokens, plan_of(other, 32).length, num_bytes=text.num_bytes),
        Regime(plan_of(other, 32), noise_schedule=other.noise_schedule, context="full", active="causal"),
        bound=bound_of(other.denoiser.process),
        replicates=2,
        seed=5,
    )
    assert other.likelihood(TEXT, length=32, replicates=2, seed=5) == expected
    assert model.likelihood(TEXT, length=32, replicates=2, seed=5) != expected


def test_likelihood_of_file_equals_eval_likelihood_command(
    model: hdlm.Checkpoint, book: Path, capsys: Any
) -> None:
    words = ["--data", str(book), "--replicates", "2", "--limit", "100", "--length", "32", "--device", "cpu"]
    assert main(["eval", "likelihood", MODEL, *words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)[str(book)]
    result = model.likelihood(book, replicates=2, limit=100, length=32)
    assert json.loads(json.dumps(result.to_dict())) == document["result"]


def test_likelihood_output_folder_is_resumed_and_compared(model: hdlm.Checkpoint, tmp_path: Path) -> None:
    first, second, other = (tmp_path / name for name in ("first", "second", "other"))
    two = model.likelihood(TEXT, length=32, replicates=2, output=first)
    four = model.likelihood(TEXT, length=32, replicates=4, output=first)
    assert four.estimates[:2] == two.estimates
    whole = model.likelihood(TEXT, length=32, replicates=4, output=second)
    assert four.estimates == pytest.approx(whole.estimates, rel=1e-6)
    assert replace(four, estimates=whole.estimates) == whole
    with pytest.raises(ValueError, match="another measurement"):
        model.likelihood(TEXT, length=16, output=first)
    model.likelihood(TEXT, length=32, hyperschedule="autoregressive", output=other)
    compared = hdlm.compare([first, other])
    assert compared.names == (str(first), str(other))
    assert compared.cells["bits per byte"][0].value == four.bits_per_byte


def test_evaluate_generation_equals_eval_generation_command(
    model: hdlm.Checkpoint, book: Path, capsys: Any
) -> None:
    words = ["--num", "3", "--length", "16", "--steps", "2", "--judge", MODEL, "--reference", str(book)]
    assert (
        main(["eval", "generation", MODEL, *words, "--controls", "unigram", "--device", "cpu", "--json"]) == 0
    )
    document = json.loads(capsys.readouterr().out)
    measured = hdlm.evaluate.generation(
        model, num=3, length=16, steps=2, judges=MODEL, reference=book, measures={"controls": ("unigram",)}
    )
    own = json.loads(json.dumps(measured.document))
    for name in ("wall_seconds", "model", "weights"):
        assert own.pop(name) != document.pop(name)
    assert own["result"].pop("tokens_per_second") != document["result"].pop("tokens_per_second")
    assert own == document
    assert measured.metrics["entropy"]["value"] > 0
    assert len(measured.samples) == 3


def test_evaluate_generation_rejects_bad_options(model: hdlm.Checkpoint) -> None:
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"mauve": True}, "needs real text"),
        ({"infill": 0.5}, "needs real text"),
        ({"maove": True}, "unknown measures maove"),
        ({"controls": ("noise",), "reference": "x"}, "controls are"),
        ({"batch_size": 0}, "batch_size"),
    )
    for measures, message in cases:
        reference = measures.pop("reference", None)
        with pytest.raises(ValueError, match=message):
            hdlm.evaluate.generation(model, reference=reference, measures=measures)


def test_every_control_has_a_name_that_options_offer() -> None:
    assert tuple(CONTROLS) == get_args(ControlName)


def test_evaluate_frontier_of_one_model_measures_each_temperature(
    model: hdlm.Checkpoint, tmp_path: Path
) -> None:
    document = hdlm.evaluate.frontier(
        model, judge=MODEL, output=tmp_path, temperature=[1.0, 0.5], num=2, length=16, steps=2
    )
    assert [point["temperature"] for point in document["curves"][0]["points"]] == [0.5, 1.0]
    assert not has_failed(document["curves"])
    assert json.loads((tmp_path / "results.json").read_text()) == document
    with pytest.raises(ValueError, match="either temperature or top_p"):
        hdlm.evaluate.frontier(model, judge=MODEL, output=tmp_path)


def test_checkpoint_has_torch_device_and_tokenizer(model: hdlm.Checkpoint) -> None:
    assert model.device == torch.device("cpu")
    assert model.to("cpu") is model
    assert model.tokenizer is model.tokenizer
    assert model.tokenizer.decode(model.tokenizer.encode("In the beginning")) == "In the beginning"
    with pytest.raises(ValueError, match="has no tokenizer"):
        _ = replace(model, tokenizer_json=None).tokenizer


def test_checkpoint_to_moves_model() -> None:
    model = hdlm.load(MODEL).to("meta")
    assert model.device == torch.device("meta")


def test_checkpoint_save_round_trip(model: hdlm.Checkpoint, tmp_path: Path) -> None:
    model.save(tmp_path / "copy")
    copy = hdlm.load(tmp_path / "copy")
    assert copy.config() == model.config()
    assert copy.generate(steps=2, length=16) == model.generate(steps=2, length=16)


def test_generate_shows_progress_only_on_request_or_terminal(
    model: hdlm.Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    frames: list[Frame] = []
    monkeypatch.setattr("rich.progress.Progress.update", lambda *_, **options: frames.append(options))
    model.generate(steps=2, length=16, progress=False)
    model.generate(steps=2, length=16)  # no terminal here
    assert not frames
    model.generate(steps=2, length=16, progress=True)
    assert frames
    assert frames[-1]["completed"] == pytest.approx(1.0)


def test_deprecated_evaluate_call_warns_and_gives_same_result(model: hdlm.Checkpoint) -> None:
    tokens = torch.tensor(model.tokenizer.encode(TEXT[1]))
    plan = plan_of(model, len(tokens), hyperschedule="autoregressive")
    with pytest.warns(DeprecationWarning, match=r"hdlm\.evaluate\.likelihood"):
        result = hdlm.evaluate(model.denoiser, tokens, plan, context="causal", num_bytes=99)
    text = hdlm.evaluation.WindowedText(tokens, plan.length, num_bytes=99)
    regime = Regime(plan, context="causal")
    assert result == hdlm.evaluation.estimate_likelihood(model.denoiser, text, regime)


def test_likelihood_rejects_documents_that_are_not_strings(model: hdlm.Checkpoint, book: Path) -> None:
    with pytest.raises(ValueError, match="must be a string"):
        model.likelihood([1, 2])
    with pytest.raises(ValueError, match="names of files"):
        model.likelihood([str(book)])
    with pytest.raises(ValueError, match="a name, a corpus or a list of strings"):
        model.likelihood(3)


def test_train_generate_and_likelihood_in_three_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("book.txt").write_text(
        "the cat sat on the mat and the dog sat on the log . " * 400, encoding="utf-8"
    )
    recipe = {"data": {"vocabulary": 262}, "run": {"batch_size": 2, "precision": "no"}}
    network = {"hidden_size": 16, "num_blocks": 1, "num_heads": 2}
    model = hdlm.train(
        "book.txt",
        output="runs/book",
        steps=2,
        recipe=recipe,
        network=network,
        hyperschedule=hdlm.Block(16, 4, 2),
    )
    passages = model.generate("the cat", num=4, temperature=0.8, seed=0)
    assert [passage.text.startswith("the cat") for passage in passages] == [True] * 4
    measured = model.likelihood("book.txt", limit=64)
    assert measured == hdlm.evaluate.likelihood(model, "book.txt", limit=64)
    assert measured.bits_per_byte is not None
    assert measured.bits_per_byte > 0
