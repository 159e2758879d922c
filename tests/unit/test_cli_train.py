"""`hdlm train`: what it leaves behind, and its answers to mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hdlm.checkpoint import load_checkpoint
from hdlm.cli import main

RECIPE = """
[data]
vocabulary = 270
context = 16
validation = 0.1
[network]
hidden_size = 16
num_blocks = 1
num_heads = 2
[[mixture]]
hyperschedule = { type = "Block", width = 4, num_levels = 4 }
[run]
steps = 40
precision = "no"
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    file = tmp_path / "tiny.toml"
    file.write_text(RECIPE)
    return file


def _train(text: Path, recipe: Path, output: Path, *more: str) -> int:
    return main(["train", "--text", str(text), "--recipe", str(recipe), "--output", str(output), *more])


def test_train_json_reports_steps_and_validation(text: Path, recipe: Path, tmp_path: Path, capsys) -> None:
    assert _train(text, recipe, tmp_path / "run", "--json", "--seed", "3") == 0
    result = json.loads(capsys.readouterr().out)
    checkpoint = load_checkpoint(tmp_path / "run")
    assert result["steps"] == checkpoint.training["steps"] == 40
    assert checkpoint.training["recipe"]["run"]["seed"] == 3
    by_name = {row["name"]: row["bits_per_byte"] for row in result["validation"]}
    assert by_name["bigram counts"] < by_name["unigram counts"]
    assert 0 < by_name["network, after 40 steps"] < 8


def test_train_prints_table_of_results(text: Path, recipe: Path, tmp_path: Path, capsys) -> None:
    assert _train(text, recipe, tmp_path / "run", "--steps", "2") == 0
    printed = capsys.readouterr().out
    assert "network, after 2 steps" in printed
    assert "bigram counts" in printed


def test_train_from_checkpoint_keeps_vocabulary(text: Path, recipe: Path, tmp_path: Path, capsys) -> None:
    _train(text, recipe, tmp_path / "first")
    begin = ["--from", str(tmp_path / "first"), "--keep-optimizer", "--steps", "1"]
    assert _train(text, recipe, tmp_path / "second", *begin) == 0
    vocabularies = [
        json.loads((tmp_path / run / "config.json").read_text())["vocabulary"] for run in ("first", "second")
    ]
    assert vocabularies[0] == vocabularies[1]


def test_train_from_checkpoint_rejects_tokenizer_options(
    text: Path, recipe: Path, tmp_path: Path, capsys
) -> None:
    _train(text, recipe, tmp_path / "first", "--steps", "1")
    begin = ["--from", str(tmp_path / "first"), "--steps", "1"]
    for option in ('tokenizer = "gpt2"', "vocabulary = 300"):
        other = tmp_path / "other.toml"
        lines = [line for line in RECIPE.splitlines() if not line.startswith(option.split()[0])]
        other.write_text("\n".join(lines).replace("[data]", f"[data]\n{option}"))
        assert _train(text, other, tmp_path / "second", *begin) == 2
        printed = capsys.readouterr().err
        assert f"`data.{option.split()[0]}` has no effect here" in printed
        assert "brings its tokenizer" in printed


def test_train_weights_depend_on_seed_only(text: Path, recipe: Path, tmp_path: Path, capsys) -> None:
    files = []
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        _train(text, recipe, tmp_path / name, "--steps", "3", "--seed", seed)
        files.append((tmp_path / name / "model.safetensors").read_bytes())
    assert files[0] == files[1]
    assert files[0] != files[2]


def test_any_option_of_the_recipe_can_be_set(text: Path, recipe: Path, tmp_path: Path, capsys) -> None:
    words = "network.hidden_size=32", "optimizer.name=adamw", "run.save_every=1.5"
    assert _train(text, recipe, tmp_path / "run", "--steps", "1", "--set", *words) == 0, (
        capsys.readouterr().err
    )
    set_in = load_checkpoint(tmp_path / "run").training["recipe"]
    assert set_in["network"]["hidden_size"] == 32
    assert set_in["optimizer"]["name"] == "adamw"
    assert set_in["run"]["save_every"] == 1.5


MISTAKES = {
    "a missing file": (["--text", "nowhere.txt"], "nowhere.txt"),
    "an unknown recipe": (["--recipe", "soufflé"], "known: characters, demo"),
    "no time": (["--minutes", "0"], "run.minutes"),
    "negative steps": (["--set", "run.steps=-4"], "run.steps"),
    "optimizers of nobody": (["--keep-optimizer"], "--keep-optimizer needs --from"),
    "an unknown device": (["--device", "abacus"], "--device must be"),
    "a start that is none": (["--from", "nowhere"], "nowhere"),
    "a list of tables": (["--set", "mixture.share=2"], "--set cannot change the mixture"),
    "a word that sets nothing": (["--set", "network"], "--set takes TABLE.OPTION=VALUE"),
    "a misspelt option": (["--set", "network.hiden_size=3"], "did you mean `network.hidden_size`"),
    "negative seed": (["--seed", "-1"], "seed"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_train_rejects_bad_arguments_in_one_line(
    text: Path, recipe: Path, tmp_path: Path, capsys, mistake: str
) -> None:
    words, named = MISTAKES[mistake]
    assert _train(text, recipe, tmp_path / "run", *words) == 2
    printed = capsys.readouterr().err
    assert named in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_train_rejects_empty_text(recipe: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "empty.txt").write_text(" \n")
    assert _train(tmp_path / "empty.txt", recipe, tmp_path / "run") == 2
    assert "no text" in capsys.readouterr().err


def test_train_rejects_text_shorter_than_window(recipe: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "short.txt").write_text("a few words only")
    assert _train(tmp_path / "short.txt", recipe, tmp_path / "run") == 2
    assert "give more text" in capsys.readouterr().err


def test_train_refuses_folder_that_holds_a_run(text: Path, recipe: Path, tmp_path: Path, capsys) -> None:
    _train(text, recipe, tmp_path / "run", "--steps", "1")
    capsys.readouterr()
    assert _train(text, recipe, tmp_path / "run") == 2
    assert "holds a run already: resume it with --resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "there"),
    [
        (None, "it does not exist"),
        ([], "it is empty"),
        (["a.txt"], "it holds a.txt"),
        (list("gfedcba"), "it holds a, b, c, d, e and 2 more"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--steps", "3", "--seed", "1"], ["--from", "kjv-epsilon-4m"]])
def test_train_resume_without_run_in_folder_is_refused(tmp_path: Path, capsys, names, there, more) -> None:
    folder = tmp_path / "typo"
    if names is not None:
        folder.mkdir()
        for name in names:
            (folder / name).write_text("")
    before = sorted(tmp_path.rglob("*"))
    assert main(["train", "--output", str(folder), "--resume", *more]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == (
        f"hdlm train: --resume: there is no run in --output {folder}: {there}. Give the folder of the run; or add "
        "--text or --recipe to begin a new run there.\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_train_resume_with_text_begins_new_run_in_empty_folder(
    text: Path, recipe: Path, tmp_path: Path, capsys
) -> None:
    output = tmp_path / "run"
    assert _train(text, recipe, output, "--resume", "--steps", "1") == 0
    assert capsys.readouterr().out.startswith(f"there is no run in {output} to resume: a new one begins\n")
