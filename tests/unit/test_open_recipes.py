"""Recipes describe every piece by its class, also user classes and recipes of earlier versions."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from hdlm import hyperschedule, noise_schedule, objective, parameterization, process
from hdlm.checkpoint import build, describe, load_checkpoint
from hdlm.cli import main
from hdlm.hyperschedule import Table
from hdlm.training import Recipe, Session, StepReport, StopRequest, build_setup, find_resume_point, listening

CPU = torch.device("cpu")
TEXT = "the cat sat on the mat and the dog sat on the log . "
SCORES = {"parameterization": {"type": "LogScore"}, "objective": {"type": "ScoreEntropy"}}
LEVELS = [[2] * 16, [1] * 16, [0] * 8 + [1] * 8, [0] * 16]
PARTS = [[0.5, {"type": "ScoreEntropy"}], [2.0, {"type": "CrossEntropy", "worst": 9.0}]]

PIECES: dict[str, tuple[ModuleType, list[dict[str, Any]]]] = {
    "process": (
        process,
        [
            {"type": "Absorbing"},
            {"type": "Uniform"},
            {"type": "EpsilonHybrid", "epsilon": 0.1},
            {"type": "GammaHybrid", "gamma": 0.3},
            {"type": "GIDD", "p_uniform": 0.2},
        ],
    ),
    "noise_schedule": (
        noise_schedule,
        [
            {"type": "Linear"},
            {"type": "LogLinear", "floor": 0.01},
            {"type": "Cosine"},
            {"type": "CosinePower", "exponent": 2},
            {"type": "Power", "exponent": 0.5},
            {"type": "Logarithmic"},
            {"type": "ConstantRate", "sigma_max": 5.0},
            {"type": "Geometric"},
            {"type": "Interpolated", "values": [0.2, 0.6, 1.0]},
            {"type": "Composed", "outer": {"type": "LogLinear"}, "inner": {"type": "Power", "exponent": 2.0}},
        ],
    ),
    "parameterization": (
        parameterization,
        [
            {"type": "Mean", "conditioning": "zero"},
            {"type": "LeaveOneOut", "conditioning": "fraction", "shared": True},
            {"type": "LogScore", "scale_by_sigma": False},
            {"type": "Shifted", "inner": {"type": "LeaveOneOut", "conditioning": "sigma"}},
        ],
    ),
    "objective": (
        objective,
        [
            {"type": "WeightedCrossEntropy", "unmasked": 1.0},
            {"type": "CrossEntropy"},
            {"type": "ScoreEntropy", "floor": 1e-3},
            {"type": "NELBO"},
            {"type": "Combination", "parts": PARTS},
            {"type": "MaskedCrossEntropy", "weight": "context", "divisor": "tokens", "every_row": True},
            {"type": "CleanStream", "divisor": "masked"},
        ],
    ),
    "hyperschedule": (
        hyperschedule,
        [
            {"type": "Block", "width": 4, "num_levels": 2},
            {"type": "PromptedBlock", "width": 4, "num_levels": 2},
            {"type": "Slide", "width": 4, "num_levels": 4},
            {"type": "Wave", "width": 4, "num_levels": 2},
            {"type": "PublishedSlide", "width": 4, "num_levels": 2},
            {"type": "PublishedWave", "width": 4, "num_levels": 2},
            {"type": "Table", "table": LEVELS},
        ],
    ),
}
"""For each table of a recipe: the package that offers its classes, and one description of each class."""
BESIDE: dict[str, dict[str, Any]] = {
    "ScoreEntropy": {"parameterization": {"type": "LogScore"}},
    "CleanStream": {"network": {"context": "causal"}},
    "LeaveOneOut": {"hyperschedule": {"type": "Block", "width": 16, "num_levels": 4}},  # one noise a sequence
}
"""What a class needs beside it."""
SIZES = {"process": {"num_words": 7}, "hyperschedule": {"length": 16}}
ABSTRACT = ("AbstractCountdown",)


def _table(text: Path, **changes: Any) -> dict[str, Any]:
    table: dict[str, Any] = {
        "data": {"corpus": [str(text)], "vocabulary": 262, "context": 16, "validation": 0.1},
        "network": {"hidden_size": 16, "num_blocks": 1, "num_heads": 2},
        "mixture": [{"hyperschedule": {"type": "Block", "width": 4, "num_levels": 2}}],
        "run": {"steps": 4, "batch_size": 2, "precision": "no", "save_every": None},
    }
    for name, value in changes.items():
        if name == "hyperschedule":
            table["mixture"] = [{"hyperschedule": value, "two_stream": value["type"] != "Table"}]
        else:
            table[name] = {**table.get(name, {}), **value}
    return table


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT * 40)
    return file


def _trained(table: dict[str, Any], folder: Path, pause: int | None = None) -> dict[str, torch.Tensor]:
    """Raw weights after the run, which is interrupted after `pause` steps and resumed from its folder."""
    run = build_setup(Recipe.from_table(table), CPU)

    def interrupt(report: StepReport) -> None:
        if report.step == pause:
            os.kill(os.getpid(), signal.SIGTERM)

    with listening() as stop:
        Session(run, folder).execute(stop, (interrupt,))
    if pause is not None:
        found = find_resume_point(folder)
        assert found is not None
        assert found.state.step == pause
        again = build_setup(Recipe.from_table(table), CPU, start=found.checkpoint)
        Session(again, folder, found).execute(StopRequest())
    return load_checkpoint(folder, weights="raw").network.state_dict()


@pytest.mark.parametrize("table", PIECES)
def test_pieces_list_covers_every_exported_class(table: str) -> None:
    package, descriptions = PIECES[table]
    kind = type(build(package, descriptions[0] | SIZES.get(table, {}))).__mro__[-3]
    offered = {name: getattr(package, name) for name in package.__all__}
    classes = {name for name, value in offered.items() if isinstance(value, type) and issubclass(value, kind)}
    assert {description["type"] for description in descriptions} == classes - {kind.__name__, *ABSTRACT}


@pytest.mark.parametrize(
    ("table", "description"),
    [
        pytest.param(table, description, id=f"{table}-{description['type']}")
        for table, (_, descriptions) in PIECES.items()
        for description in descriptions
    ],
)
def test_describe_and_build_round_trip_for_every_class(table: str, description: dict[str, Any]) -> None:
    package = PIECES[table][0]
    sizes = {} if description["type"] == "Table" else SIZES.get(table, {})
    piece = build(package, description | sizes)
    assert build(package, json.loads(json.dumps(describe(piece)))) == piece


@pytest.mark.slow
@pytest.mark.parametrize(
    ("table", "description"),
    [
        pytest.param(table, description, id=f"{table}-{description['type']}")
        for table, (_, descriptions) in PIECES.items()
        for description in descriptions
    ],
)
def test_training_and_resuming_with_every_class(
    table: str, description: dict[str, Any], text: Path, tmp_path: Path
) -> None:
    others = BESIDE.get(description["type"], {})
    _check_training(_table(text, **{table: description}, **others), tmp_path)


TRAINED = {
    "GIDD and LeaveOneOut": {
        "process": {"type": "GIDD", "p_uniform": 0.2},
        "parameterization": {"type": "LeaveOneOut"},
    },
    "Uniform": {"process": {"type": "Uniform"}, "objective": {"type": "NELBO"}},
    "Absorbing and LogScore": {
        "process": {"type": "Absorbing"},
        **SCORES,
        "network": {"condition_output": True},
    },
    "Table": {"hyperschedule": {"type": "Table", "table": LEVELS}},
}


@pytest.mark.parametrize("name", TRAINED)
def test_training_and_resuming_with_selected_classes(name: str, text: Path, tmp_path: Path) -> None:
    _check_training(_table(text, **TRAINED[name]), tmp_path)


def _check_training(table: dict[str, Any], folder: Path) -> None:
    """A run saves what its recipe describes, and an interruption changes no bit."""
    recipe = Recipe.from_table(table)
    through, interrupted = (
        _trained(table, folder / "through"),
        _trained(table, folder / "interrupted", pause=2),
    )
    assert all(torch.equal(through[name], interrupted[name]) for name in through)
    checkpoint = load_checkpoint(folder / "through")
    denoiser = checkpoint.denoiser
    assert describe(denoiser.process) == {**recipe.process, "num_words": checkpoint.vocabulary.num_words}
    assert describe(denoiser.parameterization) == recipe.parameterization
    assert describe(checkpoint.noise_schedule) == recipe.noise_schedule
    assert checkpoint.hyperschedules == (recipe.mixture[0].build(16),)
    assert Recipe.from_table(checkpoint.training["recipe"]) == recipe
    assert checkpoint.network.config.condition_output is recipe.network.condition_output


def test_a_table_is_equal_to_a_table_of_the_same_levels() -> None:
    levels = torch.tensor(LEVELS)
    assert Table(levels) == Table(LEVELS)
    assert hash(Table(levels)) == hash(Table(LEVELS))
    assert Table(levels) != Table(levels, num_levels=3)
    with pytest.raises(ValueError, match="rows of levels, all of one length"):
        Table([[1, 2], [0]])


# -- the short form, and earlier versions -----------------------------------------------------------------------

SHORT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"process": {"type": "EpsilonHybrid", "epsilon": 0.01}, "parameterization": {"type": "Mean"}}),
    (
        {"network": {"shifted": True}, "objective": {"unmasked": 0.4, "max_weight": 5.0}},
        {
            "parameterization": {"type": "Shifted", "inner": {"type": "Mean"}},
            "objective": {"type": "WeightedCrossEntropy", "unmasked": 0.4, "max_weight": 5.0},
        },
    ),
    (
        {
            "network": {"told_noise": True, "blend": True},
            "process": {"type": "GammaHybrid", "gamma": 0.1, "noise_schedule": {"type": "LogLinear"}},
            "objective": {"type": "ScoreEntropy", "max_weight": 1e4, "score_entropy": "published_code"},
        },
        {
            "process": {"type": "GammaHybrid", "gamma": 0.1},
            "noise_schedule": {"type": "LogLinear"},
            "parameterization": {"type": "LogScore", "blend_rate": 0.1},
            "objective": {"type": "ScoreEntropy", "floor": 1e-4, "ratios": "published_code"},
        },
    ),
    (
        {
            "network": {"told_noise": True, "scale_by_sigma": False, "shifted": True},
            "objective": {"type": "ScoreEntropy", "diffusion": 2.0, "cross_entropy": 0.5},
        },
        {
            "parameterization": {"type": "Shifted", "inner": {"type": "LogScore", "scale_by_sigma": False}},
            "objective": {
                "type": "Combination",
                "parts": [[2.0, {"type": "ScoreEntropy"}], [0.5, {"type": "CrossEntropy"}]],
            },
        },
    ),
]


@pytest.mark.parametrize(("short", "full"), SHORT)
def test_short_recipe_equals_full_recipe(text: Path, short: dict[str, Any], full: dict[str, Any]) -> None:
    objective = {"objective": {"type": "WeightedCrossEntropy", "unmasked": 0.1}}
    expected = Recipe.from_table(_table(text, **objective | full))
    assert Recipe.from_table(_table(text, **short)) == expected
    assert Recipe.from_table(json.loads(json.dumps(expected.to_table()))) == expected


def _recorded_by_an_earlier_version(table: dict[str, Any]) -> dict[str, Any]:
    """What an earlier version wrote down of a gamma-hybrid: every option, used or not, in the short form."""
    network = {"told_noise": True, "shifted": False, "blend": True, "scale_by_sigma": True, "cond_dim": 128}
    process = {"type": "GammaHybrid", "epsilon": None, "gamma": 0.1, "noise_schedule": {"type": "Linear"}}
    entropy = {"score_entropy": "exact", "max_weight": 1e4, "diffusion": 1.0, "cross_entropy": 0.0}
    cross_entropy = {"unmasked": 0.1, "unmasked_weight": "paper"}
    return _without_pieces(table) | {
        "network": {**table["network"], **network, "checkpoint_activations": False},
        "process": process,
        "objective": {"type": "ScoreEntropy", **cross_entropy, **entropy},
    }


def _without_pieces(table: dict[str, Any]) -> dict[str, Any]:
    return {name: table[name] for name in table if name not in ("noise_schedule", "parameterization")}


def test_resume_run_recorded_by_earlier_version(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gamma = {"told_noise": True, "blend": True}
    short = {"network": gamma, "process": {"type": "GammaHybrid", "gamma": 0.1}}
    table = _table(text, **short, objective={"type": "ScoreEntropy", "max_weight": 1e4})
    through = _trained(table, tmp_path / "through")
    folder = tmp_path / "earlier"

    def interrupt(report: StepReport) -> None:
        if report.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    recorded = _recorded_by_an_earlier_version(_table(text))
    with monkeypatch.context() as earlier, listening() as stop:
        earlier.setattr(Recipe, "to_table", lambda self: recorded)
        Session(build_setup(Recipe.from_table(table), CPU), folder).execute(stop, (interrupt,))
    config = json.loads((folder / "config.json").read_text())
    assert config["training"]["recipe"] == recorded
    found = find_resume_point(folder)
    assert found is not None
    assert found.recipe == Recipe.from_table(table)
    Session(build_setup(found.recipe, CPU, start=found.checkpoint), folder, found).execute(StopRequest())
    resumed = load_checkpoint(folder, weights="raw").network.state_dict()
    assert all(torch.equal(through[name], resumed[name]) for name in through)


def test_resume_names_changed_option_of_piece(text: Path, tmp_path: Path) -> None:
    gidd = {"type": "GIDD", "p_uniform": 0.2}
    table = _table(text, process=gidd)
    Session(build_setup(Recipe.from_table(table), CPU), tmp_path / "run").save()
    found = find_resume_point(tmp_path / "run")
    assert found is not None
    with pytest.raises(ValueError, match=r"`process\.p_uniform` was 0\.2 and is 0\.3"):
        found.check(Recipe.from_table(_table(text, process=gidd | {"p_uniform": 0.3})))
    with pytest.raises(ValueError, match="`process` was GIDD and is Uniform"):
        found.check(Recipe.from_table(_table(text, process={"type": "Uniform"})))


FAULTS = [
    ({"process": {"type": "GIDD"}}, r"\[process\]: GIDD cannot be built.*p_uniform"),
    ({"process": {"type": "GIDD", "p_uniform": 2}}, r"\[process\]: `p_uniform` must lie in"),
    (
        {"process": {"type": "GIDD", "p_unifrom": 0.1}},
        r"GIDD has no option 'p_unifrom'; did you mean p_uniform",
    ),
    ({"process": {"type": "Gidd"}}, "no process 'Gidd'; known: .*Absorbing"),
    ({"objective": {"type": "Hope"}}, "no objective 'Hope'; known: .*NELBO"),
    (
        {"parameterization": {"type": "LeaveOneOut"}, "network": {"shifted": True}},
        r"network\.shifted. has no effect",
    ),
    ({"network": {"condition_output": True}}, r"network\.condition_output. has no effect.*parameterization"),
    ({"network": {"type": "GPT"}}, r"network\.type.*DDiT"),
    (
        {"process": {"type": "hdlm.process.GIDD2", "p_uniform": 0.1}},
        "must be a dataclass that subclasses AbstractNoise",
    ),
    ({"process": {"type": "pathlib.Path"}}, "must be a dataclass that subclasses AbstractNoiseProcess"),
    ({"hyperschedule": {"type": "Table", "table": [[1, 1], [0, 0]]}}, "data.context=16 positions"),
    (
        {"process": {"noise_schedule": {"type": "Cosine"}}, "noise_schedule": {"type": "Linear"}},
        "left out beside",
    ),
]


@pytest.mark.parametrize(("changes", "complaint"), FAULTS)
def test_recipe_rejects_piece_that_cannot_be_built(
    text: Path, changes: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        Recipe.from_table(_table(text, **changes))


# -- classes of the user's own ----------------------------------------------------------------------------------

OWN = """
from dataclasses import dataclass

from hdlm.process import AbstractNoiseProcess, Weights


@dataclass(frozen=True)
class Mine(AbstractNoiseProcess):
    num_words: int
    share: float = 0.5

    def weights(self, u):
        return Weights(1 - u, self.share * u, (1 - self.share) * u)
"""
RECIPE = """
[data]
vocabulary = 262
context = 16
validation = 0.1
[network]
hidden_size = 16
num_blocks = 1
num_heads = 2
[process]
type = "own_pieces.Mine"
share = 0.3
[[mixture]]
hyperschedule = { type = "Block", width = 4, num_levels = 4 }
[run]
steps = 2
precision = "no"
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with a class of a module that is not imported yet."""
    (tmp_path / "own_pieces.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_pieces", raising=False)
    recipe = tmp_path / "own.toml"
    recipe.write_text(RECIPE)
    return recipe


def test_train_command_with_user_class(own: Path, text: Path, tmp_path: Path, capsys: Any) -> None:
    output = tmp_path / "run"
    words = ["train", "--text", str(text), "--recipe", str(own), "--output", str(output)]
    assert main(words) == 0, capsys.readouterr().err
    made = load_checkpoint(output).denoiser.process
    assert describe(made) == {"type": "own_pieces.Mine", "num_words": made.num_words, "share": 0.3}


def test_load_checkpoint_does_not_import_user_module(
    own: Path, text: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    recipe = Recipe.load(own, {"data": {"corpus": [str(text)]}})
    Session(build_setup(recipe, CPU), tmp_path / "run").execute(StopRequest())
    monkeypatch.delitem(sys.modules, "own_pieces")
    with pytest.raises(ValueError, match="a class of your own: import own_pieces before"):
        load_checkpoint(tmp_path / "run")
    assert "own_pieces" not in sys.modules
    importlib.import_module("own_pieces")
    assert load_checkpoint(tmp_path / "run").denoiser.process.share == 0.3


def test_recipe_names_module_that_cannot_be_imported(own: Path) -> None:
    own.write_text(RECIPE.replace("own_pieces", "no_such_pieces"))
    with pytest.raises(ValueError, match="no_such_pieces cannot be imported"):
        Recipe.load(own)
